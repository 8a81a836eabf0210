"""How large a JSON schema becomes where its parts are put together: llguidance does so in full, on the native stack.

It goes through an object's keys and a tuple's items one within the other: 1,900 of them end a thread with a stack of
512 KiB (macOS'), 30,000 one of 8 MiB. And what ``$ref`` names is copied wherever other keywords stand beside it, or
``allOf`` puts it together with more: 200 objects that refer to one another so become millions of values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_llama.errors import OptionError

MAX_KEYS = 500
_MAX_DEPTH = 64
_MAX_VALUES = 50_000
_OF_NAMES = ("properties", "patternProperties")
_OF_ONE = ("items", "additionalItems", "additionalProperties")
_OF_CHOICES = ("anyOf", "oneOf")


@dataclass(frozen=True, slots=True)
class _Size:
    keys: int = 0
    """Of one object, or items of one tuple."""
    most_keys: int = 0
    depth: int = 0
    values: int = 0


def check(root: Mapping[str, Any], definitions: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """OptionError if a rebuilt schema is more than llguidance can take; ``names`` are the definitions' for people."""
    sizes = _Sizes(definitions)
    total = 0
    for name, schema in {**definitions, "#": root}.items():
        size, where = sizes.of(schema, is_merged=False), names.get(name, name)
        total += size.values
        if size.most_keys > MAX_KEYS:
            problem = f"{size.most_keys:,} keys or items in one object or list, at most {MAX_KEYS} are supported"
        elif size.depth > _MAX_DEPTH:
            problem = f"schemas are more than {_MAX_DEPTH} deep within each other, those that are put together included"
        elif total > _MAX_VALUES:
            problem = f"put together it is too large: it has more than {_MAX_VALUES:,} values"
        else:
            continue
        raise OptionError(f"json_schema: {where}: {problem}", remedy="simplify it")


class _Sizes:
    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._known: dict[str, _Size] = {}

    def of(self, schema: Any, *, is_merged: bool) -> _Size:
        """``is_merged``: it is put together with another, so that all that it refers to is copied."""
        if not isinstance(schema, dict):
            return _Size(depth=1, values=1)
        keywords = schema.keys() - {"$schema", "$defs"}
        is_merged = is_merged or len(keywords & {"$ref", "allOf", *_OF_CHOICES}) > 0 < len(keywords) - 1
        is_merged = is_merged or len(schema.get("allOf", ())) > 1 or bool(schema.get("patternProperties"))
        inner = [self.of(part, is_merged=is_merged) for part in _parts(schema)]
        merged = [self.of(part, is_merged=is_merged) for part in schema.get("allOf", ())]
        if "$ref" in schema:
            merged.append(self._target(schema["$ref"]) if is_merged else _Size(depth=1, values=1))
        choices = [[self.of(part, is_merged=is_merged) for part in schema.get(keyword, ())] for keyword in _OF_CHOICES]
        keys = _own_keys(schema) + sum(size.keys for size in merged)
        keys += sum(max((size.keys for size in sizes), default=0) for sizes in choices)
        every = [*inner, *merged, *(size for sizes in choices for size in sizes)]
        return _Size(
            keys,
            max([keys, _longest(schema), *(size.most_keys for size in every)]),
            1 + max((size.depth for size in every), default=0),
            1 + sum(size.values for size in every),
        )

    def _target(self, reference: str) -> _Size:
        name = reference.removeprefix("#/$defs/")
        if name not in self._known:
            self._known[name] = _Size()  # a circle: llguidance refuses it
            self._known[name] = self.of(self._definitions[name], is_merged=True)
        return self._known[name]


def _parts(schema: Mapping[str, Any]) -> Iterable[Any]:
    for keyword in _OF_NAMES:
        yield from schema.get(keyword, {}).values()
    for keyword in (*_OF_ONE, "prefixItems"):
        value = schema.get(keyword, ())
        yield from value if isinstance(value, list) else [value] if keyword in schema else []


def _own_keys(schema: Mapping[str, Any]) -> int:
    items = schema.get("items")
    tuples = len(schema.get("prefixItems", ())) + (len(items) if isinstance(items, list) else 0)
    return max(len({*schema.get("properties", ()), *schema.get("required", ())}), tuples)


def _longest(schema: Mapping[str, Any]) -> int:
    """Of lists and objects in ``const`` and in the values of ``enum``."""
    waiting = [schema["const"]] if "const" in schema else []
    waiting += schema.get("enum", ())
    longest = 0
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        longest = max(longest, len(inner))
        waiting += inner
    return longest

"""How large a JSON schema becomes where its parts are put together: llguidance does so in full, on the native stack.

It goes through an object's keys and a tuple's items one within the other: 1,900 of them end a thread with a stack of
512 KiB (macOS'), 30,000 one of 8 MiB. And what ``$ref`` names is copied wherever other keywords stand beside it, or
``allOf`` puts it together with more: 200 objects that refer to one another so become millions of values.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_llama.errors import OptionError

MAX_KEYS = 500
_MAX_DEPTH = 64
_MAX_VALUES = 50_000
_OF_CHOICES = ("anyOf", "oneOf")
_LISTS = ("allOf", *_OF_CHOICES)
_JOINED = ("$ref", *_LISTS)


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
        size, where = sizes.of(schema), names.get(name, name)
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
        self._known: dict[tuple[str, frozenset[str]], _Size] = {}

    def of(self, schema: Any, shared: frozenset[str] | None = None) -> _Size:
        """``shared``: the schema is put together with another, which says of these parts something, too.

        So what it refers to is copied, and what these parts refer to.
        """
        if not isinstance(schema, dict):
            return _Size(depth=1, values=1)
        joined = {keyword: schema[keyword] for keyword in _JOINED if keyword in schema}
        parts = [part for keyword in ("allOf", *_OF_CHOICES) for part in joined.get(keyword, ())]
        parts += [self._definitions[_name(joined["$ref"])]] if "$ref" in joined else []
        if shared is not None or (joined and len(schema.keys() - {"$schema", "$defs"}) > 1) or len(parts) > 1:
            named = Counter(name for part in (schema, *parts) for name in _parts(part))
            shared = (shared or frozenset()) | {name for name, count in named.items() if count > 1}
        inner = [self.of(part, self._within(schema, name, shared)) for name, part in _parts(schema).items()]
        every = {keyword: [self.of(part, shared) for part in joined.get(keyword, ())] for keyword in _LISTS}
        every["$ref"] = [self._target(joined["$ref"], shared)] if "$ref" in joined else []
        keys = _own_keys(schema) + sum(size.keys for keyword in ("allOf", "$ref") for size in every[keyword])
        keys += sum(max((size.keys for size in every[keyword]), default=0) for keyword in _OF_CHOICES)
        sizes = [*inner, *(size for found in every.values() for size in found)]
        return _Size(
            keys,
            max([keys, _longest(schema), *(size.most_keys for size in sizes)]),
            1 + max((size.depth for size in sizes), default=0),
            1 + sum(size.values for size in sizes),
        )

    def _within(self, schema: Mapping[str, Any], name: str, shared: frozenset[str] | None) -> frozenset[str] | None:
        """What is shared of a part: a pattern may say more of any key, and further keys meet those that are named."""
        is_joined = "patternProperties" in schema or (shared is not None and (name in shared or name[0] in "*~"))
        return frozenset(_parts(_parts(schema)[name])) if is_joined else None

    def _target(self, reference: str, shared: frozenset[str] | None) -> _Size:
        if shared is None:
            return _Size(depth=1, values=1)
        known = _name(reference), shared
        if known not in self._known:
            self._known[known] = _Size()  # a circle: llguidance refuses it
            self._known[known] = self.of(self._definitions[known[0]], shared)
        return self._known[known]


def _name(reference: str) -> str:
    return reference.removeprefix("#/$defs/")


def _parts(schema: Any) -> dict[str, Any]:
    """The schemas within a schema for the values of keys (``=KEY``, ``~PATTERN``, ``*``), and for items (``#``)."""
    if not isinstance(schema, dict):
        return {}
    found = {f"={key}": part for key, part in schema.get("properties", {}).items()}
    found |= {f"~{pattern}": part for pattern, part in schema.get("patternProperties", {}).items()}
    found |= {"*": schema["additionalProperties"]} if "additionalProperties" in schema else {}
    for keyword in ("prefixItems", "items", "additionalItems"):
        value = schema.get(keyword, ())
        items = value if isinstance(value, list | tuple) else [value]
        found |= {f"#{keyword}{at if at else ''}": part for at, part in enumerate(items)}
    return found


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

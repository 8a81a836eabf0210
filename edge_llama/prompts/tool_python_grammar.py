"""Calls as Python writes them, as a grammar: ``f(x=1, y="a")``, with literals made from the tool's JSON schema.

Where a schema says more than can be said so, the literal is JSON, which :mod:`edge_llama.prompts.tool_python` reads as
well: ``true`` for ``True``. A schema may become narrower by this, never wider.
"""

import json
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any
from unicodedata import normalize

from edge_llama.prompts.tool_grammar import CalledTool, Rules, Written, either, quoted
from edge_llama.prompts.tool_python import NAME

_MAX_REPEATS = 100  # of an item or a character: a grammar writes them out
_MAX_DEPTH = 32
_NOTES = frozenset(("title", "description", "default", "examples", "deprecated", "$comment"))
_TOP = _NOTES | {"type", "properties", "required", "additionalProperties", "$schema", "$id", "$defs", "definitions"}
_CHARACTER = r"""([^'\\\x00-\x1f\x7f]|\\[nrtbf\\'"])"""
_COMBINED = frozenset(("anyOf", "oneOf", "allOf", "$ref", "enum", "const"))


def call(rules: Rules, tool: CalledTool, _written: Written) -> str:
    """The expression for a call. OptionError for a tool that Python's syntax has no call of."""
    is_name = re.fullmatch(NAME, tool.name) and normalize("NFKC", tool.name) == tool.name
    if not is_name or any(map(keyword.iskeyword, tool.name.split("."))):
        raise tool.error(
            "a call written as Python's needs a Python name", "rename the tool, or give tool_format='json'"
        )
    return f"{quoted(f'{tool.name}(')} {_arguments(rules, tool)} {quoted(')')}"


def _arguments(rules: Rules, tool: CalledTool) -> str:
    if unknown := sorted(tool.parameters.keys() - _TOP):
        raise tool.error(
            f"{', '.join(unknown)} of its parameters can't be written as Python's arguments",
            "name each in properties, or give tool_format='json'",
        )
    if elsewhere := next(_references_elsewhere(tool.parameters), None):
        raise tool.error(f"$ref is {elsewhere!r:.80}", "refer to #/$defs/NAME, or give tool_format='json'")
    properties, required = tool.parameters.get("properties", {}), tool.parameters.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return rules.json(tool.where, tool.parameters)  # which says what is wrong with it
    named = {**{name: {} for name in required if name not in properties}, **properties}
    literals = _Literals(rules, tool)
    items = [
        (f"{quoted(f'{name}=')} {literals.of(schema, name, 0)}", name in required)
        for name, schema in named.items()
        if _is_argument(tool, name, is_required=name in required) and (schema is not False or name in required)
    ]
    if not items:
        return ""
    some = rules.sequence(items)
    return some if any(must for _, must in items) else f"{some}?"


def _references_elsewhere(schema: Any) -> Iterator[str]:
    """What is referred to and is no definition: arguments become schemas of their own, each with the definitions."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            target = value.get("$ref")
            if isinstance(target, str) and not target.startswith(("#/$defs/", "#/definitions/")):
                yield target
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _is_argument(tool: CalledTool, name: object, *, is_required: bool) -> bool:
    """Whether it can be given. OptionError if it can't be and must."""
    if isinstance(name, str) and name.isidentifier() and normalize("NFKC", name) == name:
        return True
    if is_required:
        raise tool.error(f"the argument {name!r} is no name in Python", "rename it, or give tool_format='json'")
    return False


class _Literals:
    """Expressions for values that fit a schema."""

    def __init__(self, rules: Rules, tool: CalledTool) -> None:
        self._rules = rules
        self._tool = tool
        self._root = {
            key: tool.parameters[key] for key in ("$schema", "$defs", "definitions") if key in tool.parameters
        }

        self._kinds: Mapping[str, Callable[[Mapping[str, Any], Set[str], str, int], str | None]] = {
            "boolean": lambda *_: '("True" | "False")',
            "null": lambda *_: '"None"',
            "string": self._string,
            "array": self._list,
            "object": self._dict,
        }

    def of(self, schema: Any, where: str, depth: int) -> str:
        """``where`` names the schema's place in errors."""
        found = self._python(schema, where, depth + 1) if isinstance(schema, Mapping) and depth < _MAX_DEPTH else None
        return found or self._json(schema, where)

    def _json(self, schema: Any, where: str) -> str:
        if isinstance(schema, Mapping):
            schema = {**self._root, **{key: value for key, value in schema.items() if key not in _NOTES}}
        return self._rules.json(f"{self._tool.where}: {where}", schema)

    def _python(self, schema: Mapping[str, Any], where: str, depth: int) -> str | None:
        """None for what is not one of the simple kinds."""
        keys, kind = schema.keys() - _NOTES, schema.get("type")
        if keys == {"anyOf"} and isinstance(schema["anyOf"], list) and schema["anyOf"]:
            return either([self.of(each, f"{where}/anyOf", depth) for each in schema["anyOf"]])
        if keys in ({"enum"}, {"enum", "type"}):
            return _values(schema["enum"], kind)
        if keys in ({"const"}, {"const", "type"}):
            return _values([schema["const"]], kind)
        if isinstance(kind, list) and kind and not keys & _COMBINED:
            return either([self.of({**schema, "type": each}, where, depth) for each in kind])
        make = self._kinds.get(kind) if isinstance(kind, str) and not keys & _COMBINED else None
        return make(schema, keys, where, depth) if make else None

    def _string(self, schema: Mapping[str, Any], keys: Set[str], where: str, _depth: int) -> str | None:
        """In either quotes: JSON's own, and the others that models like to write."""
        count = _repeats(schema, "Length")
        if not keys <= {"type", "minLength", "maxLength"} or count is None:
            return None
        return either([self._json(schema, where), f"/'{_CHARACTER}{count}'/"])

    def _list(self, schema: Mapping[str, Any], keys: Set[str], where: str, depth: int) -> str | None:
        more = _repeats(schema, "Items", after=1)
        if not keys <= {"type", "items", "minItems", "maxItems"} or "items" not in keys or more is None:
            return None
        if schema.get("maxItems") == 0:
            return '"[]"'
        item = self._rules.rule(self.of(schema["items"], f"{where}/items", depth))
        some = f'{item} (", " {item}){more}'
        return f'"[" {some if schema.get("minItems") else f"({some})?"} "]"'

    def _dict(self, schema: Mapping[str, Any], keys: Set[str], where: str, depth: int) -> str | None:
        properties, required = schema.get("properties"), schema.get("required", [])
        is_closed = keys <= {"type", "properties", "required", "additionalProperties"}
        if not is_closed or schema.get("additionalProperties") or not isinstance(properties, Mapping) or not properties:
            return None
        if not isinstance(required, list) or not set(required) <= properties.keys():
            return None
        items = [
            (f"{_key(name)} {self.of(each, f'{where}/{name}', depth)}", name in required)
            for name, each in properties.items()
        ]
        some = self._rules.sequence(items)
        return f'"{{" {some if required else f"{some}?"} "}}"'


def _key(name: str) -> str:
    return quoted(f"{json.dumps(name, ensure_ascii=False)}: ")


def _values(values: Any, kind: Any) -> str | None:
    """Plain values as Python writes them; None for others, and where a type may refuse some of them."""
    is_plain = isinstance(values, list) and values and all(isinstance(value, str | bool | None) for value in values)
    if not is_plain or kind not in (None, "string", "boolean"):
        return None
    if kind is not None and not all(isinstance(value, {"string": str, "boolean": bool}[kind]) for value in values):
        return None
    return either([text for value in values for text in _texts(value)])


def _texts(value: str | bool | None) -> list[str]:
    if not isinstance(value, str):
        return [quoted(str(value))]
    in_json = json.dumps(value, ensure_ascii=False)
    single = in_json[1:-1].replace('\\"', '"').replace("'", "\\'")
    return [quoted(in_json), quoted(f"'{single}'")]


def _repeats(schema: Mapping[str, Any], what: str, after: int = 0) -> str | None:
    """How often something may come after so many of it; None for counts that are none, or too large to write out."""
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    counts = [least] if most is None else [least, most]
    if not all(type(count) is int and 0 <= count <= _MAX_REPEATS for count in counts):
        return None
    first = max(least - after, 0)
    if most is None:
        return f"{{{first},}}"
    return f"{{{first},{max(most - after, 0)}}}" if least <= most else None

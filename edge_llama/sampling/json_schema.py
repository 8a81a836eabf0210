r"""JSON schemas as a grammar can enforce them: checked, and put into a form that leaves llguidance nothing to ignore.

llguidance ignores unknown keywords, reads ``$ref`` in ways of its own, and dies of deep chains of them. So each schema
is rebuilt here with the keywords that are enforced, and everything else is an error. Where enforcing is looser than
the meaning (a 29th of February in any year, integers that no float holds), the rebuilt schema is narrower: all that
fits it is valid by the original. Patterns are read as ECMA-262 says: ``\w`` and ``\d`` are ASCII.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from edge_llama.errors import OptionError
from edge_llama.sampling import schema_size
from edge_llama.sampling.schema_ends import TYPES, endless

_MAX_DEPTH = 64  # schemas within schemas, references followed: llguidance recurses on the native stack
_MAX_SIZE = 50_000
_MAX_EXACT = 2**53 - 1  # larger integers are not the same in every reader (RFC 8259, 6), nor in llguidance

_OLD_DRAFTS = tuple(f"http://json-schema.org/draft-{number}/schema" for number in ("06", "07"))
_DRAFTS = ("https://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2019-09/schema", *_OLD_DRAFTS)
# OpenAPI's discriminator, which pydantic writes, says only where to look first: what is valid oneOf says.
_NOTES = (
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"),
    "discriminator",
)
_NAMES = ("contentEncoding", "contentMediaType", "$schema", "$id", "$anchor", "$defs", "definitions")
_ANNOTATIONS = frozenset((*_NOTES, *_NAMES))
_FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

_DAY = r"[1-9][0-9]{3}-(02-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-[0-3][0-9])"
_CLOCK = r"[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-][0-2][0-9]:[0-5][0-9])"
_NARROWER = {
    "date": f"^{_DAY}$",  # February has 28 days, and no year is 0000
    "time": f"^{_CLOCK}$",  # no leap seconds: not every minute has one
    "date-time": f"^{_DAY}T{_CLOCK}$",
    "hostname": r"^.{1,253}$",
}
"""Patterns for formats whose regular expressions let through what is no such thing."""


def checked(schema: object) -> dict[str, Any]:
    """The schema rebuilt for llguidance; OptionError names what is wrong with it, and where."""
    if schema is False:
        raise _error("#", "the schema is false", "nothing fits it")
    if schema is True:
        schema = {}
    _Reader().check(schema, "#")
    if not isinstance(schema, dict):
        raise _error("#", f"a schema is an object, not {type(schema).__name__}")
    return _Rebuilder(schema).rebuild()


def _error(where: str, problem: str, remedy: str = "") -> OptionError:
    return OptionError(f"json_schema: {where}: {problem}", remedy=remedy)


class _Reader:
    """Whether something is plain JSON, of a size that costs little: a value may contain itself."""

    def __init__(self) -> None:
        self._left = _MAX_SIZE

    def check(self, value: object, where: str, depth: int = 0) -> None:
        self._left -= 1 + (len(value) // 64 if isinstance(value, str) else 0)
        if self._left < 0 or depth > 2 * _MAX_DEPTH:
            what = f"too large: it has {_MAX_SIZE:,} values" if self._left < 0 else f"{depth} values deep"
            raise _error(where, f"the schema is {what}", "simplify it")
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise _error(where, f"the key {key!r:.60} is no text")
                self.check(key, where, depth + 1)
                self.check(item, _within(where, key), depth + 1)
        elif isinstance(value, list | tuple):
            for at, item in enumerate(value):
                self.check(item, _within(where, at), depth + 1)
        else:
            _check_scalar(value, where)


def _within(where: str, part: str | int) -> str:
    return f"{where}/{part}"[:200]


def _check_scalar(value: object, where: str) -> None:
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise _error(where, f"{value!r:.60} holds a lone surrogate")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value) or (value == int(value) and abs(value) > _MAX_EXACT):
            raise _error(where, f"{value!r:.60} is a number that not every reader of JSON holds exactly")
    elif value is not None and not isinstance(value, bool):
        raise _error(where, f"{type(value).__name__} is no JSON value")


class _Rebuilder:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        draft = root.get("$schema", _DRAFTS[0])
        if not isinstance(draft, str) or draft.rstrip("#") not in _DRAFTS:
            raise _error("#/$schema", f"{draft!r:.80} is not known", f"known: {', '.join(_DRAFTS)}")
        self._draft = draft.rstrip("#")
        self._names: dict[int, str] = {}
        """Those of the schemas that are referred to, by identity: the document holds them, so it lasts."""
        self._references: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}
        """Rebuilt, each after those that it refers to, circles excepted."""
        self._told_apart: dict[int, str] = {}
        """By identity, choices and the key that must be in them: a discriminator says so."""
        self._find_discriminators(root)

    def rebuild(self) -> dict[str, Any]:
        rebuilt = self._schema(self._root, "#", 0)
        definitions = self._definitions
        if name := endless({**definitions, "#": rebuilt}):
            where = self._references.get(name, name)
            raise _error(where, "only a value without end fits it", "leave it out of required, or allow null")
        schema_size.check(rebuilt, definitions, self._references)
        rebuilt = {"$schema": self._draft, **rebuilt}
        return {**rebuilt, "$defs": definitions} if definitions else rebuilt

    def _schema(self, schema: Any, where: str, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise _error(where, f"schemas are more than {_MAX_DEPTH} deep within each other", "simplify it")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise _error(where, f"a schema is an object, not {type(schema).__name__}")
        self._check_place(schema, where)
        rebuilt: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword not in _ANNOTATIONS:
                is_any = keyword == "oneOf" and "anyOf" not in schema and self._are_exclusive(value)
                name = "anyOf" if is_any else keyword
                rebuilt[name] = self._keyword(keyword, value, f"{where}/{keyword}", depth + 1)
        if key := self._told_apart.get(id(schema)):
            rebuilt["required"] = list(dict.fromkeys([*rebuilt.get("required", ()), key]))
        _check_together(rebuilt, where)
        return _narrowed(rebuilt)

    def _find_discriminators(self, value: Any) -> None:
        """Pydantic leaves a key with a default out of ``required``, and yet tells choices apart by it."""
        if isinstance(value, dict):
            said, choices = value.get("discriminator"), value.get("oneOf")
            key = said.get("propertyName") if isinstance(said, dict) else None
            for choice in choices if isinstance(key, str) and isinstance(choices, list | tuple) else ():
                target = self._target(choice)
                if isinstance(target, dict) and key in _object(target.get("properties")):
                    self._told_apart[id(target)] = key
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            self._find_discriminators(inner)

    def _are_exclusive(self, choices: Any) -> bool:
        """Whether a key that all must have, with a text of its own in each, tells choices apart.

        llguidance finds so itself, but where ``$ref`` stands.
        """
        objects = list(map(self._target, choices)) if isinstance(choices, list | tuple) else []
        if not objects or not all(isinstance(each, dict) and each.get("type") == "object" for each in objects):
            return False
        return any(self._texts_differ(objects, key) for key in _object(objects[0].get("properties")))

    def _texts_differ(self, objects: list[dict[str, Any]], key: str) -> bool:
        texts: list[str] = []
        for each in objects:
            required = each.get("required", ())
            is_there = self._told_apart.get(id(each)) == key or (_is_names(required) and key in required)
            value = self._target(_object(each.get("properties")).get(key))
            value = _object(value)
            own = [value["const"]] if "const" in value else value.get("enum")
            if not is_there or not own or not _is_names(own):
                return False
            texts += set(own)
        return len(set(texts)) == len(texts)

    def _target(self, schema: Any) -> Any:
        """What a schema that is a reference refers to; None if that is not there."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            try:
                schema = self._resolve(schema["$ref"], "#")
            except OptionError:
                return None
        return None

    def _check_place(self, schema: dict[str, Any], where: str) -> None:
        """Keywords that mean one thing at the top or in one draft, and nothing or another elsewhere."""
        for keyword in ("$schema", "$id"):
            if keyword in schema and schema is not self._root:
                raise _error(f"{where}/{keyword}", "is supported at the top only", "leave it out")
        is_list = isinstance(schema.get("items"), list)
        is_2020 = self._draft == _DRAFTS[0]
        if is_list and (is_2020 or "prefixItems" in schema):
            raise _error(f"{where}/items", "is a list, which this draft has no more", "name it prefixItems")
        if "additionalItems" in schema and not is_list:
            raise _error(f"{where}/additionalItems", "means nothing without a list of items", "name it items")
        if "prefixItems" in schema and not is_2020:
            raise _error(f"{where}/prefixItems", f"means nothing in {self._draft}", "leave $schema out")

    def _keyword(self, keyword: str, value: Any, where: str, depth: int) -> Any:
        if keyword == "$ref":
            return self._reference(value, where, depth)
        if keyword in ("allOf", "anyOf", "oneOf", "prefixItems") or (keyword == "items" and isinstance(value, list)):
            if not isinstance(value, list | tuple) or not (value or keyword == "items"):
                raise _error(where, "expected a list of schemas")
            return [self._schema(item, f"{where}/{at}", depth) for at, item in enumerate(value)]
        if keyword in ("properties", "patternProperties"):
            if not isinstance(value, dict):
                raise _error(where, "expected an object of schemas")
            return {name: self._schema(item, f"{where}/{name}", depth) for name, item in value.items()}
        if keyword in ("items", "additionalItems", "additionalProperties"):
            return self._schema(value, where, depth)
        if keyword not in _VALUES:
            known = sorted({*_VALUES, *_APPLICATORS})
            raise _error(where, "this keyword can't be enforced", f"leave it out; supported are {', '.join(known)}")
        expected, is_right = _VALUES[keyword]
        if not is_right(value):
            raise _error(where, f"{json.dumps(value):.80} is not {expected}")
        return value

    def _reference(self, value: Any, where: str, depth: int) -> str:
        """The place in the rebuilt schema; what is there is rebuilt when it is first met, as llguidance does it."""
        target = self._resolve(value, where)
        if not isinstance(target, dict):
            raise _error(where, f"{value} is no schema")
        if id(target) not in self._names:
            self._names[id(target)] = name = self._new_name(value)
            self._references[name] = value
            self._definitions[name] = self._schema(target, value, depth)
        return f"#/$defs/{self._names[id(target)]}"

    def _new_name(self, reference: str) -> str:
        """The reference's last part where that can stand in a URI as it is: errors of llguidance's name it."""
        name = re.sub(r"[^A-Za-z0-9_-]", "-", reference.rpartition("/")[2])
        while name in self._references:
            name += "-"
        return name

    def _resolve(self, reference: Any, where: str) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise _error(where, f"{reference!r:.80} points outside of the schema", "use #/$defs/NAME")
        target: Any = self._root
        for part in reference.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list | tuple) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise _error(where, f"{reference[:80]} is not there")
        return target


def _check_together(schema: dict[str, Any], where: str) -> None:
    """What can't be promised: a key may come twice, and what reads the answer then keeps one of them."""
    is_free = schema.get("additionalProperties") is not False or "patternProperties" in schema
    least, required = schema.get("minProperties", 0), len(schema.get("required", ()))
    if is_free and least > required + 1:
        raise _error(
            f"{where}/minProperties", "can't be enforced for keys that are not named", "name more keys in required"
        )


def _narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without values that regular expressions allow and its meaning doesn't."""
    types = schema.get("type", ())
    if types == "integer" or "integer" in types:  # more digits are no integer to many readers
        schema.setdefault("minimum", -_MAX_EXACT)
        schema.setdefault("maximum", _MAX_EXACT)
    pattern = _NARROWER.get(schema.get("format", ""))
    if pattern and "pattern" not in schema:
        schema["pattern"] = pattern
    elif pattern:
        schema["allOf"] = [*schema.get("allOf", ()), {"type": "string", "pattern": pattern}]
    return schema


def patterned(schema: Any) -> Iterator[dict[str, Any]]:
    """Of each object with ``patternProperties`` in a rebuilt schema its keys alone: those that are named are all there.

    What stands for their values is null.
    """
    if isinstance(schema, list):
        for item in schema:
            yield from patterned(item)
    elif isinstance(schema, dict):
        for keyword, value in schema.items():
            if keyword not in ("const", "enum"):
                yield from patterned(value)
        if isinstance(patterns := schema.get("patternProperties"), dict) and "type" not in patterns:
            yield _keys_alone(schema, patterns)


def _keys_alone(schema: dict[str, Any], patterns: dict[str, Any]) -> dict[str, Any]:
    names = list(dict.fromkeys([*schema.get("properties", {}), *schema.get("required", ())]))
    null: dict[str, Any] = {"type": "null"}
    return {
        "type": "object",
        "properties": dict.fromkeys(names, null),
        "required": names,
        "patternProperties": {pattern: value and null for pattern, value in patterns.items()},
        "additionalProperties": schema.get("additionalProperties", True) and null,
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_type(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return bool(_is_names(names) and names and set(names) <= set(TYPES))


_NUMBER = ("a number", _is_number)
_COUNT = ("a whole number from 0 to 2**31 - 1", _is_count)
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "type": (f"a type or a list of types ({', '.join(TYPES)})", _is_type),
    "const": ("a value", lambda _: True),
    "enum": ("a list of values", lambda value: isinstance(value, list | tuple) and len(value) > 0),
    "required": ("a list of keys", _is_names),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "pattern": ("a regular expression", lambda value: isinstance(value, str)),
    "format": (f"one of {', '.join(_FORMATS)}", lambda value: value in _FORMATS),
}
"""Keywords that hold no schemas: what they take."""
_OF_LISTS = ("items", "prefixItems", "additionalItems")
_OF_OBJECTS = ("properties", "patternProperties", "additionalProperties")
_APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf", *_OF_LISTS, *_OF_OBJECTS)

"""Whether a finite value fits a rebuilt JSON schema: else a model would write for ever."""

from collections.abc import Iterable, Mapping
from typing import Any

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


def endless(schemas: Mapping[str, Any]) -> str | None:
    """The name of a schema that only a value without end fits, if there is one; each may refer to all."""
    ending: set[str] = set()
    rest = dict(schemas)
    while rest:
        before = len(ending)
        for name, schema in rest.items():  # what ends helps those after it in the same round
            if _ends(schema, ending, TYPES):
                ending.add(name)
        if len(ending) == before:
            return next(iter(rest))
        rest = {name: schema for name, schema in rest.items() if name not in ending}
    return None


def _ends(schema: Any, ending: set[str], types: Iterable[str]) -> bool:
    """Whether a finite value of one of the ``types`` fits, as far as recursion goes; ``ending`` holds names that do."""
    if isinstance(schema, bool) or "const" in schema or "enum" in schema:
        return True
    own = schema.get("type", TYPES)
    types = set(types).intersection([own] if isinstance(own, str) else own)
    if "$ref" in schema and schema["$ref"].removeprefix("#/$defs/") not in ending:
        return False
    if not all(_ends(part, ending, types) for part in schema.get("allOf", ())):
        return False
    choices = [schema[keyword] for keyword in ("anyOf", "oneOf") if keyword in schema]
    if not all(any(_ends(part, ending, types) for part in parts) for parts in choices):
        return False
    if not types or types.difference(("array", "object")):
        return True
    return ("array" in types and _array_ends(schema, ending)) or ("object" in types and _object_ends(schema, ending))


def _array_ends(schema: dict[str, Any], ending: set[str]) -> bool:
    least, items = schema.get("minItems", 0), schema.get("items", True)
    prefix = items if isinstance(items, list) else schema.get("prefixItems", [])
    rest = schema.get("additionalItems", True) if isinstance(items, list) else items
    return all(_ends(item, ending, TYPES) for item in [*prefix[:least], *[rest] * (least > len(prefix))])


def _object_ends(schema: dict[str, Any], ending: set[str]) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(_ends(properties.get(name, others), ending, TYPES) for name in schema.get("required", ()))

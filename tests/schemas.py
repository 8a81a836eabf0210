"""JSON schemas of all kinds, and walks through what is allowed by them."""

import json
from collections.abc import Mapping
from typing import Any

import jsonschema
import numpy as np

from edge_llama.prompts.tool_grammar import CallGrammar
from edge_llama.sampling.constraint import constraint
from edge_llama.sampling.params import SamplingParams

SHORT = {"type": "string", "maxLength": 12}
TREE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "children": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
    },
    "required": ["name", "children"],
    "additionalProperties": False,
    "$defs": {"leaf": {"enum": ["oak", "elm", "ash"]}},
}


def closed(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    keys = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return {**keys, "additionalProperties": False, **more}


# Of bounded length: each is whole within MAX_TOKENS.
BOUNDED: dict[str, Any] = {
    "required": closed({"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}}),
    "optional": {**closed({"name": SHORT, "nick": SHORT, "vip": {"type": "boolean"}}), "required": ["nick"]},
    "enum": {"enum": ["red", "green", 3, None, True, {"x": [1]}, "naïve 🦙"]},
    "const": {"const": {"version": 2, "tags": ["a", "ü"], "scale": 0.1}},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    "empty array": {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [SHORT, {"type": "null"}], "items": False, "minItems": 2},
    "nested": closed({"a": closed({"b": {"type": "array", "items": closed({"c": SHORT}), "maxItems": 2}})}),
    "anyOf": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"type": "string", "pattern": "^[a-f]{4}$"}]},
    "oneOf": {
        "oneOf": [
            closed({"kind": {"const": "cat"}, "lives": {"type": "integer", "minimum": 1, "maximum": 9}}),
            closed({"kind": {"const": "dog"}, "good": {"const": True}}),
        ]
    },
    "discriminator": {  # as pydantic writes it
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "discriminator": {
            "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog", "puppy": "#/$defs/Dog"}, "propertyName": "kind"
        },
        "$defs": {
            "Cat": {**closed({"kind": {"const": "cat", "title": "Kind", "type": "string"}}), "title": "Cat"},
            "Dog": closed({"kind": {"enum": ["dog", "puppy"], "type": "string"}, "good": {"type": "boolean"}}),
        },
    },
    "discriminator by default": {
        "type": "array",
        "items": {
            "discriminator": {"mapping": {"a": "#/$defs/A", "b": "#/$defs/B"}, "propertyName": "kind"},
            "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        },
        "minItems": 1,
        "maxItems": 2,
        "$defs": {
            "A": {**closed({"kind": {"const": "a", "default": "a", "type": "string"}}), "required": []},
            "B": {
                **closed({"kind": {"const": "b", "default": "b"}, "more": {"type": "array", "items": {
                    "discriminator": {"propertyName": "kind"}, "oneOf": [{"$ref": "#/$defs/A"}]
                }, "maxItems": 1}}),
                "required": ["more"],
            },
        },
    },
    "allOf": {
        "allOf": [closed({"x": {"type": "integer", "minimum": 3}}), {"properties": {"x": {"maximum": 12}}}],
    },
    "reference": TREE,
    "pattern": {"type": "string", "pattern": r"^\+[0-9]{2} [0-9]{3}-[0-9]{4}$"},
    "pattern and length": {"type": "string", "pattern": "^[a-z]+( [a-z]+)*$", "minLength": 6, "maxLength": 14},
    "date": {"type": "string", "format": "date"},
    "date-time": {"type": "string", "format": "date-time"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "uuid": {"type": "string", "format": "uuid"},
    "integer": {"type": "integer", "exclusiveMinimum": -20, "exclusiveMaximum": 1000, "multipleOf": 5},
    "any integer": {"type": "integer"},
    "number": {"type": "number", "minimum": 0, "maximum": 2.5, "multipleOf": 0.25},
    "length": {"type": "string", "minLength": 5, "maxLength": 9},
    "unicode": closed({"名前": {"type": "string", "pattern": "^[ぁ-ん]{2,4}$"}, "🦙 \"q\"\n": {"const": "✓"}}),
    "several types": {"type": ["integer", "null"], "minimum": 1, "maximum": 7},
    "map": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 3,
    },
    "draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A pair",
        "type": "array",
        "items": [SHORT, {"$ref": "#/definitions/a~1b"}],
        "minItems": 2,
        "additionalItems": False,
        "definitions": {"a/b": {"type": "integer", "minimum": 1, "maximum": 3}},
    },
}  # fmt: skip
UNBOUNDED: dict[str, Any] = {
    "anything": True,
    "free text": closed({"story": {"type": "string"}}),
    "endless": {"type": "array", "items": {"type": "integer"}},
    "tree": {**closed({"v": {"type": "integer"}, "sub": {"type": "array", "items": {"$ref": "#"}}})},
    "email": {"type": "string", "format": "email"},
    "hostname": {"type": "string", "format": "hostname"},
    "uri": {"type": "string", "format": "uri"},
    "duration": {"type": "string", "format": "duration"},
    "time": {"type": "string", "format": "time"},
    "number": {"type": "number", "exclusiveMinimum": -3.75},
    "open": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    "keys": {"type": "object", "properties": {"a": {"const": 1}, "q\"": {"const": 2}}, "required": ["a"]},
    "search": {"type": "string", "pattern": "[0-9]{2}x|^y"},
    "recursive": {
        "$ref": "#/$defs/list",
        "$defs": {
            "list": closed({"v": {"enum": [0, 1]}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tail"}]}}),
            "tail": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/list"}, "maxItems": 1}]},
        },
    },
    "no type": {"minimum": 5, "maxLength": 3, "maxItems": 2, "required": ["a"]},
}  # fmt: skip


def check(text: str, schema: Any) -> None:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))


class Bytes:
    """A vocabulary of the 256 bytes and one end token: the smallest there is."""

    n_vocab = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def is_end(self, token: int) -> bool:
        return token == 256


BYTES: Any = Bytes()


def walk(
    params: SamplingParams, rng: np.random.Generator, steps: int = 600, calls: CallGrammar | None = None
) -> str | None:
    """A text by random choices among all that fits: no model is as contrary. None if it comes to no end."""
    fits = constraint(params, BYTES, calls)
    assert fits
    text = bytearray()
    for _ in range(steps):
        allowed = np.flatnonzero(~fits.refused())
        if allowed[-1] == 256 and (len(allowed) == 1 or rng.random() < 0.3):
            return text.decode()
        closing = np.intersect1d(allowed, np.frombuffer(b"\"'}]),", np.uint8))
        choices = closing if len(closing) and rng.random() < 0.3 else allowed[allowed < 256]
        text.append(int(rng.choice(choices)))
        fits.accept(text[-1])
        if fits.is_complete:
            return text.decode()
    return None

"""Schemas, regexes and grammars that can't be kept are errors at once, and the process lives on."""

import reprlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from schemas import BYTES, SHORT, Bytes, closed

import edge_llama
from edge_llama import EngineError, OptionError
from edge_llama.sampling import json_schema
from edge_llama.sampling.constraint import constraint
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.schema_size import MAX_KEYS


def deep(levels: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def itself() -> Any:
    schema: Any = {}
    schema["items"] = schema
    return schema


def doubled(levels: int) -> Any:
    """A few objects, and 2 ** levels values where they are written out."""
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"anyOf": [schema, schema]}
    return schema


def referring(count: int) -> Any:
    names = {f"r{n}": {"type": "array", "items": {"$ref": f"#/$defs/r{n + 1}"}} for n in range(count)}
    return {"$ref": "#/$defs/r0", "$defs": {**names, f"r{count}": {"type": "null"}}}


def linked(count: int) -> Any:
    """Objects of which each refers to the next, which the one that names them all refers to first."""
    objects = {f"r{n}": {"type": "object", "properties": {"next": {"$ref": f"#/$defs/r{n + 1}"}}} for n in range(count)}
    named = [f"r{n}" for n in reversed(range(count))]
    last = {f"r{count}": {"type": "null"}}
    return {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in named}, "$defs": {**objects, **last}}


MERGED: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "beside": lambda ref: {"properties": {"a": {**ref, "type": "object"}}},
    "allOf": lambda ref: {"properties": {"a": {"allOf": [ref, {"required": ["a"]}]}}},
    "itself": lambda ref: {"allOf": [ref, {"properties": {"a": {"type": "null"}}}]},
    "anyOf": lambda ref: {"items": {"anyOf": [ref, {"type": "null"}], "minItems": 1}},
    "twice": lambda ref: {"allOf": [{"properties": {"a": ref}}, {"properties": {"a": {**ref}}}]},
    "further": lambda ref: {"allOf": [{"additionalProperties": ref}, {"properties": {"a": {"type": "object"}}}]},
    "items": lambda ref: {"items": ref, "allOf": [{"items": {"type": "array"}}]},
    "pattern": lambda ref: {"properties": {"a": ref}, "patternProperties": {"^a$": {"type": "object"}}},
}
"""Ways to refer to a schema so that llguidance copies it."""


def merged_chain(count: int, kind: str) -> Any:
    """Named so that the references are met from the last to the first: no chain of them is deep."""
    chain = {f"r{n}": MERGED[kind]({"$ref": f"#/$defs/r{n + 1}"}) for n in range(count)}
    names = [{"$ref": f"#/$defs/r{n}"} for n in reversed(range(count))]
    return {"anyOf": names, "$defs": {**chain, f"r{count}": {"type": "object"}}}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ("text", "a schema is an object"),
        ([], "a schema is an object"),
        (False, "nothing fits"),
        ({"type": "strin"}, '#/type: "strin"'),
        ({"type": []}, "#/type"),
        ({"type": "string", "minLenght": 3}, "#/minLenght: this keyword can't be enforced"),
        ({"x-guidance": {"lenient": True}}, "#/x-guidance"),
        ({"not": {"type": "string"}}, "#/not"),
        ({"if": {}, "then": {}}, "#/if"),
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"type": "array", "contains": {}}, "#/contains"),
        ({"properties": {"a": {"items": {"unevaluatedItems": False}}}}, "#/properties/a/items/unevaluatedItems"),
        ({"propertyNames": {"pattern": "a"}}, "#/propertyNames"),
        ({"dependentRequired": {}}, "#/dependentRequired"),
        ({"type": "string", "format": "unknown"}, '#/format: "unknown"'),
        ({"type": "string", "format": "iri"}, "#/format"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "look"),
        ({"type": "string", "pattern": 5}, "#/pattern"),
        ({"minLength": -1}, "#/minLength"),
        ({"minLength": 1.5}, "#/minLength"),
        ({"minimum": "3"}, "#/minimum"),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum"),
        ({"multipleOf": 0}, "#/multipleOf"),
        ({"minimum": float("nan")}, "#/minimum"),
        ({"const": 2**53}, "#/const"),
        ({"enum": [1e300]}, "#/enum/0"),
        ({"enum": []}, "#/enum"),
        ({"enum": [{1, 2}]}, "#/enum/0: set is no JSON value"),
        ({"const": "\ud800"}, "lone surrogate"),
        ({5: {}}, "the key 5"),
        ({"required": "a"}, "#/required"),
        ({"properties": []}, "#/properties"),
        ({"anyOf": []}, "#/anyOf"),
        ({"anyOf": {}}, "#/anyOf"),
        ({"items": 5}, "#/items"),
        ({"items": [{}]}, "name it prefixItems"),
        ({"additionalItems": False}, "#/additionalItems"),
        ({"$schema": "http://json-schema.org/draft-07/schema", "prefixItems": [{}]}, "#/prefixItems"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "#/$schema"),
        ({"properties": {"a": {"$id": "x"}}}, "#/properties/a/$id"),
        ({"$ref": "https://example.com/schema"}, "outside of the schema"),
        ({"$ref": "#/$defs/missing"}, "#/$defs/missing is not there"),
        ({"$ref": "#/$defs", "$defs": {"a": {}}}, "a: this keyword"),
        ({"$ref": "#anchor"}, "outside of the schema"),
        ({"$ref": "#"}, "without end"),
        (closed({"next": {"$ref": "#"}}), "without end"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "without end"),
        ({"type": "object", "allOf": [closed({"a": {"$ref": "#"}})]}, "without end"),
        (
            {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": closed({"b": {"$ref": "#/$defs/b"}})}},
            "#/$defs/b",
        ),
        ({"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]}, "without end"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "nsatisfiable"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "nsatisfiable"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "nsatisfiable"),
        (closed({"a": False}), "nsatisfiable"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nsatisfiable"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "a oneOf may overlap"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "allOf": [{"$ref": "#/$defs/x"}]}}}, "without end"),
        ({"type": "object", "minProperties": 3}, "#/minProperties"),
        ({"properties": {f"k{n}": True for n in range(600)}}, "600 keys or items"),
        ({"required": [f"k{n}" for n in range(600)]}, "600 keys or items"),
        ({"allOf": [{"properties": {f"k{m}{n}": True for n in range(99)}} for m in range(9)]}, "891 keys or items"),
        ({"anyOf": [{"items": {"const": {f"k{n}": n for n in range(600)}}}]}, "600 keys or items"),
        ({"prefixItems": [{}] * 600}, "600 keys or items"),
        (linked(600), "600 keys or items"),
        *((merged_chain(99, kind), "put together") for kind in MERGED),
        (closed({"a": {"type": "integer"}}, patternProperties={"^a$": {}}), "patternProperties"),
        ({"items": {"properties": {"b": closed({"a": {}, "b": {}}, patternProperties={"^[ab]$": {}})}}}, "patternProp"),
        (deep(2000), "deep"),
        (itself(), "deep"),
        (doubled(40), "too large"),
        (referring(5000), "deep"),
        ({"enum": ["a" * 60 * n for n in range(2_000)]}, "too large"),
    ],
    ids=reprlib.repr,
)
def test_a_schema_that_cannot_be_kept_is_an_error_at_once(model: edge_llama.Model, schema: Any, where: str) -> None:
    with pytest.raises(OptionError) as caught:
        model.generate("x", json_schema=schema)
    assert where in str(caught.value)
    assert str(caught.value).startswith("json_schema: ")
    assert len(str(caught.value)) < 700


def chain(count: int, kind: str) -> str:
    return "start: R0\n".replace("R", kind) + "\n".join(f'{kind}{n}: "x" {kind}{n + 1}' for n in range(count))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"regex": "("}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"a[^\s\S]"}, "nothing that the model can write fits"),
        ({"regex": "(" * 5000 + "a" + ")" * 5000}, "regex"),
        ({"regex": "a" * 100_001}, "100,001 characters"),
        ({"grammar": ""}, "no start rule"),
        ({"grammar": "start: ("}, "Expected"),
        ({"grammar": 'begin: "a"'}, "no start rule"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": 'start: "a" start'}, "'start' never ends"),
        ({"grammar": 'start: "a" | "b" x\nx: (x "y")+ | "(" x ")"'}, "'x' never ends"),
        ({"grammar": 'start: "a" /[^\\s\\S]/'}, "nothing that the model can write fits"),
        ({"grammar": "start: A\nA: /a+/ & /b+/"}, "nothing that the model can write fits"),
        ({"grammar": "start: <|im_end|>"}, "<|im_end|>"),
        ({"grammar": "start: <[2]>"}, "<[2]>"),
        ({"grammar": "start: @other"}, "@other"),
        ({"grammar": 'start: %lark { start: "x" }'}, "%lark"),
        ({"grammar": 'start: x::1\nx::_: "a"'}, "parameters"),
        ({"grammar": "start: x\nx[temperature=0.5]: /a/"}, "temperature"),
        ({"grammar": 'start: x "e"\nx[stop="e"]: /.*/'}, "stop"),
        ({"grammar": 'start: %json {"type": "string", "uniqueItems": true}'}, "#/uniqueItems"),
        ({"grammar": 'start: %json {"$ref": "#"}'}, "without end"),
        ({"grammar": "start: %json {type"}, "is not followed by JSON"),
        ({"grammar": "start: " + "(" * 40_000 + '"a"'}, "deep"),
        ({"grammar": chain(900, "r") + '\nr900: "a"'}, "deep"),
        ({"grammar": chain(900, "R") + '\nR900: "a"'}, "deep"),
        ({"grammar": chain(5000, "r")}, "5,001 rules"),
        ({"grammar": "start: " + " | ".join(f"/x{n}/" for n in range(600))}, "600 regular expressions"),
    ],
    ids=reprlib.repr,
)
def test_a_regex_or_grammar_that_cannot_be_kept_is_an_error_at_once(
    model: edge_llama.Model, params: dict[str, str], said: str
) -> None:
    with pytest.raises(OptionError) as caught:
        model.generate("x", **params)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 700
    assert model.generate("x", temperature=0, max_tokens=1).result().tokens


@pytest.mark.parametrize(
    "params",
    [
        {"regex": "(a{1000}){1000}"},
        {"regex": "(a|b)*a(a|b){200}"},
        {"json_schema": {"type": "string", "minLength": 2**31 - 1}},
        {"json_schema": {"type": "array", "items": {"type": "null"}, "minItems": 10**6, "maxItems": 10**9}},
        {"json_schema": {"type": "object", "properties": {f"k{n}": SHORT for n in range(400)}}},
        {"json_schema": {"enum": [f"{n} {n * 7}" for n in range(45_000)]}},
        {"json_schema": deep(30)},
        {"grammar": 'start: (("a" "b"){0,1000}){0,1000}'},
        {"grammar": 'start: s\ns: s s | "a" |'},
        {"grammar": "start: r0\n" + "\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(30)) + '\nr30: "a" | "b"'},
    ],
    ids=reprlib.repr,
)
def test_what_is_large_but_finite_goes_on_until_max_tokens(model: edge_llama.Model, params: dict[str, Any]) -> None:
    answer = model.generate("x", temperature=1, seed=1, max_tokens=8, **params).result()
    assert len(answer.tokens) <= 8


def test_a_grammar_that_takes_too_much_is_an_error_when_it_does(model: edge_llama.Model) -> None:
    schema = {"type": "object", "properties": {f"k{n}": SHORT for n in range(3000)}}
    with pytest.raises(OptionError, match=r"json_schema: .*simplify"):
        model.generate("x", json_schema=schema, temperature=1, seed=1, max_tokens=8).result()
    assert model.generate("x", temperature=0, max_tokens=1).result().tokens


def test_a_character_that_the_vocabulary_lacks_is_an_error() -> None:
    class Letters(Bytes):
        def piece(self, token: int) -> bytes:
            return super().piece(token) if token < 128 else b""

    letters: Any = Letters()
    with pytest.raises(OptionError, match="vocabulary"):
        constraint(SamplingParams(regex="é"), letters)


def test_references_that_are_not_copied_count_once() -> None:
    """As large schemas have them: each object of a level refers to all of the next, and says which keys it needs."""
    levels, width = 20, 3
    objects = {
        f"r{level}_{at}": {
            "type": "object",
            "properties": {f"k{n}": {"$ref": f"#/$defs/r{level + 1}_{n}"} for n in range(width)},
            "anyOf": [{"required": ["k0"]}, {"required": ["k1"]}],
        }
        for level in range(levels)
        for at in range(width)
    }
    leaves = {f"r{levels}_{at}": {"type": "integer"} for at in range(width)}
    assert json_schema.checked({"$ref": "#/$defs/r0_0", "$defs": {**objects, **leaves}})


def test_where_nothing_fits_amid_an_answer_the_engine_is_at_fault() -> None:
    """It allowed what came before; what nothing fits from the first token on is an error of who asked."""

    class Letters(Bytes):
        def piece(self, token: int) -> bytes:
            return super().piece(token) if token < 128 else b""

    letters: Any = Letters()
    fits = constraint(SamplingParams(regex="aé"), letters)
    assert fits
    fits.accept(ord("a"))
    with pytest.raises(EngineError, match="nothing that the model can write fits here") as caught:
        fits.refused()
    assert caught.value.exit_code == 1


def test_schemas_are_deep_enough_for_a_thread_with_a_small_stack() -> None:
    """Deep schemas and grammars end the process where the native stack ends: 512 KiB on macOS."""
    grammar = "start: r0\n" + "\n".join(f'r{n}: "x" (r{n + 1} | "z")* "y"' for n in range(20)) + '\nr20: "a"'
    mixed: Any = {"type": "null"}
    for _ in range(14):
        mixed = {"type": "object", "properties": {"a": {"anyOf": [{"allOf": [mixed]}, {"type": "null"}]}}}
    done: list[bool] = []

    def work() -> None:
        for params in (
            {"json_schema": deep(60)},
            {"json_schema": referring(30)},
            {"json_schema": mixed},
            {"json_schema": {"properties": {f"k{n}": True for n in range(MAX_KEYS)}}},
            {"json_schema": linked(MAX_KEYS - 1)},
            *({"json_schema": merged_chain(10, kind)} for kind in MERGED),
            {"grammar": grammar},
        ):
            assert constraint(SamplingParams(**params), BYTES)
        done.append(True)

    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert done == [True]

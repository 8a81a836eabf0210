"""Answers by schema, regex and grammar: whole, valid, and errors for what can't be promised."""

import json
import re
import reprlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import converters
import edge_llama
from edge_llama import Message, OptionError
from edge_llama.sampling import SamplingParams
from edge_llama.structured import constraint

QUESTION = [Message("user", "Make up an entry of an address book, as JSON.")]
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
    "allOf": {
        "allOf": [closed({"x": {"type": "integer", "minimum": 3}}), {"properties": {"x": {"maximum": 12}}}],
    },
    "reference": TREE,
    "recursive": {
        "$ref": "#/$defs/list",
        "$defs": {
            "list": closed({"v": {"enum": [0, 1]}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tail"}]}}),
            "tail": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/list"}, "maxItems": 1}]},
        },
    },
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
    "no type": {"minimum": 5, "maxLength": 3, "maxItems": 2, "required": ["a"]},
}  # fmt: skip
MAX_TOKENS = 160


def check(text: str, schema: Any) -> None:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))


class Bytes:
    """A vocabulary of the 256 bytes and one end token: the smallest there is."""

    n_vocab = 257

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def is_end(self, token: int) -> bool:
        return token == 256


BYTES: Any = Bytes()


def walk(params: SamplingParams, rng: np.random.Generator, steps: int = 600) -> str | None:
    """A text by random choices among all that fits: no model is as contrary. None if it comes to no end."""
    fits = constraint(params, BYTES)
    assert fits
    text = bytearray()
    for _ in range(steps):
        allowed = np.flatnonzero(~fits.refused())
        if allowed[-1] == 256 and (len(allowed) == 1 or rng.random() < 0.3):
            return text.decode()
        closing = np.intersect1d(allowed, np.frombuffer(b'"}],', np.uint8))
        choices = closing if len(closing) and rng.random() < 0.3 else allowed[allowed < 256]
        text.append(int(rng.choice(choices)))
        fits.accept(text[-1])
        if fits.is_complete:
            return text.decode()
    return None


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("seed", range(3))
def test_the_models_answers_are_whole_and_valid(model: edge_llama.Model, name: str, seed: int) -> None:
    schema = BOUNDED[name]
    answer = model.answer(QUESTION, json_schema=schema, temperature=1, seed=seed, max_tokens=MAX_TOKENS).result()
    assert answer.finish_reason == "stop", answer.text
    check(answer.text, schema)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_an_answer_that_max_tokens_cuts_says_so_and_others_are_valid(model: edge_llama.Model, name: str) -> None:
    answer = model.answer(QUESTION, json_schema=UNBOUNDED[name], temperature=1, seed=1, max_tokens=24).result()
    if answer.finish_reason == "stop":
        check(answer.text, UNBOUNDED[name])
    else:
        assert (answer.finish_reason, len(answer.tokens)) == ("length", 24)


@pytest.mark.parametrize("name", [*BOUNDED, *UNBOUNDED])
def test_whatever_fits_is_valid(name: str, rng: np.random.Generator) -> None:
    schema = {**UNBOUNDED, **BOUNDED}[name]
    found = [walk(SamplingParams(json_schema=schema), rng) for _ in range(40)]
    whole = [text for text in found if text is not None]
    assert len(whole) > 10 or name == "search"  # which random letters seldom meet
    for text in whole:
        check(text, schema)


@pytest.mark.parametrize("number", [0, -1, 0.1, -0.25, 1e-7, 123.456, 2**53 - 1, -(2**53) + 1, 4.5e15, 1e15])
def test_numbers_come_back_exactly(number: float, rng: np.random.Generator) -> None:
    found = walk(SamplingParams(json_schema={"const": number}), rng)
    assert found is not None
    assert json.loads(found) == number


def test_any_vocabulary_will_do(llama2: Path, llama3: Path, tmp_path: Path) -> None:
    """Sentencepiece and byte-level BPE, with random weights: such models have no idea of JSON."""
    for checkpoint in (llama2, llama3):
        path = tmp_path / f"{checkpoint.name}.gguf"
        converters.convert(checkpoint, path, quant="f32")
        with edge_llama.open(path, n_ctx=512) as opened:
            for name in ("required", "unicode", "reference", "enum"):
                answer = opened.generate("x", json_schema=BOUNDED[name], temperature=1, seed=2, max_tokens=300).result()
                assert answer.finish_reason == "stop"
                check(answer.text, BOUNDED[name])


@pytest.mark.parametrize(
    "regex", [r"[0-9]{3}-[0-9]{4}", r"(yes|no)( really){0,2}", r"\d/\d", "a\nb", r"[ぁ-ん]{3}🦙?", ""]
)
def test_a_regex_holds_for_the_whole_answer(model: edge_llama.Model, regex: str) -> None:
    for seed in range(3):
        answer = model.generate("My number is ", regex=regex, temperature=1.5, seed=seed, max_tokens=60).result()
        assert answer.finish_reason == "stop"
        assert re.fullmatch(regex, answer.text)


def test_a_grammar_holds_for_the_whole_answer(model: edge_llama.Model) -> None:
    grammar = """
        start: sum "=" NUM      // a comment: with "quotes" | start
        sum: NUM ("+" NUM){1,3} | "(" NUM "-" NUM ")" "*" NUM
        NUM: /[1-9][0-9]?/
    """
    for seed in range(4):
        answer = model.generate("2+2=4, ", grammar=grammar, temperature=1, seed=seed, max_tokens=80).result()
        assert answer.finish_reason == "stop"
        left, right = answer.text.split("=")
        assert re.fullmatch(r"[1-9][0-9]?", right)
        assert isinstance(eval(left), int)


def test_a_schema_within_a_grammar_is_enforced(model: edge_llama.Model) -> None:
    schema = json.dumps(BOUNDED["required"])
    answer = model.generate(
        "x", grammar=f'start: "<tool>" %json {schema} "</tool>"', temperature=1, seed=1, max_tokens=100
    ).result()
    check(answer.text.removeprefix("<tool>").removesuffix("</tool>"), BOUNDED["required"])


def test_the_answer_ends_with_the_grammar_also_at_the_last_token_allowed(model: edge_llama.Model) -> None:
    def answer(count: int) -> edge_llama.Answer:
        return model.generate("x", regex="[a-c]{40}", temperature=0, max_tokens=count).result()

    whole = answer(40)
    assert (whole.finish_reason, len(whole.text)) == ("stop", 40)
    assert answer(len(whole.tokens)).finish_reason == "stop"
    assert answer(len(whole.tokens) - 1).finish_reason == "length"


def test_other_settings_go_on_to_hold(model: edge_llama.Model) -> None:
    def answer(**params: Any) -> str:
        return model.generate("Colours: ", regex="(red|blue|green)", max_tokens=9, **params).result().text

    words = {answer(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed) for seed in range(12)}
    assert words == {"red", "blue", "green"}
    likeliest = answer(temperature=0)
    other = next(word for word in ("blue", "green") if word != likeliest)
    assert answer(temperature=0, logit_bias={model.tokenizer.encode(other)[0]: 1e4}) == other
    assert answer(temperature=0, logprobs=2) == likeliest


def test_logits_are_whole_again_for_the_next_answer(exact: edge_llama.Model) -> None:
    plain = exact.generate("Once upon a time", temperature=0, max_tokens=6).result()
    exact.generate("Once upon a time", regex="zz", max_tokens=6).result()
    again = exact.generate("Once upon a time", temperature=0, max_tokens=6, logprobs=1).result()
    assert again.tokens == plain.tokens


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

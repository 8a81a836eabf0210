"""Answers that must be calls of tools are, whatever the model, the form and the tools' parameters."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
import trained
from schemas import BYTES, SHORT, closed, walk
from tools import LLAMA4_TEMPLATE, PYTHONIC_LLAMA4_TEMPLATE, official_template
from trained import BOTH, HELLO, PARIS, SUNNY, weather

import edge_llama
from converters.architectures.llama_families import FAMILIES
from edge_llama import Message, OptionError, ToolCall
from edge_llama.generation import generate
from edge_llama.prompts.call_style import own_style
from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.tool_choice import call_grammar, called_tools
from edge_llama.prompts.tool_formats import FORMS
from edge_llama.prompts.tool_grammar import CallGrammar, Written
from edge_llama.prompts.tool_parser import ToolCallParser
from edge_llama.prompts.tools import Tools, tools_of
from edge_llama.sampling.constraint import constraint
from edge_llama.sampling.params import SamplingParams


def now() -> str:
    """Tell the time."""
    return "noon"


def light(room: str | None, on: bool, level: Literal[1, 2, 3] = 2) -> str:
    """Switch a light.

    Args:
        room: Which
        on: Or off
        level: How bright
    """
    return f"{room} {on} {level}"


def described(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


BOOLEAN, NULL = {"type": "boolean"}, {"type": "null"}
FEW = {"type": "number", "minimum": 0, "maximum": 9}
PLACE = closed({"lat": {"type": "integer", "minimum": -90, "maximum": 90}, "exact": BOOLEAN})
SEVERAL = {"type": ["integer", "null"], "minimum": 1, "maximum": 99}
TOOLS: dict[str, Any] = {
    "no arguments": now,
    "a function": light,
    "nested": described("go", **closed({"to": closed({"place": PLACE, "why": {"anyOf": [SHORT, NULL]}})})),
    "optional": described("search", properties={"q": SHORT, "limit": SEVERAL, "deep": BOOLEAN}, required=["limit"]),
    "all optional": described("list_all", type="object", properties=dict.fromkeys("abcde", NULL)),
    "enums": described(
        "paint", **closed({"hue": {"enum": ["red", "it's", 'a "b"', "ü\n🦙"]}, "of": {"enum": [1, True]}})
    ),
    "unions": described(
        "set", **closed({"to": {"anyOf": [BOOLEAN, {"type": "array", "items": SHORT, "maxItems": 2}, PLACE]}})
    ),
    "arrays": described("sum", **closed({"all": {"type": "array", "items": FEW, "minItems": 1, "maxItems": 3}})),
    "unicode": described(
        "größe", **closed({"名前": {"type": "string", "pattern": "^[ぁ-ん]{2,4}$"}, "from": {"const": "✓"}})
    ),
    "references": described("visit", **closed({"place": {"$ref": "#/$defs/place"}}), **{"$defs": {"place": PLACE}}),
}


@pytest.fixture(scope="module", params=trained.TEMPLATES)
def llama(request: pytest.FixtureRequest, tool_llama: Path) -> Iterator[edge_llama.Model]:
    template = trained.TEMPLATES[request.param]
    with edge_llama.open(tool_llama, n_ctx=512, threads=1, chat_template=template) as model:
        yield model


def grammar_of(tools: Tools, form: str, choice: str = "required") -> CallGrammar:
    return call_grammar(called_tools(choice, tools), own_style(FORMS[form]), {}, is_single=choice != "required")


def calls_in(text: str, form: str, tools: Tools) -> tuple[ToolCall, ...]:
    parser = ToolCallParser(FORMS[form], tools.names, {})
    found, rest = parser.feed(text), parser.finish()
    assert not (found.text + rest.text), (text, parser.notes)
    return found.calls + rest.calls


def check(calls: tuple[ToolCall, ...], tools: Tools) -> None:
    schemas = {schema["function"]["name"]: schema["function"]["parameters"] for schema in tools.schemas}
    for call in calls:
        jsonschema.Draft202012Validator(without_nullable(schemas[call.name])).validate(call.arguments)


def without_nullable(schema: Any) -> Any:
    """As a reader that doesn't know the word must have it."""
    if isinstance(schema, dict):
        rest = {key: without_nullable(value) for key, value in schema.items() if key != "nullable"}
        return {"anyOf": [rest, {"type": "null"}]} if schema.get("nullable") is True else rest
    return schema


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TOOLS)
def test_whatever_fits_is_valid_calls(name: str, form: str, rng: np.random.Generator) -> None:
    tools = tools_of([TOOLS[name], now] if name != "no arguments" else [now])
    grammar = grammar_of(tools, form)
    found = [text for _ in range(5) if (text := walk(SamplingParams(), rng, 900, grammar)) is not None]
    assert found
    for text in found:
        calls = calls_in(text, form, tools)
        assert calls
        check(calls, tools)


@pytest.mark.parametrize("form", FORMS)
def test_a_named_tool_is_called_once(form: str, rng: np.random.Generator) -> None:
    tools = tools_of([now, light, weather])
    for _ in range(5):
        text = walk(SamplingParams(), rng, calls=grammar_of(tools, form, "light"))
        if text is not None:
            assert [call.name for call in calls_in(text, form, tools)] == ["light"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("choice", ["required", "light"])
def test_any_model_must_obey(llama: edge_llama.Model, form: str, choice: str) -> None:
    """This one was trained for another tool, another form and other questions."""
    tools = tools_of([light, now])
    answer = llama.answer(
        [Message("user", HELLO)],
        tools=tools,
        tool_choice=choice,
        tool_format=form,
        temperature=1,
        seed=3,
        max_tokens=300,
    ).result()
    assert (answer.finish_reason, answer.text, answer.notes) == ("tool_calls", "", ())
    check(answer.tool_calls, tools)
    assert choice == "required" or [call.name for call in answer.tool_calls] == ["light"]


def test_the_answer_is_in_the_form_that_the_model_knows(llama: edge_llama.Model) -> None:
    """Its first token is the control token that it was trained to begin a call with."""
    answer = llama.answer([Message("user", PARIS)], tools=[weather], tool_choice="required", temperature=0).result()
    free = llama.answer([Message("user", PARIS)], tools=[weather], temperature=0).result()
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("weather", {"city": "Paris"})]
    assert answer.finish_reason == "tool_calls"
    tags = {llama.tokenizer.control_tokens[tag] for tag in ("<|python_tag|>", "<|python_start|>")}
    assert answer.tokens[0] == free.tokens[0]
    assert answer.tokens[0] in tags


def test_the_control_token_that_closes_calls_is_forced(llama: edge_llama.Model) -> None:
    control = llama.tokenizer.control_tokens
    calls = call_grammar(called_tools("now", tools_of([now])), own_style(FORMS["pythonic"]), control, is_single=True)
    fits = constraint(SamplingParams(), llama.tokenizer, calls)
    assert fits
    assert fits.forced() == []
    fits.accept(control["<|python_start|>"])
    *text, end = fits.forced()
    assert b"".join(map(llama.tokenizer.piece, text)) == b"[now()]"
    assert end == control["<|python_end|>"]


def test_text_that_the_model_would_write_first_is_left_out(llama: edge_llama.Model) -> None:
    answer = llama.answer([Message("user", BOTH)], tools=[weather], tool_choice="required", temperature=0).result()
    assert answer.text == ""
    assert {call.name for call in answer.tool_calls} == {"weather"}


def test_none_leaves_all_as_text(llama: edge_llama.Model) -> None:
    chat = llama.chat(tools=[weather], tool_choice="none", temperature=0, max_tokens=60)
    answer = chat.send(PARIS).result()
    assert (answer.tool_calls, answer.finish_reason, answer.notes) == ((), "stop", ())
    assert "Paris" in answer.text
    assert chat.retry(tool_choice="auto").result().tool_calls


def test_run_tools_must_call_first_and_then_may_answer(llama: edge_llama.Model) -> None:
    chat = llama.chat(tools=[weather], tool_choice="required", temperature=0, max_tokens=60)
    assert chat.run_tools(PARIS).text == SUNNY
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    chat.clear()
    assert chat.run_tools(PARIS, tool_choice={"type": "function", "function": {"name": "weather"}}).text == SUNNY


def test_a_model_of_another_kind_obeys_too(model: edge_llama.Model) -> None:
    template = ChatTemplate("{{ tools }}{{ messages[0].content }}", model.tokenizer, "here")
    assert template.call_style is None, "JSON, where the template shows none"
    tools, style = tools_of([light, now]), template.calls_as(None)
    answer = generate(
        model._engine,
        model.tokenizer.encode("Switch the light in the kitchen on.\n"),
        model.sampling({"temperature": 0, "max_tokens": 60}),
        parser=template.call_parser(tools.names, style.form.name),
        calls=call_grammar(called_tools("light", tools), style, model.tokenizer.control_tokens, is_single=True),
    ).result()
    assert (answer.finish_reason, answer.text) == ("tool_calls", "")
    assert [call.name for call in answer.tool_calls] == ["light"]
    check(answer.tool_calls, tools)


LLAMA_JSON = Written('{"name": "', '", "parameters": ', "}", between="; ")
HERMES = """{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>
{{ m.content }}{% for c in m.tool_calls or [] %}{{ '' if loop.first else '\\n' }}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|eot_id|>
{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>
{% endif %}"""
LISTED = HERMES.replace(
    """{{ '' if loop.first else '\\n' }}<tool_call>\n""", "{{ '[' if loop.first else ', ' }}"
).replace("\n</tool_call>", "{{ ']' if loop.last }}")
STYLES: dict[str, tuple[str, str, Written]] = {
    "Llama 3.1": (official_template("meta-llama-Llama-3.1-8B-Instruct"), "json", LLAMA_JSON),
    "Llama 3.2": (official_template("meta-llama-Llama-3.2-3B-Instruct"), "json", LLAMA_JSON),
    "Llama 4": (LLAMA4_TEMPLATE, "json", replace(LLAMA_JSON, between="")),
    "Llama 4, pythonic": (PYTHONIC_LLAMA4_TEMPLATE, "pythonic", FORMS["pythonic"].written),
    "our Llama 3.1": (
        FAMILIES["llama3.1"].template,
        "json",
        Written('{"type": "function", "name": "', '", "parameters": ', "}", between="; "),
    ),
    "our Llama 3.2": (FAMILIES["llama3.2"].template, "pythonic", FORMS["pythonic"].written),
    "Hermes": (HERMES, "json", Written('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", between="\n")),
    "a list": (LISTED, "json", Written('{"name": "', '", "arguments": ', "}", begin="[", between=", ", end="]")),
}


@pytest.mark.parametrize("name", STYLES)
def test_a_template_tells_how_it_writes_calls(llama: edge_llama.Model, name: str) -> None:
    source, form, written = STYLES[name]
    style = ChatTemplate(source, llama.tokenizer, name).call_style
    assert style
    assert (style.form.name, style.written) == (form, written)


@pytest.mark.parametrize("choice", [None, "auto"])
def test_who_decides_between_calls_and_a_schema_keeps_to_one(llama: edge_llama.Model, choice: str | None) -> None:
    options: dict[str, Any] = {"tools": [weather], "tool_choice": choice, "temperature": 0, "max_tokens": 60}
    schema = {"enum": ["Hi", "Bye"]}
    called = llama.answer([Message("user", PARIS)], json_schema=schema, **options).result()
    assert [(call.name, call.arguments) for call in called.tool_calls] == [("weather", {"city": "Paris"})]
    # What the model would rather write, neither a call nor by the schema, can't come.
    barred = llama.answer([Message("user", HELLO)], json_schema=schema, **options).result()
    assert barred.tool_calls or barred.text in ('"Hi"', '"Bye"')


def test_without_parallel_calls_an_answer_ends_with_the_first(llama: edge_llama.Model) -> None:
    for choice in (None, "required"):
        options: dict[str, Any] = {"tools": [weather], "tool_choice": choice, "temperature": 0, "max_tokens": 60}
        answer = llama.answer([Message("user", BOTH)], parallel_tool_calls=False, **options).result()
        assert len(answer.tool_calls) == 1
        assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tool_choice": "wether"}, "tool_choice is 'wether'; known: auto, none, required, weather, now"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice is .*; known: auto"),
        ({"tool_choice": {"type": "function"}}, "tool_choice is NoneType, expected auto, none, required or a tool"),
        ({"tool_choice": 5}, "tool_choice is int, expected"),
        ({"tool_choice": "required", "tools": None}, "tool_choice is 'required', but no tools were given; give them"),
        ({"tool_choice": "weather", "tools": []}, "but no tools were given"),
        ({"tool_choice": "required", "regex": "a"}, "tool_choice and regex were given; an answer can have one of them"),
        ({"tool_choice": "weather", "json_schema": {}}, "tool_choice and json_schema were given"),
        ({"tool_choice": "required", "grammar": 'start: "a"'}, "tool_choice and grammar were given"),
        ({"tool_choice": "required", "tool_format": "xml"}, "tool_format is 'xml'"),
    ],
)
def test_choices_that_cannot_be_are_errors(llama: edge_llama.Model, options: Any, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        llama.answer([Message("user", PARIS)], **{"tools": [weather, now], **options})


@pytest.mark.parametrize(
    ("tool", "form", "problem"),
    [
        (described("f", type="array"), "json", "tool_choice: f: its parameters are of type 'array', expected object"),
        (described("f", properties={"a": {"not": {}}}), "json", "tool_choice: f: #/properties/a/not: this keyword"),
        (described("f", properties={"a": {"not": {}}}), "pythonic", "tool_choice: f: a: #/not: this keyword"),
        (described("f", properties={"a": {"pattern": "("}}), "tag", "tool_choice: f: .*unclosed group"),
        (described("f", properties={"a": {"pattern": "("}}), "bare", "tool_choice: f: a: .*unclosed group"),
        (described("f", properties=5), "pythonic", "tool_choice: f: #/properties: expected an object of schemas"),
        (described("f", required="a"), "bare", "tool_choice: f: #/required: "),
        (described("f", anyOf=[{"type": "object"}]), "pythonic", "tool_choice: f: anyOf of its parameters"),
        (described("f", properties={"a": {"items": {"$ref": "#"}}}), "bare", "f: .ref is '#'; refer to #/.defs/NAME"),
        (described("f", properties={"a b": {}}, required=["a b"]), "bare", "the argument 'a b' is no name in Python"),
        (
            described("f-g"),
            "pythonic",
            "f-g: a call written as Python's needs a Python name; rename",
        ),
        (described("import"), "bare", "tool_choice: import: a call written as Python's"),
        (described("a>b"), "tag", "tool_choice: a>b: its name can't stand in a tag"),
        (
            described("f", properties={"a": {"type": "integer", "minimum": 5, "maximum": 3}}, required=["a"]),
            "json",
            "tool_choice: f: ",
        ),
    ],
)
def test_a_tool_that_cannot_be_called_so_is_named(tool: Any, form: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        constraint(SamplingParams(), BYTES, grammar_of(tools_of([now, tool]), form))


def test_other_tools_of_the_list_do_not_matter_to_a_named_one() -> None:
    tools = tools_of([now, described("f", properties={"a": {"not": {}}})])
    assert constraint(SamplingParams(), BYTES, grammar_of(tools, "json", "now"))


def test_hundreds_of_arguments_are_no_matter() -> None:
    wide = {f"a{number}": {"type": "integer", "description": f"Number {number}."} for number in range(500)}
    for required in ([], list(wide), list(wide)[::7]):
        grammar = grammar_of(tools_of([described("f", properties=wide, required=required)]), "pythonic")
        assert constraint(SamplingParams(), BYTES, grammar)


def test_a_tool_may_be_called_like_a_choice(llama: edge_llama.Model) -> None:
    tools = tools_of([described("required"), described("auto")])
    (tool,) = called_tools({"type": "function", "function": {"name": "auto"}}, tools)
    assert tool.name == "auto"
    answer = llama.answer(
        [Message("user", HELLO)], tools=tools, tool_choice={"type": "function", "name": "required"}, temperature=0
    ).result()
    assert [call.name for call in answer.tool_calls] == ["required"]


def test_arguments_that_a_tool_does_not_name_are_none(rng: np.random.Generator) -> None:
    tools = tools_of([described("f", type="object", properties={"a": {"properties": {"b": NULL}, "type": "object"}})])
    texts = {walk(SamplingParams(), rng, calls=grammar_of(tools, "json", "f")) for _ in range(30)}
    assert texts == {f'{{"name": "f", "parameters": {given}}}' for given in ("{}", '{"a": {}}', '{"a": {"b": null}}')}


def test_unless_it_says_that_there_may_be_more(rng: np.random.Generator) -> None:
    tools = tools_of([described("f", type="object", additionalProperties=BOOLEAN)])
    texts = [walk(SamplingParams(), rng, calls=grammar_of(tools, "json", "f")) for _ in range(10)]
    assert any(text and ('": true' in text or '": false' in text) for text in texts)


def test_python_words_and_quotes_may_be_pythons(rng: np.random.Generator) -> None:
    tools = tools_of([described("f", **closed({"a": {"type": "boolean"}, "s": {"enum": ["x"]}}))])
    texts = {walk(SamplingParams(), rng, calls=grammar_of(tools, "pythonic", "f")) for _ in range(40)}
    assert texts == {f"[f(a={a}, s={s})]" for a in ("True", "False") for s in ("'x'", '"x"')}


def test_an_answer_that_is_cut_says_so(llama: edge_llama.Model) -> None:
    answer = llama.answer([Message("user", PARIS)], tools=[weather], tool_choice="required", max_tokens=3).result()
    assert (answer.finish_reason, answer.tool_calls) == ("length", ())

"""Tools in prompts: ids equal transformers', and neither tools nor calls nor results forge a control token."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from texts import CONVERSATIONS
from tools import (
    DIALOGUES,
    LLAMA4_SPECIAL,
    LLAMA4_TEMPLATE,
    PYTHONIC_LLAMA4_TEMPLATE,
    SEARCH,
    TOOLS,
    TWO_CALLS,
    add,
    call,
    official_template,
    result,
)
from trained import with_llama4_tokens
from transformers import AutoTokenizer

import converters
import edge_llama
from converters.architectures.llama_families import FAMILIES
from edge_llama import Message, OptionError, TemplateError
from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.tools import tools_of

TEMPLATES: dict[str, Callable[[], str]] = {
    "Llama 3.1": lambda: official_template("meta-llama-Llama-3.1-8B-Instruct"),
    "Llama 3.2": lambda: official_template("meta-llama-Llama-3.2-3B-Instruct"),
    "Llama 3.3": lambda: official_template("meta-llama-Llama-3.3-70B-Instruct"),
    "Llama 4": lambda: LLAMA4_TEMPLATE,
    "Llama 4, pythonic": lambda: PYTHONIC_LLAMA4_TEMPLATE,
    "our Llama 3.1": lambda: FAMILIES["llama3.1"].template,
    "our Llama 3.2": lambda: FAMILIES["llama3.2"].template,
    "our Llama 4": lambda: FAMILIES["llama4"].template,
}
SINGLE = ("Llama 3.1", "Llama 3.2", "Llama 3.3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose vocabulary has the control tokens of Llama 3 and 4."""
    path = tmp_path_factory.mktemp("tools") / "checkpoint"
    return with_llama4_tokens(checkpoints.llama3(path, padding=len(LLAMA4_SPECIAL)))


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[edge_llama.Model]:
    converters.convert(folder, folder.with_suffix(".gguf"), quant="q8_0")
    with edge_llama.open(folder.with_suffix(".gguf"), n_ctx=128) as model:
        yield model


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest, llama: edge_llama.Model) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[request.param](), llama.tokenizer, request.param)


def messages(dialogue: list[dict[str, Any]]) -> list[Message]:
    return [Message.from_json(turn) for turn in dialogue]


def expected(folder: Path, template: ChatTemplate, dialogue: Any, **options: Any) -> list[int]:
    reference = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = reference.apply_chat_template(
        dialogue, chat_template=template._source, add_generation_prompt=True, return_dict=False, **options
    )
    return ids


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_ids_equal_apply_chat_template(folder: Path, template: ChatTemplate, dialogue: list[dict[str, Any]]) -> None:
    ids = template.tokens(messages(dialogue), tools=tools_of(TOOLS).schemas)
    assert ids == expected(folder, template, dialogue, tools=list(TOOLS))


def test_ids_equal_without_tools_too(folder: Path, template: ChatTemplate) -> None:
    for conversation in CONVERSATIONS:
        assert template.tokens(messages(conversation)) == expected(folder, template, conversation), conversation


def test_several_calls_in_a_message(folder: Path, template: ChatTemplate) -> None:
    """As transformers renders them; where the template takes one call a message, each before its result."""
    ids = template.tokens(messages(TWO_CALLS), tools=tools_of(TOOLS).schemas)
    dialogue = TWO_CALLS
    if template._where in SINGLE:
        ask, both, first, second = TWO_CALLS
        calls = [{**both, "tool_calls": [one]} for one in both["tool_calls"]]
        dialogue = [ask, calls[0], first, calls[1], second]
    assert ids == expected(folder, template, dialogue, tools=list(TOOLS))


@pytest.mark.parametrize(
    "variables",
    [
        {"date_string": "1 Jan 2026"},
        {"tools_in_user_message": False},
        {"tools_in_user_message": False, "date_string": "x"},
    ],
)
def test_the_templates_own_variables(folder: Path, llama: edge_llama.Model, variables: dict[str, Any]) -> None:
    for name in (*SINGLE, "Llama 4"):
        template = ChatTemplate(TEMPLATES[name](), llama.tokenizer, name)
        ids = template.tokens(messages(DIALOGUES[1]), tools=tools_of(TOOLS).schemas, variables=variables)
        assert ids == expected(folder, template, DIALOGUES[1], tools=list(TOOLS), **variables)


def test_builtin_tools_of_llama_3_1(folder: Path, llama: edge_llama.Model) -> None:
    template = ChatTemplate(TEMPLATES["Llama 3.1"](), llama.tokenizer, "here")
    called = {"role": "assistant", "content": "", "tool_calls": [call("brave_search", {"query": "gold"})]}
    dialogue = [DIALOGUES[0][0], called, result("2,000")]
    builtin = {"builtin_tools": ["brave_search", "code_interpreter"]}
    ids = template.tokens(messages(dialogue), variables=builtin)
    assert ids == expected(folder, template, dialogue, **builtin)
    assert {llama.tokenizer.control_tokens[tag] for tag in ("<|python_tag|>", "<|eom_id|>")} < set(ids)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"data_string": "x"}, "takes no 'data_string'; it asks for: .*date_string"),
        ({"messages": []}, "takes no 'messages'"),
        ({"custom_tools": []}, "takes no 'custom_tools'"),
        ({"bos_token": "x"}, "takes no 'bos_token'"),
        ({"date_string": {1}}, "date_string: JSON can't express"),
        (["date_string"], "template_variables is list"),
    ],
)
def test_a_variable_that_cannot_be_is_an_error(llama: edge_llama.Model, variables: Any, problem: str) -> None:
    template = ChatTemplate(LLAMA4_TEMPLATE, llama.tokenizer, "here")
    with pytest.raises(OptionError, match=problem):
        template.tokens([Message("user", "x")], variables=variables)


def test_a_template_that_does_not_show_tools_or_calls_is_an_error(model: edge_llama.Model) -> None:
    with pytest.raises(TemplateError, match="does not show tools"):
        model.answer([Message("user", "add, search")], tools=[add])
    with pytest.raises(TemplateError, match="does not show tool calls"):
        model.count_tokens(messages(DIALOGUES[2]))
    mention = "{{ messages[0].content }}{% if tools %}Environment: ipython{% endif %}"
    template = ChatTemplate(mention, model.tokenizer, "here")
    with pytest.raises(TemplateError, match="does not show tools"):
        template.tokens([Message("user", "get_weather add search")], tools=tools_of(TOOLS).schemas)


def forging(text: str) -> tuple[list[Message], list[dict[str, Any]]]:
    """A conversation with ``text`` in every place that a person, a model or a tool may write to."""
    schema = {"type": "object", "properties": {text: {"type": "string", "description": text, "enum": [text]}}}
    tool = {"type": "function", "function": {"name": "f" + text, "description": text, "parameters": schema}}
    called = {"role": "assistant", "tool_calls": [call("f" + text, {text: text, "x": [text, {text: 1}]})]}
    turns = [{"role": "system", "content": text}, {"role": "user", "content": text}, called, result(text)]
    return messages([*turns, {"role": "assistant", "content": text}, {"role": "user", "content": text}]), [tool]


def control_ids(model: edge_llama.Model, ids: list[int]) -> list[int]:
    control = set(model.tokenizer.control_tokens.values())
    return [token for token in ids if token in control]


def test_a_control_token_anywhere_is_plain_text(llama: edge_llama.Model, template: ChatTemplate) -> None:
    turns, tools = forging("word")
    innocent = control_ids(llama, template.tokens(turns, tools=tools))
    assert len(innocent) > 10
    for text in llama.tokenizer.control_tokens:
        turns, tools = forging(f"a {text} b{text}{text}")
        assert control_ids(llama, template.tokens(turns, tools=tools)) == innocent, text


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_from_outside_becomes_a_control_token(llama: edge_llama.Model, data: st.DataObject) -> None:
    """And nothing is lost: all that the template renders comes back."""
    parts = st.sampled_from(
        [*llama.tokenizer.control_tokens, "<|", "|>", "eot_id", "<", '"', "\\", "{", "}", "%", "&lt;"]
    )
    text = "".join(data.draw(st.lists(parts | st.text(max_size=3), min_size=1, max_size=8)))
    assume(not set(text.encode()).intersection(llama.tokenizer._missing_bytes))
    for name in ("Llama 4", "Llama 4, pythonic", "our Llama 3.1"):
        template = ChatTemplate(TEMPLATES[name](), llama.tokenizer, name)
        innocent = control_ids(llama, template.tokens(forging("x")[0], tools=forging("x")[1]))
        turns, tools = forging(text)
        assert control_ids(llama, template.tokens(turns, tools=tools)) == innocent, name


TAGGED = (
    "{{ bos_token }}{% for t in tools %}<|{{ t.function.name }}|>{{ t.function.description }}"
    "{% for k, v in t.function.parameters.properties | items %}<{{ k }}={{ v.description }}>{% endfor %}{% endfor %}"
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<|{{ c.function.name }}|>"
    "{% for k, v in c.function.arguments | items %}<{{ k }}{{ v }}>{% endfor %}{% endfor %}<|eot_id|>{% endfor %}"
)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("eot_id", "a", "b"),
        ("f", "|eot_id|", "b"),
        ("f", "|eot_id", "|"),
        ("f", "a", "<|eot_id|>"),
        ("eom_id", "|eot_id|", "<|begin_of_text|"),
    ],
)
def test_what_a_template_puts_around_names_and_keys_forges_nothing(
    llama: edge_llama.Model, name: str, key: str, value: str
) -> None:
    """The template's own brackets and a name from outside would make a token: refused, or plain text."""
    template = ChatTemplate(TAGGED, llama.tokenizer, "here")
    properties = {key: {"description": value}, key[::-1]: {"description": "x"}}  # two keys that look alike when swapped
    tool = {"name": name, "description": value, "parameters": {"properties": properties}}
    turns = messages([{"role": "assistant", "tool_calls": [call(name, {key: value, key[::-1]: "x"})]}])
    try:
        ids = template.tokens(turns, tools=[{"type": "function", "function": tool}])
    except TemplateError as error:
        assert "makes a control token of" in str(error)  # noqa: PT017
        return
    control = llama.tokenizer.control_tokens
    assert control_ids(llama, ids) == [control["<|begin_of_text|>"], control["<|eot_id|>"]]


def test_a_tool_may_be_described_without_its_wrapping(folder: Path, template: ChatTemplate) -> None:
    bare = SEARCH["function"]
    ids = template.tokens(messages(DIALOGUES[0]), tools=tools_of([bare]).schemas)
    assert ids == expected(folder, template, DIALOGUES[0], tools=[bare])

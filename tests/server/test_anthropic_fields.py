"""What requests to /v1/messages may say: nothing of Anthropic's own interface lacks its treatment."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from anthropic.types import message_content_param, message_count_tokens_params, message_create_params, tool_union_param
from anthropic.types import tool_result_block_param as result_param
from anthropic.types.beta import beta_content_block_param, beta_system_message_param, beta_tool_union_param
from anthropic.types.beta import beta_tool_result_block_param as beta_result_param
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_create
from literals import words_in
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import get_type_hints, is_typeddict

from edge_llama.server.anthropic import blocks
from edge_llama.server.anthropic.fields import (
    AdaptiveThinking,
    AnyChoice,
    AutoChoice,
    CountFields,
    DisabledThinking,
    EnabledThinking,
    MessageFields,
    OutputConfig,
    Tool,
    ToolChoice,
    Turn,
)
from edge_llama.server.fields import Fields, rows

HEADERS = {"betas", "user_profile_id", "workspace_id"}
"""What the client sends as such."""
TURN = {"role": "user", "content": "Hello!"}
ASKED: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [TURN]}


def keys_of(params: Any) -> set[str]:
    """Of a TypedDict, or the fields of a model of answers, which may be sent back."""
    if is_typeddict(params):
        return set(params.__required_keys__ | params.__optional_keys__)
    assert issubclass(params, BaseModel)
    return set(params.model_fields)


def names_of(fields: type[Fields]) -> set[str]:
    return {field.alias or name for name, field in fields.model_fields.items()}


def kinds_in(annotation: Any) -> Iterator[tuple[str, Any]]:
    """The objects in a type, each with the value of its ``type``."""
    if is_typeddict(annotation):
        for kind in words_in(get_type_hints(annotation).get("type")):
            yield kind, annotation
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for kind in words_in(annotation.model_fields["type"].annotation):
            yield kind, annotation
    for each in get_args(annotation):
        yield from kinds_in(each)


def fields_by_kind(annotation: Any) -> dict[str, type[Fields]]:
    """Our own kinds of objects, by their ``type``."""
    if isinstance(annotation, type) and issubclass(annotation, Fields):
        return dict.fromkeys(get_args(annotation.model_fields["type"].annotation), annotation)
    found: dict[str, type[Fields]] = {}
    for each in get_args(annotation):
        found |= fields_by_kind(each)
    return found


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (message_create_params.MessageCreateParamsNonStreaming, MessageFields),
        (beta_create.MessageCreateParamsNonStreaming, MessageFields),
        (message_count_tokens_params.MessageCountTokensParams, CountFields),
        (beta_count.MessageCountTokensParams, CountFields),
    ],
)
def test_every_parameter_has_its_treatment(theirs: Any, ours: type[Fields]) -> None:
    assert keys_of(theirs) - HEADERS <= names_of(ours)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (message_content_param.MessageContentParam, blocks.Content),
        (beta_content_block_param.BetaContentBlockParam, blocks.Content),
        (result_param.Content, blocks.ResultContent),
        (beta_result_param.Content, blocks.ResultContent),
    ],
)
def test_every_kind_of_block_has_its_treatment(theirs: Any, ours: Any) -> None:
    known = fields_by_kind(ours)
    found = dict(kinds_in(theirs))
    assert len(found) > 5
    assert found.keys() <= known.keys()
    refused = (blocks.ServerToolBlock, blocks.BrowserStateBlock)
    for kind, params in found.items():
        if known[kind] not in refused:
            assert keys_of(params) <= names_of(known[kind]), kind


@pytest.mark.parametrize("theirs", [tool_union_param.ToolUnionParam, beta_tool_union_param.BetaToolUnionParam])
def test_every_tool_but_the_clients_own_is_refused_by_name(theirs: Any) -> None:
    kinds = dict(kinds_in(theirs))
    assert keys_of(kinds.pop("custom")) <= names_of(Tool)
    assert len(kinds) > 15
    for kind in kinds:
        with pytest.raises(ValidationError, match=f"type '{kind}' is not supported: this server runs no tools"):
            MessageFields.model_validate({**ASKED, "tools": [{"type": kind, "name": "x", "max_uses": 3}]})


def test_nested_parameters_have_their_treatment() -> None:
    hints = get_type_hints(beta_create.MessageCreateParamsBase)
    ours: dict[str, type[Fields]] = {
        "auto": AutoChoice,
        "any": AnyChoice,
        "tool": ToolChoice,
        "enabled": EnabledThinking,
        "disabled": DisabledThinking,
        "adaptive": AdaptiveThinking,
        "between_tools": AdaptiveThinking,
    }
    theirs = dict([*kinds_in(hints["tool_choice"]), *kinds_in(hints["thinking"])])
    assert theirs.keys() == {*ours, "none"}
    assert all(keys_of(theirs[kind]) <= names_of(fields) for kind, fields in ours.items())
    assert keys_of(hints["output_config"]) <= names_of(OutputConfig)
    assert keys_of(beta_system_message_param.BetaSystemMessageParam) <= names_of(Turn)


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"max_tokens": "5"}, ("max_tokens",)),
        ({"max_tokens": -1}, ("max_tokens",)),
        ({"temperature": 3.0}, ("temperature",)),
        ({"temperature": float("nan")}, ("temperature",)),
        ({"messages": []}, ("messages",)),
        ({"messages": [{**TURN, "role": "tool"}]}, ("messages", 0, "role")),
        ({"messages": [{**TURN, "content": [{"type": "text"}]}]}, ("messages", 0, "content", 0, "text", "text")),
        ({"system": 5}, ("system",)),
        ({"tools": [{"name": "x"}]}, ("tools", 0, "input_schema")),
        ({"thinking": {"type": "enabled"}}, ("thinking", "enabled", "budget_tokens")),
        ({"tool_choice": {"type": "some"}}, ("tool_choice",)),
        ({"no_such_field": 1}, ("no_such_field",)),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], place: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        MessageFields.model_validate({**ASKED, **wrong})
    assert [error["loc"] for error in refused.value.errors()] == [place]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (
            {"type": "image", "source": {"type": "url", "url": "https://x"}},
            "type 'url' is not supported: nothing",
        ),
        (
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
            "type 'file' is not supported: nothing",
        ),
        ({"type": "document", "source": {"type": "base64", "data": ""}}, "PDF is not read"),
        ({"type": "server_tool_use", "id": "x", "name": "web_search"}, "type 'server_tool_use' is not supported"),
    ],
)
def test_blocks_that_can_not_be_had_say_why(block: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        MessageFields.model_validate({**ASKED, "messages": [{"role": "user", "content": [block]}]})


def test_what_has_no_effect_is_named_once() -> None:
    cached = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    turns = [{"role": "user", "content": [cached, cached]}]
    fields = MessageFields.model_validate(
        {**ASKED, "messages": turns, "metadata": {"user_id": "u"}, "system": [cached], "container": None}
    )
    assert sorted(fields.ignored()) == ["cache_control", "metadata"]


def test_the_table_names_kinds_of_blocks() -> None:
    table = {row.name: row.treatment for row in rows(MessageFields)}
    assert table["max_tokens"] == "honoured"
    assert table["messages.content[image].source[base64].data"] == "honoured"
    assert table["messages.content[text].cache_control"] == "without effect"
    assert table["messages.content[document].source[base64].type"] == "refused"
    assert table["thread"] == "refused"


def test_the_schema_that_is_told_takes_text_and_blocks() -> None:
    schema = TypeAdapter(MessageFields).json_schema()
    content = schema["$defs"]["Turn"]["properties"]["content"]
    assert {option.get("type") for option in content["anyOf"]} == {"string", "array", "null"}

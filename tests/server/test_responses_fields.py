"""What requests to /v1/responses may say: nothing of OpenAI's own interface lacks its treatment."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from literals import words_in
from openai.types import responses as theirs
from openai.types.responses import (
    easy_input_message_param,
    input_token_count_params,
    response_create_params,
    response_input_item_param,
    tool_param,
)
from openai.types.responses.tool_choice_allowed_param import ToolChoiceAllowedParam
from openai.types.shared_params.reasoning import Reasoning
from pydantic import ValidationError
from typing_extensions import get_type_hints, is_typeddict

from edge_llama.server.fields import Fields, rows
from edge_llama.server.openai import responses_fields, responses_items
from edge_llama.server.openai.responses_fields import InputTokenFields, ResponseFields
from edge_llama.server.openai.responses_items import BuiltInItem, CallItem, CallOutputItem, MessageItem, ReasoningItem

ASKED: dict[str, Any] = {"model": "m", "input": "Hello!"}
ITEMS: dict[str, type[Fields]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": CallOutputItem,
    "reasoning": ReasoningItem,
    "item_reference": responses_items.ItemReference,
}


def keys_of(params: Any) -> set[str]:
    return set(params.__required_keys__ | params.__optional_keys__)


def names_of(fields: type[Fields]) -> set[str]:
    return {field.alias or name for name, field in fields.model_fields.items()}


def kinds_in(annotation: Any) -> Iterator[tuple[str, Any]]:
    """The objects in a type, each with the value of its ``type``."""
    if is_typeddict(annotation):
        hints = get_type_hints(annotation)
        for kind in words_in(hints["type"]) if "type" in hints else ():
            yield kind, annotation
        return
    for each in get_args(annotation):
        yield from kinds_in(each)


def literals_of(fields: type[Fields]) -> set[str]:
    return set(words_in(fields.model_fields["type"].annotation))


def test_every_parameter_has_its_treatment() -> None:
    for params in (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ):
        assert keys_of(params) <= names_of(ResponseFields)
    assert keys_of(input_token_count_params.InputTokenCountParams) == names_of(InputTokenFields)


def test_every_kind_of_item_has_its_treatment() -> None:
    found = list(kinds_in(response_input_item_param.ResponseInputItemParam))
    assert len(found) > 25
    for kind, params in found:
        if kind in ITEMS:
            assert keys_of(params) <= names_of(ITEMS[kind]), kind
        else:
            assert kind in literals_of(BuiltInItem)
            with pytest.raises(ValidationError, match=f"type '{kind}' is not supported"):
                ResponseFields.model_validate({"input": [{"type": kind, "id": "x"}]})
    assert keys_of(easy_input_message_param.EasyInputMessageParam) <= names_of(MessageItem)


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        (theirs.ResponseInputTextParam, responses_items.InputText),
        (theirs.ResponseInputImageParam, responses_items.InputImage),
        (theirs.ResponseOutputTextParam, responses_items.OutputText),
        (theirs.ResponseOutputRefusalParam, responses_items.OutputRefusal),
        (theirs.FunctionToolParam, responses_fields.FunctionTool),
        (theirs.NamespaceToolParam, responses_fields.NamespaceTool),
        (theirs.ResponseTextConfigParam, responses_fields.TextOptions),
        (theirs.ResponseFormatTextJSONSchemaConfigParam, responses_fields.SchemaFormat),
        (ToolChoiceAllowedParam, responses_fields.AllowedTools),
        (Reasoning, responses_fields.ReasoningOptions),
        (response_create_params.StreamOptions, responses_fields.StreamedWith),
    ],
)
def test_nested_parameters_have_their_treatment(params: Any, fields: type[Fields]) -> None:
    assert keys_of(params) <= names_of(fields)


def test_every_built_in_tool_is_refused_by_name_but_those_that_agents_always_send() -> None:
    kinds = {kind for kind, _ in kinds_in(tool_param.ToolParam)} - {"function", "namespace"}
    unused = literals_of(responses_fields.UnusedTool)
    assert kinds <= literals_of(responses_fields.BuiltInTool) | unused
    for kind in kinds - unused:
        with pytest.raises(ValidationError, match=f"type '{kind}' is not supported: this server runs no tools"):
            ResponseFields.model_validate({**ASKED, "tools": [{"type": kind, "name": "x"}]})
    given = [{"type": "web_search", "external_web_access": False}, {"type": "image_generation", "output_format": "png"}]
    assert ResponseFields.model_validate({**ASKED, "tools": given}).ignored() == ["web_search", "image_generation"]


def test_every_word_for_what_is_included_is_known() -> None:
    assert set(get_args(theirs.ResponseIncludable)) == set(get_args(responses_fields.Included))


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"input": 5}, ("input",)),
        ({"input": [{"role": "user"}]}, ("input", "<list>", 0, "message", "content")),
        ({"input": [{"type": "message", "role": "tool", "content": ""}]}, ("input", "<list>", 0, "message", "role")),
        ({"max_output_tokens": 0}, ("max_output_tokens",)),
        ({"metadata": {"a": 1}}, ("metadata", "a")),
        ({"metadata": {str(number): "" for number in range(17)}}, ("metadata",)),
        ({"truncation": "auto"}, ()),
        ({"background": True}, ()),
        ({"conversation": "conv_1"}, ()),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, ("text", "format", "type=json_schema", "schema")),
        ({"tool_choice": {"type": "mcp"}}, ("tool_choice", "<dict>")),
        ({"tools": [{"type": "function"}]}, ("tools", 0, "function", "name")),
        ({"no_such_field": 1}, ("no_such_field",)),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], place: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        ResponseFields.model_validate({**ASKED, **wrong})
    assert [error["loc"] for error in refused.value.errors()] == [place]


def test_values_that_say_what_is_done_anyway_are_taken() -> None:
    ResponseFields.model_validate({**ASKED, "truncation": "disabled", "background": False, "conversation": None})


def test_the_table_names_kinds_of_items() -> None:
    table = {row.name: row.treatment for row in rows(ResponseFields)}
    assert table["input[message].content[input_text].text"] == "honoured"
    assert table["input[function_call].arguments"] == "honoured"
    assert table["background"] == "refused"
    assert table["user"] == "without effect"

"""A response's items become the messages that chat templates know, and its tools what they are told of."""

import base64
import io
from typing import Any

import PIL.Image
import pytest

from edge_llama.media.images import Image
from edge_llama.prompts.messages import Message, ToolCall
from edge_llama.server.failures import ApiError
from edge_llama.server.openai.responses_fields import ResponseFields
from edge_llama.server.openai.responses_messages import messages_of, namespaces_of, read_items, tools_of
from edge_llama.server.store import ResponseStore, Stored

_FILE = io.BytesIO()
PIL.Image.new("RGB", (2, 1)).save(_FILE, "PNG")
PNG = _FILE.getvalue()
PICTURE = {"type": "input_image", "image_url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'}
NAME = f"resp_{1:032x}"


@pytest.fixture
def store() -> ResponseStore:
    return ResponseStore(None, max_number=5, max_bytes=1 << 20)


def items(given: Any, store: ResponseStore, **others: Any) -> list[dict[str, Any]]:
    return read_items(ResponseFields.model_validate({"input": given, **others}), store)


def messages(given: Any, store: ResponseStore, *, instructions: str | None = None, images: int = 4) -> list[Message]:
    return messages_of(instructions, items(given, store), images)


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_text_alone_is_what_the_user_says(store: ResponseStore) -> None:
    assert messages("Hello!", store) == [Message("user", "Hello!")]


def test_instructions_and_what_developers_say_next_are_one_system_message(store: ResponseStore) -> None:
    given = [said("developer", "Be polite."), said("user", "Hello!"), said("system", "Be quick.")]
    assert messages(given, store, instructions="Be brief.") == [
        Message("system", "Be brief.\n\nBe polite."),
        Message("user", "Hello!"),
        Message("system", "Be quick."),
    ]


def test_a_picture_of_a_developers_stays_beside_the_instructions(store: ResponseStore) -> None:
    given = [said("developer", [{"type": "input_text", "text": "Like this:"}, PICTURE]), said("user", "Hello!")]
    assert messages(given, store, instructions="Be kind.") == [
        Message("system", ["Be kind.\n\nLike this:", Image.open(PNG)]),
        Message("user", "Hello!"),
    ]


def test_the_models_items_in_a_row_are_one_answer(store: ResponseStore) -> None:
    given = [
        said("user", "Rome?"),
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look", "annotations": []}],
        },
        CALL,
        {**CALL, "call_id": "call_2", "arguments": "no JSON", "namespace": "mcp__sky"},
        said("assistant", [{"type": "refusal", "refusal": " it up."}]),
        {"type": "function_call_output", "call_id": "call_1", "output": "Rain."},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "?"}, PICTURE]},
    ]
    calls = [
        ToolCall("weather", {"city": "Rome"}, "call_1"),
        ToolCall("mcp__sky__weather", {"invalid_json": "no JSON"}, "call_2"),
    ]
    assert messages(given, store) == [
        Message("user", "Rome?"),
        Message("assistant", "I look it up.", calls, thinking="Hm."),
        Message("tool", "Rain.", tool_call_id="call_1", name="weather"),
        Message("tool", ["?", Image.open(PNG)], tool_call_id="call_2", name="mcp__sky__weather"),
    ]


def test_images_are_counted_before_any_is_decoded(store: ResponseStore) -> None:
    broken = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    with pytest.raises(ApiError, match="2 images, at most 1"):
        messages([said("user", [broken, broken])], store, images=1)
    with pytest.raises(ApiError, match="no image that can be read"):
        messages([said("user", [broken])], store)
    with pytest.raises(ApiError, match="nothing is fetched"):
        messages([said("user", [{"type": "input_image", "image_url": "https://x/y.png"}])], store)


def test_items_are_kept_with_ids_and_texts_as_parts(store: ResponseStore) -> None:
    first, second = items([said("user", "Hello!"), {**CALL, "id": "fc_7"}], store)
    assert first.pop("id").startswith("msg_")
    text = {"type": "input_text", "text": "Hello!"}
    assert first == {"type": "message", "role": "user", "content": [text], "status": "completed"}
    assert second == {**CALL, "id": "fc_7", "status": "completed"}
    assert items([first], store)[0]["content"] == [text]


def test_an_earlier_conversation_is_taken_up(store: ResponseStore) -> None:
    answer = {
        "id": "msg_2",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}],
    }
    store.put(Stored({"id": NAME, "output": [answer]}, items("Hello!", store)))
    read = items("Who are you?", store, previous_response_id=NAME)
    assert messages_of(None, read, 4) == [
        Message("user", "Hello!"),
        Message("assistant", "Hi."),
        Message("user", "Who are you?"),
    ]


@pytest.mark.parametrize("name", ["resp_0", "../x", f"resp_{2:032x}"])
def test_an_earlier_response_that_is_not_there_is_named(store: ResponseStore, name: str) -> None:
    with pytest.raises(ApiError, match="not found") as raised:
        items("Hello!", store, previous_response_id=name)
    assert (raised.value.status, raised.value.code, raised.value.param) == (
        400,
        "previous_response_not_found",
        "previous_response_id",
    )


def test_what_a_changed_file_has_is_checked_again() -> None:
    with pytest.raises(ApiError, match="the earlier response is damaged"):
        messages_of(None, [{"type": "message", "role": "wizard", "content": "x"}], 4)


def test_there_is_something_to_answer(store: ResponseStore) -> None:
    with pytest.raises(ApiError, match="there is nothing to answer"):
        messages([], store)
    assert messages([], store, instructions="Say hello.") == [Message("system", "Say hello.")]


def test_functions_in_namespaces_have_both_names() -> None:
    space = {
        "type": "namespace",
        "name": "mcp__sky__",
        "description": "",
        "tools": [{"type": "function", "name": "rain"}],
    }
    plain = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "description": "Tells."}
    fields = ResponseFields.model_validate({"input": "x", "tools": [plain, space, {"type": "web_search"}]})
    assert [tool["function"] for tool in tools_of(fields)] == [
        {"name": "weather", "description": "Tells.", "parameters": {"type": "object"}},
        {"name": "mcp__sky__rain", "description": "", "parameters": {"type": "object", "properties": {}}},
    ]
    assert namespaces_of(fields) == {"mcp__sky__rain": ("mcp__sky__", "rain")}


def test_a_choice_among_some_tools_leaves_out_the_others() -> None:
    tools = [{"type": "function", "name": name} for name in ("a", "b")]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "b"}]}
    fields = ResponseFields.model_validate({"input": "x", "tools": tools, "tool_choice": choice})
    assert [tool["function"]["name"] for tool in tools_of(fields)] == ["b"]
    with pytest.raises(ApiError, match="allows b, which is none"):
        tools_of(ResponseFields.model_validate({"input": "x", "tools": tools[:1], "tool_choice": choice}))

"""A conversation in Anthropic's blocks becomes the messages that chat templates know."""

import base64
import io
from typing import Any

import PIL.Image
import pytest

from edge_llama.errors import InputError
from edge_llama.media.images import Image
from edge_llama.prompts.messages import Message, ToolCall
from edge_llama.server.anthropic.conversation import has_billing_line, messages_of
from edge_llama.server.anthropic.fields import CountFields
from edge_llama.server.failures import ApiError

_FILE = io.BytesIO()
PIL.Image.new("RGB", (2, 1)).save(_FILE, "PNG")
PNG = _FILE.getvalue()
PICTURE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()},
}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
ASK = {"role": "user", "content": "Hello!"}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def messages(*turns: dict[str, Any], max_images: int = 4, **others: Any) -> list[Message]:
    return messages_of(CountFields.model_validate({"model": "m", "messages": list(turns), **others}), max_images)


def test_the_system_prompt_comes_first_its_blocks_line_by_line() -> None:
    assert messages(ASK, system="Be brief.") == [Message("system", "Be brief."), Message("user", "Hello!")]
    blocks = [text("Be brief."), text("Be polite.")]
    assert messages(ASK, system=blocks)[0] == Message("system", "Be brief.\nBe polite.")


def test_a_line_for_billing_is_no_text_for_the_model() -> None:
    billed = "x-anthropic-billing-header: cc_version=2.1.38; cc_entrypoint=cli; cch=4873d;"
    for system in ([text(billed), text("Be brief.")], [text(f"{billed}\nBe brief.")], f"{billed}\nBe brief."):
        assert messages(ASK, system=system)[0] == Message("system", "Be brief.")
        assert has_billing_line(CountFields.model_validate({"model": "m", "messages": [ASK], "system": system}))
    kept = f"Be brief.\n{billed}"
    assert messages(ASK, system=kept)[0] == Message("system", kept)
    assert messages({"role": "user", "content": billed}) == [Message("user", billed)]


def test_turns_of_one_role_in_a_row_are_one() -> None:
    second = {"role": "user", "content": [text("Who"), text("are you?")]}
    assert messages(ASK, second) == [Message("user", "Hello!\nWho\nare you?")]


def test_the_system_may_speak_within_the_conversation() -> None:
    later = {"role": "system", "content": [text("Be polite.")], "clear_at": "never"}
    said = messages(ASK, {"role": "assistant", "content": "Hi."}, later, ASK)
    assert [message.role for message in said] == ["user", "assistant", "system", "user"]
    assert messages(ASK, {"role": "system", "output_config": {"effort": "low"}}) == [Message("user", "Hello!")]
    assert messages({"role": "system", "content": "Be polite."}, ASK, system="Be brief.") == [
        Message("system", "Be brief.\nBe polite."),
        Message("user", "Hello!"),
    ]


def test_images_stay_in_their_places() -> None:
    (message,) = messages({"role": "user", "content": [text("What is"), PICTURE, text("this?")]})
    assert message.parts == ("What is", Image.open(PNG), "this?")


def test_an_answer_has_its_thoughts_text_and_calls() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "redacted_thinking", "data": "abc"},
        text("I look"),
        CALL,
        text(" it up."),
    ]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain."}]}
    said = messages(ASK, {"role": "assistant", "content": blocks}, result)
    call = ToolCall("weather", {"city": "Rome"}, "toolu_1")
    assert said[1] == Message("assistant", "I look it up.", [call], thinking="Hm.")
    assert said[2] == Message("tool", "Rain.", tool_call_id="toolu_1", name="weather")


def test_results_come_first_and_text_beside_them_after() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": [text("Rain"), PICTURE, text("and wind.")]},
        text("Well?"),
        {"type": "tool_result", "tool_use_id": "b", "is_error": True, "content": "No such city."},
        {"type": "tool_result", "tool_use_id": "c"},
    ]
    calls = [{**CALL, "id": name} for name in "ab"]
    said = messages(ASK, {"role": "assistant", "content": calls}, {"role": "user", "content": results})[2:]
    assert [message.role for message in said] == ["tool", "tool", "tool", "user"]
    assert said[0].parts == ("Rain", Image.open(PNG), "and wind.")
    assert [(message.content, message.name) for message in said[1:]] == [
        ("Error: No such city.", "weather"),
        ("", None),
        ("Well?", None),
    ]


@pytest.mark.parametrize(
    ("role", "block"),
    [
        ("assistant", {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain."}),
        ("user", CALL),
        ("user", {"type": "thinking", "thinking": "Hm.", "signature": "x"}),
        ("user", {"type": "redacted_thinking", "data": "abc"}),
        ("system", CALL),
    ],
)
def test_a_block_in_anothers_turn_is_an_error_that_names_its_place(role: str, block: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        messages(ASK, {"role": role, "content": [text("a"), block]}, ASK)
    assert caught.value.status == 400
    assert caught.value.message == f"messages.1.content.1: {block['type']} can't stand in the {role}'s turn"


def test_deferred_tools_are_described_where_they_are_named() -> None:
    tools = [
        {"name": "weather", "input_schema": {}},
        {"name": "rain", "description": "Rain.", "input_schema": {"type": "object"}, "defer_loading": True},
    ]
    found = [{"type": "tool_reference", "tool_name": name} for name in ("rain", "weather", "none")]
    result = {"type": "tool_result", "tool_use_id": "a", "content": found}
    changes = [
        {"type": kind, "tool": {"type": "tool_reference", "name": "rain"}} for kind in ("tool_addition", "tool_removal")
    ]
    said = messages({"role": "user", "content": [result]}, {"role": "system", "content": changes}, tools=tools)
    described = (
        '<functions>\n<function>{"description": "Rain.", "name": "rain", "parameters": {"type": "object"}}</function>\n'
        "</functions>"
    )
    assert said == [
        Message("tool", f"{described}\nweather\nnone", tool_call_id="a"),
        Message(
            "system",
            f"A tool may be called from here on:\n{described}\nA tool may not be called any more: rain",
        ),
    ]


def test_documents_and_search_results_are_text() -> None:
    document = {"type": "document", "title": "Log", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}
    parts = {"type": "document", "source": {"type": "content", "content": [text("b"), PICTURE]}}
    search = {"type": "search_result", "source": "notes", "title": "Note", "content": [text("c")]}
    (message,) = messages({"role": "user", "content": [document, parts, search]})
    assert message.parts == ("Log\na\nb", Image.open(PNG), "Note\nnotes\nc")


def test_a_prefill_is_refused() -> None:
    with pytest.raises(InputError, match="ends with the assistant's turn"):
        messages(ASK, {"role": "assistant", "content": "The answer is ("})


def test_images_are_counted_before_any_is_decoded() -> None:
    broken = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [broken, broken]}
    with pytest.raises(ApiError, match="3 images, at most 2"):
        messages({"role": "user", "content": [result, broken]}, max_images=2)
    with pytest.raises(InputError, match="no image that can be read"):
        messages({"role": "user", "content": [broken]})

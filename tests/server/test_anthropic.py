"""Anthropic's own client against a real server."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, MessageParam, ToolParam
from serving import Served
from talk import ANSWER, QUESTION, STORY, WEATHER, talking

from edge_llama.server.settings import Limits, ServerSettings

ASK: MessageParam = {"role": "user", "content": QUESTION}
TOOL: ToolParam = {"name": "weather", "description": "Tells the weather.", "input_schema": WEATHER}
PNG = base64.b64encode(
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde\0\0\0\x0cIDATx\x9cc\xf8\xcf\xc0\0\0\3\1\1\0"
    b"\xc9\xfe\x92\xef\0\0\0\0IEND\xaeB`\x82"
).decode()
CLIENTS: dict[str, anthropic.Anthropic] = {}
EXACT: dict[str, Any] = {"temperature": 0.0}
"""What the client has no parameter for any more."""


@pytest.fixture(scope="module", autouse=True)
def clients() -> Iterator[None]:
    """Those of all servers, closed in the end."""
    yield
    while CLIENTS:
        CLIENTS.popitem()[1].close()


def client(served: Served) -> anthropic.Anthropic:
    if served.url not in CLIENTS:
        CLIENTS[served.url] = anthropic.Anthropic(base_url=served.url, api_key="any", max_retries=0)
    return CLIENTS[served.url]


def ask(served: Served, *messages: MessageParam, **options: Any) -> Message:
    given = {"max_tokens": 40, "extra_body": EXACT, **options}
    answer: Message = client(served).messages.create(model=served.name, messages=messages or (ASK,), **given)
    return answer


def total(message: Message) -> int:
    usage = message.usage
    return usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)


def test_an_answer(talk: Served) -> None:
    message = ask(talk)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].type == "text"
    assert message.content[0].text == ANSWER
    assert (message.role, message.model, message.stop_reason, message.stop_sequence) == (
        "assistant",
        talk.name,
        "end_turn",
        None,
    )
    assert message.id.startswith("msg_")
    assert message.usage.output_tokens > 0


def test_a_stream_is_the_same_answer_piece_by_piece(talk: Served) -> None:
    with client(talk).messages.stream(model=talk.name, max_tokens=40, messages=[ASK], extra_body=EXACT) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    whole = ask(talk)
    assert streamed.content[0].to_dict() == whole.content[0].to_dict()
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert total(streamed) == total(whole)
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds.count("content_block_delta") > 3
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_counted_tokens_are_those_of_the_request(talk: Served) -> None:
    given: dict[str, Any] = {
        "system": [{"type": "text", "text": "Be brief."}],
        "tools": [TOOL],
        "messages": [ASK, {"role": "assistant", "content": "Hm."}, ASK],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    counted = client(talk).messages.count_tokens(model=talk.name, **given)
    message = client(talk).messages.create(model=talk.name, max_tokens=1, **given)
    assert counted.input_tokens == total(message) > 20


def test_tokens_from_the_cache_are_counted_apart(talk: Served) -> None:
    first = ask(talk, {"role": "user", "content": "My dog is called Bruno. Hello!"})
    usage = ask(talk, {"role": "user", "content": "My dog is called Bruno. Hello!"}).usage
    assert total(first) == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert usage.input_tokens <= 1  # the last token's logits may have to be had again
    assert usage.cache_creation_input_tokens == 0
    told = usage.to_dict()["edge_llama"]
    assert isinstance(told, dict)
    assert told["cached_tokens"] == usage.cache_read_input_tokens
    assert told["seconds"] > 0


def test_where_the_cache_was_left_is_told(talk: Served) -> None:
    ask(talk, {"role": "user", "content": "My dog is called Bruno."})
    told: Any = ask(talk, {"role": "user", "content": "My dog is called Rex."}).usage.to_dict()["edge_llama"]
    assert told["diverged"]["position"] == told["cached_tokens"]
    assert "Rex" in told["diverged"]["wanted"]
    assert "Bruno" in told["diverged"]["cached"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_tool_is_called_and_its_result_read(talk: Served, choice: Any) -> None:
    message = ask(talk, tools=[TOOL], tool_choice={**choice, "disable_parallel_tool_use": True}, max_tokens=200)
    assert message.stop_reason == "tool_use"
    (call,) = message.content
    assert call.type == "tool_use"
    assert call.name == "weather"
    assert call.input in ({"city": "Tokyo"}, {"city": "Rome"})
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Rain.", "is_error": False}],
    }
    told = ask(talk, ASK, {"role": "assistant", "content": message.content}, result, tools=[TOOL])
    assert total(told) > total(message)


def test_a_call_is_streamed_as_json(talk: Served) -> None:
    with client(talk).messages.stream(
        model=talk.name, max_tokens=200, messages=[ASK], tools=[TOOL], tool_choice={"type": "tool", "name": "weather"}
    ) as stream:
        deltas = [event.delta.type for event in stream if event.type == "content_block_delta"]
        message = stream.get_final_message()
    assert deltas == ["input_json_delta"]
    assert message.content[0].type == "tool_use"
    assert message.content[0].input in ({"city": "Tokyo"}, {"city": "Rome"})
    assert message.stop_reason == "tool_use"


def test_a_tool_that_is_found_later_leaves_the_cache_whole(talk: Served) -> None:
    """As Claude Code's own search of tools has it: the list grows, the prompt's beginning does not change."""
    rain: Any = {**TOOL, "name": "rain", "defer_loading": True}
    search: Any = {"name": "search", "input_schema": {"type": "object"}}
    first = ask(talk, tools=[search, TOOL], max_tokens=1)
    turns: list[Any] = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "search", "input": {}}]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "tool_reference", "tool_name": "rain"}],
                }
            ],
        },
    ]
    choice: Any = {"type": "tool", "name": "rain"}
    second = ask(talk, ASK, *turns, tools=[rain, search, TOOL], tool_choice=choice, max_tokens=200)
    assert second.usage.cache_read_input_tokens is not None
    assert second.usage.cache_read_input_tokens >= total(first)
    assert second.content[0].to_dict()["name"] == "rain"


def test_without_a_choice_tools_are_told_and_text_is_answered(talk: Served) -> None:
    message = ask(talk, tools=[TOOL], tool_choice={"type": "none"})
    assert {block.type for block in message.content} <= {"text"}
    assert total(message) > total(ask(talk))


def test_why_an_answer_ended(talk: Served) -> None:
    cut = ask(talk, max_tokens=2)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    stopped = ask(talk, stop_sequences=["Japan", "never"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Japan")
    assert stopped.content[0].to_dict()["text"] == "The capital of "
    story: MessageParam = {"role": "user", "content": STORY}
    full = ask(talk, story, max_tokens=5000)
    assert full.stop_reason == "model_context_window_exceeded"
    assert total(full) + full.usage.output_tokens >= 1024


def test_a_prompt_alone_is_read(talk: Served) -> None:
    question: MessageParam = {"role": "user", "content": "And of Egypt?"}
    read = ask(talk, question, max_tokens=0)
    assert (read.content, read.stop_reason, read.usage.output_tokens) == ([], "max_tokens", 0)
    again = ask(talk, question)
    assert again.usage.input_tokens <= 1  # the last token's logits may have to be had again


def test_json_by_a_schema(talk: Served) -> None:
    message = ask(talk, output_config={"format": {"type": "json_schema", "schema": WEATHER}}, max_tokens=200)
    assert json.loads(str(message.content[0].to_dict()["text"]))["city"] in ("Tokyo", "Rome")
    called = ask(
        talk,
        output_config={"format": {"type": "json_schema", "schema": WEATHER}},
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_tokens=200,
    )
    assert called.stop_reason == "tool_use"


def test_thoughts_are_blocks_of_their_own(thinker: Served) -> None:
    message = ask(thinker, thinking={"type": "enabled", "budget_tokens": 4}, max_tokens=40)
    thought, text = message.content
    assert thought.type == "thinking"
    assert (bool(thought.thinking), bool(thought.signature), text.type) == (True, True, "text")
    details = message.usage.output_tokens_details
    assert details is not None
    assert 4 <= details.thinking_tokens < message.usage.output_tokens
    again = ask(thinker, ASK, {"role": "assistant", "content": message.content}, ASK)
    assert total(again) > total(message)


def test_thoughts_are_streamed_with_a_signature(thinker: Served) -> None:
    given: Any = {"max_tokens": 40, "thinking": {"type": "enabled", "budget_tokens": 4}, "extra_body": EXACT}
    with client(thinker).messages.stream(model=thinker.name, messages=[ASK], **given) as stream:
        kinds = [event.delta.type for event in stream if event.type == "content_block_delta"]
        streamed = stream.get_final_message()
    assert list(dict.fromkeys(kinds)) == ["thinking_delta", "signature_delta", "text_delta"]
    whole = ask(thinker, **given)
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]


def test_thoughts_may_be_left_out_or_not_thought(thinker: Served) -> None:
    hidden = ask(thinker, thinking={"type": "enabled", "budget_tokens": 4, "display": "omitted"})
    assert hidden.content[0].to_dict() == {"type": "thinking", "thinking": "", "signature": "edge-llama"}
    none = ask(thinker, thinking={"type": "disabled"})
    assert [block.type for block in none.content] == ["text"]
    low = ask(thinker, thinking={"type": "adaptive"}, output_config={"effort": "low"}, max_tokens=3)
    assert [block.type for block in low.content] == ["thinking"]


def test_what_has_no_effect_is_named_in_a_header(talk: Served) -> None:
    response = client(talk).messages.with_raw_response.create(
        model=talk.name,
        max_tokens=1,
        messages=[ASK],
        metadata={"user_id": "u"},
        service_tier="auto",
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        extra_headers={"anthropic-beta": "context-management-2025-06-27"},
    )
    named = set(response.headers["edge-llama-ignored"].split(", "))
    assert named == {
        "cache_control",
        "metadata",
        "service_tier",
        "anthropic-beta",
        "anthropic-version",
        "system: x-anthropic-billing-header",
    }


def test_the_billing_line_leaves_the_cache_whole(talk: Served) -> None:
    def asked(number: int) -> Message:
        line = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={number:05};"}
        return ask(talk, system=[line, {"type": "text", "text": "Be polite."}], max_tokens=1)

    asked(1)
    assert asked(2).usage.input_tokens <= 1


def test_an_unknown_model_is_not_found(talk: Served) -> None:
    with pytest.raises(anthropic.NotFoundError, match=f"there are {talk.name}") as raised:
        client(talk).messages.create(model="claude-none", max_tokens=1, messages=[ASK])
    assert raised.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": f"there is no model 'claude-none': there are {talk.name}"},
        "request_id": None,
    }
    with pytest.raises(anthropic.NotFoundError):
        client(talk).messages.count_tokens(model="claude-none", messages=[ASK])


def test_a_prompt_that_is_too_long_has_both_numbers(talk: Served) -> None:
    long: MessageParam = {"role": "user", "content": "Hello! " * 1500}
    needed = client(talk).messages.count_tokens(model=talk.name, messages=[long]).input_tokens
    assert needed > 1024
    endless: MessageParam = {"role": "user", "content": "Hello! " * 50_000}
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 1023 maximum"):
        client(talk).messages.count_tokens(model=talk.name, messages=[endless])
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 1023 maximum"):
        ask(talk, long)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"extra_body": {"max_tokens": "many"}}, r"max_tokens: Input should be a valid integer"),
        ({"messages": [ASK, {"role": "assistant", "content": "The"}]}, "ends with the assistant's turn"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools.0.type 'web_search_20250305' is not",
        ),
        ({"tools": [TOOL, TOOL]}, "two tools are called weather"),
        ({"tool_choice": {"type": "tool", "name": "none"}, "tools": [TOOL]}, "tool_choice is"),
        ({"extra_body": {"no_such": 1}}, "no_such: there is no such field"),
        ({"stop_sequences": [""]}, r"stop_sequences\.0: .* at least 1"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences: .* at most 16"),
    ],
)
def test_what_is_wrong_is_a_bad_request(talk: Served, wrong: dict[str, Any], why: str) -> None:
    given: dict[str, Any] = {"max_tokens": 1, "messages": [ASK], **wrong}
    with pytest.raises(anthropic.BadRequestError, match=why) as raised:
        client(talk).messages.create(model=talk.name, **given)
    assert raised.value.type == "invalid_request_error"


def test_a_model_that_sees_no_images_says_so(talk: Served) -> None:
    source: Any = {"type": "base64", "media_type": "image/png", "data": PNG}
    with pytest.raises(anthropic.BadRequestError, match="the model sees no images"):
        ask(talk, {"role": "user", "content": [{"type": "image", "source": source}]})


def test_a_full_queue_is_a_rate_limit(small_talk: Path) -> None:
    with talking(small_talk, max_running=1, max_queued=0) as busy:
        given: Any = {"model": busy.name, "max_tokens": 900, "messages": [{"role": "user", "content": STORY}]}
        with client(busy).messages.stream(**given) as stream:
            next(iter(stream.text_stream))
            with pytest.raises(anthropic.RateLimitError, match="busy") as raised:
                ask(busy)
        assert raised.value.response.headers["retry-after"] == "1"
        assert raised.value.type == "rate_limit_error"


def test_an_error_amid_a_stream_is_an_event(small_talk: Path) -> None:
    with talking(small_talk, settings=ServerSettings(limits=Limits(seconds=0.5)), n_ctx=8192) as hasty:
        given: Any = {"model": hasty.name, "max_tokens": 8000, "messages": [{"role": "user", "content": STORY}]}
        texts: list[str] = []
        with (
            pytest.raises(anthropic.APIStatusError, match="not done by its deadline") as raised,
            client(hasty).messages.stream(**given) as stream,
        ):
            texts.extend(stream.text_stream)
    assert texts
    assert raised.value.type == "timeout_error"


def test_a_silent_stream_gets_pings(small_talk: Path) -> None:
    with talking(small_talk, settings=ServerSettings(keep_alive_seconds=0.0005)) as slow:
        body = {"model": slow.name, "max_tokens": 50, "stream": True, "messages": [{"role": "user", "content": STORY}]}
        with slow.client.stream("POST", "/v1/messages", json=body) as response:
            text = "".join(response.iter_text())
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in text
    assert text.count("event: message_start\n") == 1
    assert text.rstrip().endswith('data: {"type":"message_stop"}')

"""Tools in chat completions: calls as the model writes them, or must; what went wrong in one never ends a session."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import trained
from openai_requests import asked, joined, streamed
from serving import Served, serve
from trained import BOTH, HELLO, PARIS, SUNNY, WRONG

from edge_llama.prompts.tools import function_schema
from edge_llama.server.pool import Pool

WEATHER = function_schema(trained.weather)
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time", "description": "Tell it", "strict": True}}


@pytest.fixture(scope="module")
def llama(tool_llama: Path) -> Iterator[Served]:
    pool = Pool([str(tool_llama)], {"n_ctx": 512, "threads": 1}, isolate=False)
    with serve(pool) as served:
        yield served


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(arguments: str, name: str = "weather") -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def calls_of(body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    calls = body["choices"][0]["message"].get("tool_calls", ())
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def test_a_call_its_result_and_the_answer(llama: Served) -> None:
    with openai.OpenAI(base_url=f"{llama.url}/v1", api_key="none", max_retries=0) as client:
        messages: list[Any] = [user(PARIS)]
        tools: list[Any] = [WEATHER]
        first = client.chat.completions.create(model=llama.name, messages=messages, tools=tools, temperature=0)
        (choice,) = first.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls or ()
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
        messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "22 degrees in Paris"}]
        second = client.chat.completions.create(model=llama.name, messages=messages, tools=tools, temperature=0)
        assert (second.choices[0].message.content, second.choices[0].finish_reason) == (SUNNY, "stop")


def test_calls_are_streamed_whole_and_counted(llama: Served) -> None:
    chunks = streamed(llama, user(BOTH), tools=[WEATHER])
    calls = [call for chunk in chunks for each in chunk["choices"] for call in each["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert [json.loads(call["function"]["arguments"])["city"] for call in calls] == ["Rome", "Bonn"]
    assert len({call["id"] for call in calls}) == 2
    assert joined(chunks).strip() == "Ok."
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    whole = asked(llama, user(BOTH), tools=[WEATHER])
    assert [arguments["city"] for _, arguments in calls_of(whole)] == ["Rome", "Bonn"]


def test_the_clients_own_helper_puts_calls_together(llama: Served) -> None:
    with openai.OpenAI(base_url=f"{llama.url}/v1", api_key="none", max_retries=0) as client:
        messages: list[Any] = [user(BOTH)]
        tools: list[Any] = [{"type": "function", "function": {**WEATHER["function"], "strict": True}}]
        given: dict[str, Any] = {"model": llama.name, "messages": messages, "tools": tools, "temperature": 0}
        with client.chat.completions.stream(**given) as stream:
            done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        calls = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert [(event.name, event.index, json.loads(event.arguments)["city"]) for event in done] == [
        ("weather", 0, "Rome"),
        ("weather", 1, "Bonn"),
    ]
    assert [call.function.parsed_arguments for call in calls] == [{"city": "Rome"}, {"city": "Bonn"}]


def test_without_parallel_calls_there_is_one(llama: Served) -> None:
    for choice in ({}, {"tool_choice": "required"}):
        body = asked(llama, user(BOTH), tools=[WEATHER], parallel_tool_calls=False, **choice)
        assert len(calls_of(body)) == 1
        assert body["choices"][0]["finish_reason"] == "tool_calls"
    chunks = streamed(llama, user(BOTH), tools=[WEATHER], parallel_tool_calls=False)
    calls = [call for chunk in chunks for each in chunk["choices"] for call in each["delta"].get("tool_calls", ())]
    assert [json.loads(call["function"]["arguments"])["city"] for call in calls] == ["Rome"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("auto", set()),
        ("none", set()),
        ("required", {"weather", "time"}),
        ({"type": "function", "function": {"name": "time"}}, {"time"}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                {"type": "function", "function": {"name": "time"}}]}},
            {"time"},
        ),
    ],
    ids=["auto", "none", "required", "named", "allowed"],
)  # fmt: skip
def test_a_choice_among_tools(llama: Served, choice: Any, names: set[str]) -> None:
    body = asked(llama, user(HELLO), tools=[WEATHER, TIME], tool_choice=choice, max_tokens=200)
    found = {name for name, _ in calls_of(body)}
    assert found <= names
    assert bool(found) is bool(names)
    assert body["choices"][0]["finish_reason"] == ("tool_calls" if names else "stop")


def test_a_choice_that_can_not_be_is_an_error(llama: Served) -> None:
    named = {"type": "function", "function": {"name": "other"}}
    assert "other" in asked(llama, user(HELLO), tools=[WEATHER], tool_choice=named, status=400)["error"]["message"]
    assert "no tools" in asked(llama, user(HELLO), tool_choice="required", status=400)["error"]["message"]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    error = asked(llama, user(HELLO), tools=[WEATHER], tool_choice=allowed, status=400)["error"]
    assert (error["param"], "other" in error["message"]) == ("tool_choice", True)
    custom = {"type": "custom", "custom": {"name": "sh"}}
    for given in ({"tools": [custom]}, {"tools": [WEATHER], "tool_choice": custom}):
        assert "one of function" in asked(llama, user(HELLO), status=400, **given)["error"]["message"]


def test_a_result_without_content_is_empty_text(llama: Served) -> None:
    def tokens(content: str | None) -> int:
        result = {"role": "tool", "tool_call_id": "call_1", "content": content}
        given = (user(PARIS), called('{"city": "Paris"}'), result)
        usage: dict[str, int] = asked(llama, *given, tools=[WEATHER], max_tokens=1)["usage"]
        return usage["prompt_tokens"]

    assert tokens(None) == tokens("")


def test_a_form_gives_way_to_a_call_that_must_come(llama: Served) -> None:
    form = {"type": "json_object"}
    body = asked(llama, user(HELLO), tools=[WEATHER], tool_choice="required", response_format=form, max_tokens=200)
    assert [name for name, _ in calls_of(body)][:1] == ["weather"]


def test_an_answer_is_a_call_or_has_the_form(llama: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["Hi", "Bye"]}}}
    asks = asked(llama, user(PARIS), tools=[WEATHER], response_format=form, max_tokens=60)
    assert calls_of(asks) == [("weather", {"city": "Paris"})]
    greets = asked(llama, user(HELLO), tools=[WEATHER], response_format=form, tool_choice="none")
    assert json.loads(greets["choices"][0]["message"]["content"]) in ("Hi", "Bye")
    result = {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees in Paris"}
    known = asked(llama, user(PARIS), called('{"city": "Paris"}'), result, tools=[WEATHER], response_format=form)
    assert calls_of(known) or json.loads(known["choices"][0]["message"]["content"]) in ("Hi", "Bye")


def test_a_malformed_call_stays_text_with_a_note(llama: Served) -> None:
    body = asked(llama, user(WRONG), tools=[WEATHER])
    (choice,) = body["choices"]
    assert "weather" in choice["message"]["content"]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"
    (note,) = body["usage"]["edge_llama"]["notes"]
    assert note.startswith("no tool call: ")
    chunks = streamed(llama, user(WRONG), tools=[WEATHER], stream_options={"include_usage": True})
    assert joined(chunks) == choice["message"]["content"]
    assert chunks[-1]["usage"]["edge_llama"]["notes"] == [note]


@pytest.mark.parametrize(
    "arguments", ['{"city": "Par', "5", "null", "[1]", '{"city": NaN}', "[" * 100_000, '{"a": "\\ud800"}', "x" * 100]
)
def test_a_session_goes_on_after_arguments_that_are_none(llama: Served, arguments: str) -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "content": "error: no JSON"}
    if len(arguments) > 1000:
        error = asked(llama, user(PARIS), called(arguments), result, tools=[WEATHER], status=400)["error"]
        assert error["code"] == "context_length_exceeded"
        return
    body = asked(llama, user(PARIS), called(arguments), result, tools=[WEATHER], max_tokens=5)
    assert body["choices"][0]["finish_reason"] in ("length", "stop", "tool_calls")


def test_the_model_is_shown_what_it_wrote_wrongly(llama: Served) -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "content": "error"}
    short, long = (
        asked(llama, user(PARIS), called(text), result, tools=[WEATHER], max_tokens=1)["usage"]["prompt_tokens"]
        for text in ("{a", "{a b c d e f g h")
    )
    assert long > short
    empty = asked(llama, user(PARIS), called(""), result, tools=[WEATHER], max_tokens=1)["usage"]["prompt_tokens"]
    assert empty < short

"""OpenAI's own client against a real server: responses."""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import model_serializer
from serving import Served
from talk import ANSWER, QUESTION, STORY, WEATHER, talking

from edge_llama.server.asking import Answers
from edge_llama.server.fields import Fields
from edge_llama.server.openai.responses import _head, options_of
from edge_llama.server.openai.responses_fields import ResponseFields
from edge_llama.server.pool import Lease
from edge_llama.server.settings import Limits, ServerSettings

TOOL: Any = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": WEATHER, "strict": True}
SKY: Any = {"type": "namespace", "name": "sky", "description": "", "tools": [{**TOOL, "name": "rain"}]}
CLIENTS: dict[str, openai.OpenAI] = {}
BEGINNING = ["response.created", "response.in_progress"]
TEXT = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
THOUGHTS = [kind.replace("output_text", "reasoning_text") for kind in TEXT]
CALL = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


@pytest.fixture(scope="module", autouse=True)
def clients() -> Iterator[None]:
    """Those of all servers, closed in the end."""
    yield
    while CLIENTS:
        CLIENTS.popitem()[1].close()


def client(served: Served) -> openai.OpenAI:
    if served.url not in CLIENTS:
        CLIENTS[served.url] = openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)
    return CLIENTS[served.url]


def ask(served: Served, given: Any = QUESTION, **options: Any) -> Response:
    answer: Response = client(served).responses.create(
        model=served.name, input=given, **{"temperature": 0, "max_output_tokens": 200, **options}
    )
    return answer


def stream(served: Served, given: Any = QUESTION, **options: Any) -> list[ResponseStreamEvent]:
    return list(
        client(served).responses.create(
            model=served.name, input=given, stream=True, **{"temperature": 0, "max_output_tokens": 200, **options}
        )
    )


def kinds_of(events: list[ResponseStreamEvent]) -> list[str]:
    """Each kind as often as it comes, but of those in a row one."""
    kinds = [event.type for event in events]
    return [kind for at, kind in enumerate(kinds) if not at or kind != kinds[at - 1]]


def without_ids(response: Response) -> Any:
    """What two answers to the same have in common."""
    varying = {"id", "created_at", "completed_at", "call_id", "usage"}

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(each) for key, each in value.items() if key not in varying}
        return [strip(each) for each in value] if isinstance(value, list) else value

    return strip(response.to_dict())


def test_a_response(talk: Served) -> None:
    response = ask(talk, metadata={"topic": "capitals"})
    assert response.output_text == ANSWER
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert [item.type for item in response.output] == ["message"]
    assert response.metadata == {"topic": "capitals"}
    assert response.model == talk.name
    assert (response.temperature, response.max_output_tokens, response.truncation) == (0, 200, "disabled")
    usage = response.usage
    assert usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens < usage.input_tokens
    assert usage.to_dict()["edge_llama"]


def test_a_stream_is_the_same_response_event_by_event(talk: Served) -> None:
    events = stream(talk)
    assert kinds_of(events) == [*BEGINNING, *TEXT, "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == ANSWER
    last = events[-1]
    assert last.type == "response.completed"
    assert without_ids(last.response) == without_ids(ask(talk))


def test_the_clients_own_stream_puts_it_together(talk: Served) -> None:
    with client(talk).responses.stream(model=talk.name, input=QUESTION, temperature=0) as streamed:
        for _ in streamed:
            pass
        assert streamed.get_final_response().output_text == ANSWER


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_function_is_called_and_its_output_read(talk: Served, choice: Any) -> None:
    response = ask(talk, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    (call,) = response.output
    assert call.type == "function_call"
    assert (call.name, call.status) == ("weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Tokyo", "Rome")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    told = ask(talk, [{"role": "user", "content": QUESTION}, call.to_dict(), output], tools=[TOOL])
    gone_on = ask(talk, [output], previous_response_id=response.id, tools=[TOOL])
    assert told.usage
    assert gone_on.usage
    assert told.usage.input_tokens == gone_on.usage.input_tokens


def test_a_call_is_streamed_item_by_item(talk: Served) -> None:
    events = stream(talk, tools=[SKY], tool_choice="required", parallel_tool_calls=False)
    assert kinds_of(events) == [*BEGINNING, *CALL, "response.completed"]
    last = events[-1]
    assert last.type == "response.completed"
    (call,) = last.response.output
    assert call.type == "function_call"
    assert (call.name, call.namespace) == ("rain", "sky")
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert (done.arguments, done.item_id, done.output_index) == (call.arguments, call.id, 0)


def test_thoughts_are_an_item_of_their_own(thinker: Served) -> None:
    given: Any = {"reasoning": {"effort": "none"}}
    assert [item.type for item in ask(thinker, **given).output] == ["message"]
    response = ask(thinker, max_output_tokens=5)
    (thought,) = response.output
    assert thought.type == "reasoning"
    assert thought.content
    assert (response.status, thought.status) == ("incomplete", "incomplete")
    events = stream(thinker, max_output_tokens=5)
    assert kinds_of(events) == [*BEGINNING, *THOUGHTS, "response.incomplete"]
    gone_on = ask(thinker, previous_response_id=response.id)
    assert gone_on.usage
    assert response.usage
    assert gone_on.usage.input_tokens > response.usage.input_tokens


def test_what_ends_for_its_length_is_incomplete(talk: Served) -> None:
    response = ask(talk, max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    (item,) = response.output
    assert item.type == "message"
    assert item.status == "incomplete"
    assert stream(talk, max_output_tokens=2)[-1].type == "response.incomplete"


def test_json_by_a_schema(talk: Served) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "weather", "schema": WEATHER, "strict": True}}
    response = ask(talk, text=form)
    assert json.loads(response.output_text)["city"] in ("Tokyo", "Rome")
    assert response.text
    assert response.text.to_dict() == form
    any_object = ResponseFields.model_validate({"input": "x", "text": {"format": {"type": "json_object"}}})
    assert options_of(any_object)["json_schema"] == {"type": "object"}


def test_log_probabilities(talk: Served) -> None:
    response = ask(talk, include=["message.output_text.logprobs"], top_logprobs=2)
    (item,) = response.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    assert part.logprobs
    assert b"".join(bytes(entry.bytes) for entry in part.logprobs).decode() == ANSWER
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in part.logprobs)
    events = stream(talk, include=["message.output_text.logprobs"], top_logprobs=2)
    streamed = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert [entry.token for entry in streamed] == [entry.token for entry in part.logprobs]


def test_a_conversation_is_gone_on_with(talk: Served) -> None:
    first = ask(talk, instructions="You are Captain Hook.")
    second = ask(talk, "And of Italy?", previous_response_id=first.id)
    assert second.output_text == "The capital of Italy is Rome."
    assert second.previous_response_id == first.id
    third = ask(talk, "Who are you?", previous_response_id=second.id)
    assert "SmolLM" in third.output_text  # instructions are not taken up
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of Italy?"},
    ]
    same = ask(talk, turns)
    assert same.usage
    assert second.usage
    assert same.usage.input_tokens == second.usage.input_tokens


def test_tokens_are_counted_as_the_usage_will_count_them(talk: Served) -> None:
    first = ask(talk, instructions="You are Captain Hook.", tools=[TOOL])
    given = {"input": "And of Italy?", "previous_response_id": first.id, "tools": [TOOL], "instructions": "Be brief."}
    counted = client(talk).responses.input_tokens.count(model=talk.name, **given)
    answered = client(talk).responses.create(model=talk.name, max_output_tokens=4, **given)
    assert answered.usage
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", answered.usage.input_tokens)
    raw = talk.client.post("/v1/responses/input_tokens", json={"input": "Hello!", "personality": "friendly"})
    assert raw.headers["edge-llama-ignored"] == "personality"
    with pytest.raises(openai.BadRequestError, match=r"\d+ tokens"):
        client(talk).responses.input_tokens.count(input="Hello! " * 50_000)


def test_a_response_is_asked_for_again_and_deleted(talk: Served) -> None:
    created = ask(talk)
    responses = client(talk).responses
    assert responses.retrieve(created.id).to_dict() == created.to_dict()
    streamed = stream(talk)[-1]
    assert streamed.type == "response.completed"
    assert responses.retrieve(streamed.response.id).output_text == ANSWER
    responses.delete(created.id)
    for gone in (responses.retrieve, responses.delete, responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="not found"):
            gone(created.id)
    with pytest.raises(openai.BadRequestError, match="not found") as raised:
        ask(talk, previous_response_id=created.id)
    assert raised.value.code == "previous_response_not_found"


def test_the_items_that_were_read_come_page_by_page(talk: Served) -> None:
    first = ask(talk, "Hello!")
    second = ask(talk, [{"role": "user", "content": QUESTION}], previous_response_id=first.id)
    items = client(talk).responses.input_items
    whole = items.list(second.id, order="asc").data
    assert [item.to_dict().get("role") for item in whole] == ["user", "assistant", "user"]
    assert [item.id for item in items.list(second.id, limit=1)] == [item.id for item in whole[::-1]]
    after = items.list(second.id, order="asc", limit=1, after=str(whole[0].id))
    assert ([item.id for item in after.data], after.has_more) == ([whole[1].id], True)
    with pytest.raises(openai.BadRequestError, match="none of the items"):
        items.list(second.id, after="msg_none")


def test_what_is_not_to_be_stored_is_not(talk: Served) -> None:
    response = ask(talk, store=False)
    assert response.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client(talk).responses.retrieve(response.id)


def test_a_restart_finds_what_is_on_the_disk(small_talk: Path, tmp_path: Path) -> None:
    settings = ServerSettings(store=tmp_path / "responses")
    with talking(small_talk, settings=settings) as served:
        first = ask(served)
    with talking(small_talk, settings=settings) as served:
        assert client(served).responses.retrieve(first.id).to_dict() == first.to_dict()
        again = ask(served, "And of Italy?", previous_response_id=first.id)
    assert again.output_text == "The capital of Italy is Rome."


def test_what_an_agent_sends_needlessly_is_named_in_a_header(talk: Served) -> None:
    response = client(talk).responses.with_raw_response.create(
        model=talk.name,
        input=QUESTION,
        max_output_tokens=1,
        tools=[TOOL, {"type": "web_search"}],
        prompt_cache_key="k",
        include=["file_search_call.results", "reasoning.encrypted_content", "message.output_text.logprobs"],
        service_tier="auto",
        text={"verbosity": "low"},
    )
    named = set(response.headers["edge-llama-ignored"].split(", "))
    assert named == {
        "web_search",
        "prompt_cache_key",
        "service_tier",
        "verbosity",
        "strict",
        "include.file_search_call.results",
        "include.reasoning.encrypted_content",
    }


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"truncation": "auto"}, "truncation 'auto' is not supported"),
        ({"background": True}, "background is not supported"),
        ({"tools": [{"type": "code_interpreter", "container": "x"}]}, "type 'code_interpreter' is not supported"),
        ({"given": [{"type": "item_reference", "id": "msg_1"}]}, "id 'msg_1' is not supported: items are not kept"),
        ({"given": []}, "there is nothing to answer"),
        ({"extra_body": {"no_such": 1}}, "no_such: there is no such field"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice is"),
        ({"given": "Hello! " * 1500}, r"prompt is too long: \d+ tokens > 1023 maximum"),
        ({"given": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "no files are read"),
    ],
)
def test_what_is_wrong_is_a_bad_request(talk: Served, wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(openai.BadRequestError, match=why):
        ask(talk, **wrong)


def test_a_model_that_is_not_there_and_one_that_sees_nothing(talk: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client(talk).responses.create(model="gpt-none", input="x")
    picture = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
        "gg=="
    )
    with pytest.raises(openai.BadRequestError, match="sees no images"):
        ask(talk, [{"role": "user", "content": [{"type": "input_image", "image_url": picture, "detail": "auto"}]}])


def test_an_error_amid_a_stream_is_a_response_that_failed(small_talk: Path) -> None:
    with talking(small_talk, settings=ServerSettings(limits=Limits(seconds=0.5)), n_ctx=8192) as hasty:
        last = stream(hasty, STORY, max_output_tokens=8000)[-1]
        assert last.type == "response.failed"
        assert last.response.error
        assert (last.response.status, last.response.error.code) == ("failed", "server_error")
        assert "not done by its deadline" in last.response.error.message
        with pytest.raises(openai.NotFoundError):
            client(hasty).responses.retrieve(last.response.id)


def test_a_full_queue_is_a_rate_limit(small_talk: Path) -> None:
    with talking(small_talk, max_running=1, max_queued=0) as busy:
        running = client(busy).responses.create(model=busy.name, input=STORY, max_output_tokens=900, stream=True)
        with running:
            next(iter(running))
            with pytest.raises(openai.RateLimitError, match="busy"):
                ask(busy)


class Untold(Fields):
    """What nobody puts into another form."""

    @model_serializer
    def _told(self) -> str:
        raise AssertionError


def test_what_a_response_says_of_its_request_costs_nothing_of_the_input(talk: Served) -> None:
    generations: Any = []
    answers = Answers(Lease("a", talk.model), generations, AsyncExitStack(), 1)
    tool = {"type": "function", "name": "weather", "parameters": WEATHER}
    given = ResponseFields.model_validate({"input": "a", "tools": [tool], "tool_choice": "required"})
    head = _head(given.model_copy(update={"input": [Untold()]}), answers, {})
    assert head["tools"] == [tool]
    assert (head["tool_choice"], head["text"]) == ("required", {"format": {"type": "text"}})

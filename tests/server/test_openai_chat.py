"""Chat completions, by OpenAI's own client and as they are sent: whole, streamed, with thoughts, forms, logprobs."""

import asyncio
import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pydantic
import pytest
from openai_requests import QUESTION, asked, joined, streamed
from serving import Served, serve
from test_thinking import OPEN

import edge_llama
from edge_llama import Message
from edge_llama.server.asking import SEEDS
from edge_llama.server.pool import Pool
from edge_llama.server.settings import Limits, ServerSettings
from edge_llama.server.thinking_effort import THINKING_BUDGETS

ANSWER = "The capital of Japan is Tokyo."
STORY = {"role": "user", "content": "Tell a very long story."}
PIXEL = edge_llama.Image.open(np.zeros((1, 1, 3), np.uint8)).to_data_url()


@pytest.fixture(scope="module")
def talk(small_talk: Path) -> Iterator[Served]:
    pool = Pool([str(small_talk)], {"n_ctx": 512, "threads": 1}, isolate=False, aliases={"gpt-4o": "small_talk"})
    with serve(pool) as served:
        yield served


@pytest.fixture(scope="module")
def thinker(small_talk: Path) -> Iterator[Served]:
    """Its prompts have it think first."""
    options = edge_llama.OpenOptions(n_ctx=512, threads=1, chat_template=OPEN)
    with serve(Pool([str(small_talk)], options, isolate=False)) as served:
        yield served


@pytest.fixture(scope="module")
def client(talk: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{talk.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_client_gets_an_answer(client: openai.OpenAI, talk: Served) -> None:
    answer = client.chat.completions.create(model="small_talk", messages=[QUESTION], temperature=0)  # type: ignore[list-item]
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert choice.message.tool_calls is None
    assert answer.usage is not None
    expected = talk.model.count_tokens([Message("user", QUESTION["content"])])
    assert answer.usage.prompt_tokens == expected
    assert answer.usage.completion_tokens == len(talk.model.tokenizer.encode(ANSWER))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == "small_talk"


def test_the_client_gets_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="gpt-4o",
        messages=[QUESTION],  # type: ignore[list-item]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
    assert len(chunks) > 4, "it does not come piece by piece"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage is not None) == ([], True)
    assert {chunk.model for chunk in chunks} == {"small_talk"}


def test_the_asynchronous_client_gets_the_same(talk: Served) -> None:
    async def answer() -> str | None:
        async with openai.AsyncOpenAI(base_url=f"{talk.url}/v1", api_key="none", max_retries=0) as client:
            given = await client.chat.completions.create(model="small_talk", messages=[QUESTION], temperature=0)  # type: ignore[list-item]
            return given.choices[0].message.content

    assert asyncio.run(answer()) == ANSWER


def test_a_stream_says_the_same_as_the_whole(talk: Served) -> None:
    whole, chunks = asked(talk), streamed(talk, stream_options={"include_usage": True})
    assert joined(chunks) == whole["choices"][0]["message"]["content"]
    counted = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [chunks[-1]["usage"][key] for key in counted] == [whole["usage"][key] for key in counted]
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {(chunks[0]["id"], chunks[0]["created"])}
    assert chunks[0]["system_fingerprint"] == whole["system_fingerprint"]


def test_a_stream_without_options_has_no_usage(talk: Served) -> None:
    assert not any("usage" in chunk for chunk in streamed(talk))


def test_usage_tells_what_was_cached_and_where_a_prompt_left_it(talk: Served) -> None:
    first = {"role": "user", "content": "Please remember this list of words: apple, river, stone, "}
    asked(talk, first)
    again = asked(talk, first)["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] >= again["prompt_tokens"] - 1
    other = asked(talk, {**first, "content": first["content"].replace("river", "stone")})["usage"]
    diverged = other["edge_llama"]["diverged"]
    assert 0 < diverged["position"] == other["prompt_tokens_details"]["cached_tokens"] < other["prompt_tokens"]
    assert "river" in diverged["cached"]
    assert "stone" in diverged["wanted"]


def test_the_model_may_be_left_out_where_there_is_one(talk: Served) -> None:
    assert asked(talk)["model"] == "small_talk"
    error = asked(talk, model="other", status=404)["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "small_talk" in error["message"]


def test_content_may_be_parts_and_developers_are_the_system(talk: Served) -> None:
    parts = [{"type": "text", "text": "Who are"}, {"type": "text", "text": " you?"}]
    for role in ("system", "developer"):
        hook = {"role": role, "content": [{"type": "text", "text": "You are Captain Hook."}]}
        answer = asked(talk, hook, {"role": "user", "content": parts})
        assert answer["choices"][0]["message"]["content"] == "I am Captain Hook."


def test_several_answers_to_one_prompt(talk: Served) -> None:
    odd = {"role": "user", "content": "?"}
    whole = asked(talk, odd, n=3, temperature=2, seed=5, max_tokens=12, top_k=0, top_p=1, min_p=0)
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert len(set(texts)) > 1
    alone = asked(talk, odd, temperature=2, seed=5, max_tokens=12, top_k=0, top_p=1, min_p=0)
    assert alone["choices"][0]["message"]["content"] == texts[0]
    assert alone["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"] <= 36
    assert whole["usage"]["prompt_tokens"] == asked(talk, odd, max_tokens=1)["usage"]["prompt_tokens"]
    chunks = streamed(talk, STORY, n=3, max_tokens=12)
    assert {joined(chunks, choice=choice) for choice in range(3)} == {joined(chunks)}
    ends = [each["index"] for chunk in chunks for each in chunk["choices"] if each["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]
    assert "at most 16" in asked(talk, n=17, status=400)["error"]["message"]


@pytest.mark.parametrize("seed", [0, 7, -1, SEEDS - 1, 2**63])
def test_any_whole_number_is_a_seed(talk: Served, seed: int) -> None:
    given = {"seed": seed, "temperature": 2, "max_tokens": 8, "n": 2, "top_p": 1, "min_p": 0}
    first, second = (asked(talk, STORY, **given)["choices"] for _ in range(2))
    assert first == second


def test_lengths_and_stops_end_an_answer(talk: Served) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_tokens": 9, "max_completion_tokens": 3}):
        body = asked(talk, **limit)
        assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 3)
    for stop in (" Tokyo", ["nothing", " Tokyo"]):
        (choice,) = asked(talk, stop=stop)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("The capital of Japan is", "stop")
        assert joined(streamed(talk, stop=stop)) == "The capital of Japan is"


def test_log_probabilities_are_of_the_texts_tokens(talk: Served) -> None:
    (choice,) = asked(talk, logprobs=True, top_logprobs=3)["choices"]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == ANSWER
    assert "".join(entry["token"] for entry in content) == ANSWER
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"], "the likeliest is taken at temperature 0"
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0
        assert sum(math.exp(each["logprob"]) for each in entry["top_logprobs"]) <= 1 + 1e-6
    chunks = streamed(talk, logprobs=True, top_logprobs=3)
    assert [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]] == (
        content
    )
    assert asked(talk, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert asked(talk, logprobs=False)["choices"][0]["logprobs"] is None
    assert asked(talk, logprobs=False, top_logprobs=0)["choices"][0]["logprobs"] is None
    assert "logprobs" in asked(talk, top_logprobs=2, status=400)["error"]["message"]


def test_a_part_of_a_character_is_told_by_its_bytes(talk: Served) -> None:
    (choice,) = asked(talk, logprobs=True, regex="🦙")["choices"]
    content = choice["logprobs"]["content"]
    assert choice["message"]["content"] == "🦙"
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "🦙"
    if len(content) > 1:
        assert content[0]["token"].startswith("bytes:\\xf0")


def test_a_biased_token_comes(talk: Served) -> None:
    tokens = talk.client.post("/tokenize", json={"content": " Rome"}).json()["tokens"]
    body = asked(talk, logit_bias={str(tokens[0]): 100}, max_tokens=3)
    first = talk.client.post("/detokenize", json={"tokens": tokens[:1]}).json()["content"]
    assert body["choices"][0]["message"]["content"] == first * 3
    assert "no token" in asked(talk, logit_bias={"999999": 1}, status=400)["error"]["message"]


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("strict", [None, False, True])
def test_an_answer_has_the_form_that_is_asked_for(talk: Served, strict: bool | None) -> None:
    given = {"type": "json_schema", "json_schema": {"name": "a place", "schema": SCHEMA, "strict": strict}}
    body = asked(talk, response_format=given)
    found = json.loads(body["choices"][0]["message"]["content"])
    assert {key: type(value) for key, value in found.items()} == {"city": str, "big": bool}
    assert body["choices"][0]["finish_reason"] == "stop"


class Place(pydantic.BaseModel):
    city: Literal["Tokyo", "Rome"]
    sizes: list[Literal[1, 2]] = pydantic.Field(max_length=2)


def test_the_clients_own_helpers_get_typed_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "small_talk", "messages": [QUESTION], "response_format": Place, "temperature": 0}
    whole = client.chat.completions.parse(**given).choices[0].message.parsed
    assert isinstance(whole, Place)
    with client.chat.completions.stream(**given) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message.parsed
    assert final == whole
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)


def test_any_object_and_any_text_are_forms(talk: Served) -> None:
    body = asked(talk, response_format={"type": "json_object"}, max_tokens=200, temperature=1, seed=1)
    if body["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(body["choices"][0]["message"]["content"]), dict)
    assert body["choices"][0]["message"]["content"].startswith("{")
    assert asked(talk, response_format={"type": "text"})["choices"][0]["message"]["content"] == ANSWER
    assert asked(talk, regex="Rome|Bonn")["choices"][0]["message"]["content"] in ("Rome", "Bonn")
    assert asked(talk, grammar='start: "Rome"')["choices"][0]["message"]["content"] == "Rome"
    both = asked(talk, regex="a", response_format={"type": "json_object"}, status=400)["error"]
    assert "json_schema and regex" in both["message"]


def test_thoughts_are_told_apart(thinker: Served) -> None:
    body = asked(thinker, max_tokens=20)
    message, usage = body["choices"][0]["message"], body["usage"]
    assert message["content"] == ""
    assert message["reasoning_content"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["completion_tokens"] > 3
    chunks = streamed(thinker, max_tokens=20)
    assert joined(chunks, "reasoning_content") == message["reasoning_content"]
    assert joined(chunks) == ""


@pytest.mark.parametrize("given", [{"reasoning_effort": "none"}, {"thinking_budget": 0, "reasoning_effort": "high"}])
def test_who_may_not_think_answers(thinker: Served, given: dict[str, Any]) -> None:
    body = asked(thinker, max_tokens=40, **given)
    assert "reasoning_content" not in body["choices"][0]["message"]
    assert body["choices"][0]["message"]["content"]


def test_a_budget_ends_thoughts(thinker: Served) -> None:
    usage = asked(thinker, max_tokens=40, thinking_budget=5)["usage"]
    closing = len(thinker.model.template.thinking_parser([]).closing)  # type: ignore[union-attr]
    assert 5 <= usage["completion_tokens_details"]["reasoning_tokens"] <= 5 + closing
    assert usage["completion_tokens"] == 40


def test_every_effort_is_a_budget(talk: Served) -> None:
    assert THINKING_BUDGETS["none"] == 0
    for effort in THINKING_BUDGETS:
        assert asked(talk, reasoning_effort=effort)["choices"][0]["message"]["content"] == ANSWER
    assert "reasoning_effort" in asked(talk, reasoning_effort="huge", status=400)["error"]["message"]


def test_earlier_thoughts_go_where_the_template_has_them(thinker: Served) -> None:
    thought = {"role": "assistant", "content": "Tokyo.", "reasoning_content": "Hm, Japan."}
    model = thinker.model
    with_thoughts = model.count_tokens([Message("user", "a"), Message("assistant", "Tokyo.", thinking="Hm, Japan.")])
    body = asked(thinker, {"role": "user", "content": "a"}, thought, max_tokens=1)
    assert body["usage"]["prompt_tokens"] == with_thoughts


def test_what_the_template_asks_for_besides(small_talk: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ ending }}"
    options = edge_llama.OpenOptions(n_ctx=256, threads=1, chat_template=template)
    with serve(Pool([str(small_talk)], options, isolate=False)) as served:
        plain = asked(served, max_tokens=1)["usage"]["prompt_tokens"]
        longer = asked(served, max_tokens=1, chat_template_kwargs={"ending": "one two three"})["usage"]["prompt_tokens"]
        assert longer > plain
        error = asked(served, chat_template_kwargs={"enable_thinking": True}, status=400)["error"]
        assert "takes no 'enable_thinking'" in error["message"]


@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "http://127.0.0.1/a.png", "file:///etc/passwd", "/etc/passwd", ""]
)
def test_nothing_is_fetched(talk: Served, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    error = asked(talk, {"role": "user", "content": [part]}, status=400)["error"]
    assert "nothing is fetched" in error["message"]
    assert error["param"] == "messages.0.content.0.image_url.url"


def test_images_need_a_model_that_sees_them(talk: Served) -> None:
    def image(url: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}]}

    assert "sees no images" in asked(talk, image(PIXEL), status=400)["error"]["message"]
    broken = "data:image/png;base64," + base64.b64encode(b"none").decode()
    assert "no image that can be read" in asked(talk, image(broken), status=400)["error"]["message"]
    many = {"role": "user", "content": image(PIXEL)["content"] * 65}
    assert "65 images" in asked(talk, many, status=400)["error"]["message"]


def test_what_does_not_fit_is_an_error_with_both_numbers(client: openai.OpenAI, talk: Served) -> None:
    text = "apple, river, stone, " * 200
    needed = talk.model.count_tokens([Message("user", text)])
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="small_talk", messages=[{"role": "user", "content": text}])
    assert raised.value.code == "context_length_exceeded"
    assert f"{needed:,}" in str(raised.value)
    assert "512" in str(raised.value)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="small_talk", messages=[{"role": "user", "content": text}], stream=True)


def test_the_client_knows_the_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-5'"):
        client.chat.completions.create(model="gpt-5", messages=[QUESTION])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="temperature") as raised:
        client.chat.completions.create(model="small_talk", messages=[QUESTION], temperature=3)  # type: ignore[list-item]
    assert raised.value.param == "temperature"


def test_a_client_that_leaves_ends_its_answer(talk: Served) -> None:
    given = {"messages": [STORY], "stream": True, "temperature": 1.9, "seed": 1}
    with httpx.stream("POST", f"{talk.url}/v1/chat/completions", json=given, timeout=60) as response:
        next(response.iter_lines())
    for _ in range(1000):
        if not talk.model.stats().running:
            break
        talk.wait(asyncio.sleep(0.01))
    assert not talk.model.stats().running


def test_limits_hold_for_each_answer(small_talk: Path) -> None:
    few = ServerSettings(limits=Limits(max_tokens=4, choices=2))
    with serve(Pool([str(small_talk)], {"n_ctx": 512, "threads": 1}, isolate=False), few) as served:
        body = asked(served, STORY, n=2)
        assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "length"]
        assert body["usage"]["completion_tokens"] == 8
        assert asked(served, STORY, max_tokens=5, status=400)["error"]["param"] == "max_tokens"
        assert asked(served, STORY, n=3, status=400)["error"]["param"] == "n"


def test_an_answer_that_takes_too_long_is_ended_and_told_of(small_talk: Path) -> None:
    short = ServerSettings(limits=Limits(seconds=0.05))
    with serve(Pool([str(small_talk)], {"n_ctx": 8192, "threads": 1}, isolate=False), short) as served:
        _ = served.model
        assert asked(served, STORY, status=504)["error"]["code"] == "timeout"
        given = {"messages": [STORY], "temperature": 0, "stream": True}
        response = served.client.post("/v1/chat/completions", json=given)
        last = response.text.strip().split("\n\n")[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "timeout"


def test_a_model_in_a_process_of_its_own_says_the_same(talk: Served, small_talk: Path) -> None:
    given = {"logprobs": True, "top_logprobs": 2, "seed": 1, "n": 2, "reasoning_effort": "low", "tool_choice": "none"}
    with serve(Pool([str(small_talk)], {"n_ctx": 512, "threads": 1})) as isolated:
        for one, other in zip(asked(isolated, **given)["choices"], asked(talk, **given)["choices"], strict=True):
            assert one["message"] == other["message"]
            tokens = [[entry["token"] for entry in choice["logprobs"]["content"]] for choice in (one, other)]
            assert tokens[0] == tokens[1]
        assert joined(streamed(isolated, **given)) == ANSWER
        assert isolated.client.post("/tokenize", json={"content": "a", "with_pieces": True}).status_code == 200

"""Completions: texts continued as they stand, by OpenAI's own client and as they are sent."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion
from serving import Served, serve

from edge_llama.server.openai import completion_objects
from edge_llama.server.pool import Pool

PROMPT, REST = "The capital of Japan", " is Tokyo."
OTHER, OTHER_REST = "The capital of Italy", " is Rome."


@pytest.fixture(scope="module")
def talk(small_talk: Path) -> Iterator[Served]:
    with serve(Pool([str(small_talk)], {"n_ctx": 512, "threads": 1}, isolate=False)) as served:
        yield served


def completed(served: Served, status: int = 200, **fields: Any) -> dict[str, Any]:
    """The body of the answer to a request, which is as documented."""
    given = {"prompt": PROMPT, "temperature": 0, "stop": ["\n", ".T"], **fields}
    response = served.client.post("/v1/completions", json=given)
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    if status == 200:
        completion_objects.Completion.model_validate(body)
        Completion.model_validate(body)
    return body


def streamed(served: Served, **fields: Any) -> list[dict[str, Any]]:
    given = {"prompt": PROMPT, "temperature": 0, "stream": True, **fields}
    response = served.client.post("/v1/completions", json=given)
    assert response.status_code == 200, response.text
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    for chunk in chunks:
        completion_objects.Completion.model_validate(chunk)
    return chunks


def texts(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    return "".join(each["text"] for chunk in chunks for each in chunk["choices"] if each["index"] == choice)


def test_the_client_gets_a_continuation(talk: Served) -> None:
    with openai.OpenAI(base_url=f"{talk.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(model="small_talk", prompt=PROMPT, temperature=0, max_tokens=8)
        assert answer.choices[0].text.startswith(REST)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(talk.model.tokenizer.encode(PROMPT))
        stream = client.completions.create(model="small_talk", prompt=PROMPT, temperature=0, max_tokens=8, stream=True)
        parts = [chunk.choices[0] for chunk in stream]
        assert "".join(part.text for part in parts) == answer.choices[0].text
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [answer.choices[0].finish_reason]


def test_sixteen_tokens_unless_more_are_asked_for(talk: Served) -> None:
    body = completed(talk, prompt="1 2 3", stop=None, logit_bias={str(talk.model.tokenizer.encode(" 4")[0]): 100})
    assert body["usage"]["completion_tokens"] == 16
    assert body["choices"][0]["finish_reason"] == "length"


def test_several_prompts_with_several_answers(talk: Served) -> None:
    for _ in range(2):
        body = completed(talk, prompt=[PROMPT, OTHER], n=2, max_tokens=8)
        read = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert body["usage"]["edge_llama"]["cached_tokens"] == read
    assert read > len(talk.model.tokenizer.encode(PROMPT))  # both were
    found = [
        choice["text"][: len(rest)]
        for choice, rest in zip(body["choices"], [REST, REST, OTHER_REST, OTHER_REST], strict=True)
    ]
    assert found == [REST, REST, OTHER_REST, OTHER_REST]
    both = [len(talk.model.tokenizer.encode(text)) for text in (PROMPT, OTHER)]
    assert body["usage"]["prompt_tokens"] == sum(both)
    chunks = streamed(talk, prompt=[PROMPT, OTHER], n=2, max_tokens=8, stream_options={"include_usage": True})
    assert [texts(chunks, choice) for choice in range(4)] == [choice["text"] for choice in body["choices"]]
    assert chunks[-1]["usage"]["prompt_tokens"] == sum(both)
    assert "at most 16" in completed(talk, prompt=[PROMPT] * 9, n=2, status=400)["error"]["message"]


def test_a_prompt_may_stand_before_its_answer(talk: Served) -> None:
    for fields in ({}, {"prompt": [PROMPT, OTHER]}):
        body = completed(talk, echo=True, max_tokens=8, **fields)
        assert body["choices"][0]["text"].startswith(PROMPT + REST)
        chunks = streamed(talk, echo=True, max_tokens=8, stop=["\n", ".T"], **fields)
        assert [texts(chunks, at) for at in range(len(body["choices"]))] == [each["text"] for each in body["choices"]]
    assert completed(talk, echo=True, logprobs=0, status=400)["error"]["param"] == "logprobs"


def test_token_ids_are_continued_exactly_or_not_at_all(talk: Served) -> None:
    tokenizer = talk.model.tokenizer
    ids = tokenizer.encode(PROMPT)
    whole = completed(talk, max_tokens=4)
    assert completed(talk, prompt=ids, max_tokens=4)["choices"] == whole["choices"]
    assert completed(talk, prompt=[ids, ids], max_tokens=4)["choices"][1]["text"] == whole["choices"][0]["text"]
    other = tokenizer.encode("c") + tokenizer.encode("a") + tokenizer.encode("p")
    control = [tokenizer.control_tokens["<|im_start|>"], *ids]
    for wrong in (other, control, [tokenizer.n_vocab], [ids, control]):
        assert "token" in completed(talk, prompt=wrong, status=400)["error"]["message"]
    for mixture in ([PROMPT, 5], [PROMPT, [5]], [5, PROMPT], [[5], 5]):
        assert completed(talk, prompt=mixture, status=400)["error"]["param"] == "prompt.1"
    assert "expected a text, a list" in completed(talk, prompt=[{}], status=400)["error"]["message"]


def test_more_token_ids_than_fit_are_not_joined(talk: Served) -> None:
    for wrong in ([5] * 513, [[5], [5] * 513]):
        error = completed(talk, prompt=wrong, status=400)["error"]
        assert error["code"] == "context_length_exceeded"
        assert "513 tokens > 512 maximum" in error["message"]


def test_log_probabilities_are_parallel_lists(talk: Served) -> None:
    (choice,) = completed(talk, logprobs=2, max_tokens=6)["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert told["text_offset"] == [len("".join(told["tokens"][:at])) for at in range(len(told["tokens"]))]
    assert [max(top, key=lambda token: top[token]) for top in told["top_logprobs"]] == told["tokens"]
    assert all(len(top) == 2 for top in told["top_logprobs"])
    chunks = streamed(talk, logprobs=2, max_tokens=6)
    found = [each["logprobs"] for chunk in chunks for each in chunk["choices"] if each["logprobs"]]
    for key in ("tokens", "token_logprobs", "text_offset"):
        assert [entry for each in found for entry in each[key]] == told[key]
    assert completed(talk, logprobs=0, max_tokens=6)["choices"][0]["logprobs"]["top_logprobs"] is None


def test_an_empty_prompt_is_told_of(talk: Served) -> None:
    assert "empty" in completed(talk, prompt="", status=400)["error"]["message"]
    assert "prompt" in completed(talk, prompt=[], status=400)["error"]["message"]
    assert "prompt" in completed(talk, prompt=None, status=400)["error"]["message"]
    long = completed(talk, prompt="apple, river, " * 300, status=400)["error"]
    assert long["code"] == "context_length_exceeded"


def test_a_form_holds_for_completions_too(talk: Served) -> None:
    assert completed(talk, regex=" is (Bonn|Rome)")["choices"][0]["text"] in (" is Bonn", " is Rome")


def test_token_ids_are_taken_as_they_are_where_that_is_asked_for(talk: Served) -> None:
    tokenizer, control = talk.model.tokenizer, talk.model.tokenizer.control_tokens
    start, end = control["<|im_start|>"], control["<|im_end|>"]
    asked = [start, *tokenizer.encode("user\nWhat is the capital of Japan?"), end, *tokenizer.encode("\n")]
    prompt = [*asked, start, *tokenizer.encode("assistant\n")]
    whole = {"stop": None, "max_tokens": 20, "allow_control_tokens": True, "return_token_ids": True}
    body = completed(talk, prompt=prompt, **whole)
    (choice,) = body["choices"]
    assert choice["text"] == "The capital of Japan is Tokyo."
    assert choice["token_ids"] == tokenizer.encode(choice["text"])
    assert body["usage"]["prompt_tokens"] == len(prompt)
    chunks = streamed(talk, prompt=prompt, **whole)
    told = [token for chunk in chunks for each in chunk["choices"] for token in each["token_ids"]]
    assert (texts(chunks), told) == (choice["text"], choice["token_ids"])
    assert len(completed(talk, prompt=[prompt, prompt], n=2, **whole)["choices"]) == 4
    for wrong in (PROMPT, [PROMPT], [tokenizer.n_vocab], [[5], [tokenizer.n_vocab]]):
        assert completed(talk, prompt=wrong, status=400, allow_control_tokens=True)["error"]["param"] in (
            "prompt",
            "prompt.1",
        )
    assert completed(talk, prompt=prompt, echo=True, status=400, **whole)["error"]["param"] == "echo"
    assert completed(talk, prompt=[5] * 600, status=400, **whole)["error"]["code"] == "context_length_exceeded"
    assert "token_ids" not in completed(talk)["choices"][0]


def test_log_probabilities_may_name_tokens_by_their_ids(talk: Served) -> None:
    plain = completed(talk, logprobs=2, max_tokens=6)["choices"][0]["logprobs"]
    fields = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    (choice,) = completed(talk, logprobs=2, max_tokens=6, **fields)["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
    assert choice["logprobs"]["token_logprobs"] == plain["token_logprobs"]
    assert all(name.startswith("token_id:") for top in choice["logprobs"]["top_logprobs"] for name in top)


def test_a_schema_holds_for_completions(talk: Served) -> None:
    schema = {"type": "object", "properties": {"x": {"const": 5}}, "required": ["x"], "additionalProperties": False}
    assert json.loads(completed(talk, json_schema=schema, stop=None, max_tokens=40)["choices"][0]["text"]) == {"x": 5}
    assert "json_schema" in completed(talk, json_schema={"type": "x"}, status=400)["error"]["message"]

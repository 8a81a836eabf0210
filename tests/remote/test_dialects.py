"""What each kind of server is asked in, what is made of its answers, and what it is refused for by name."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scripted_server import DONE, Scripted, as_json, events, said, scripted
from talk import TEMPLATE, THINKING

import edge_llama
from edge_llama import Alternative, Model, OptionError, TokenLogprobs

SCHEMA = {"type": "object", "properties": {}}
END = events(said("", [], "stop"), DONE)


@contextmanager
def served_as(
    kind: str, small_talk: Path, local: Model, template: str = TEMPLATE, version: str = "0.32.0"
) -> Iterator[tuple[Model, Scripted]]:
    with scripted(local.tokenizer, kind) as script:
        script.places["/version"] = as_json(200, {"version": version})
        script.replies = [END]
        with edge_llama.open(script.url, tokenizer=small_talk, chat_template=template) as model:
            yield model, script


def body(model: Model, script: Scripted, **options: Any) -> dict[str, Any]:
    """What is sent for an answer by these options."""
    script.requests.clear()
    model.chat().send("Hello!", **options).result()
    (found,) = script.completions
    assert isinstance(found, dict)
    return found


COMMON: dict[str, Any] = {
    "model": "scripted",
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.7,
    "min_p": 0.1,
    "repetition_penalty": 1.25,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.25,
    "seed": 7,
    "logit_bias": {"5": -3.5},
    "max_tokens": 11,
}
GIVEN: dict[str, Any] = {
    **{name: COMMON[name] for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")},
    **{name: COMMON[name] for name in ("frequency_penalty", "presence_penalty", "max_tokens")},
    "logit_bias": {5: -3.5},
    "stop": ["never"],
}
OWN: dict[str, dict[str, Any]] = {
    "edge-llama": {"return_token_ids": True, "allow_control_tokens": True},
    "vllm": {"return_token_ids": True, "stop_token_ids": [0, 2]},
    "other": {"return_token_ids": True},
    "llamacpp": {
        "repeat_penalty": 1.25,
        "repeat_last_n": 64,
        "verbose": True,
        "response_fields": ["tokens", "tokens_predicted", "stop_type"],
    },
}


@pytest.mark.parametrize("kind", OWN)
def test_all_options_are_sent(small_talk: Path, local: Model, kind: str) -> None:
    with served_as(kind, small_talk, local) as (model, script):
        sent = body(model, script, **GIVEN)
        assert sent.pop("prompt") == local.template.tokens([edge_llama.Message("user", "Hello!")])
        assert sent == {**COMMON, **OWN[kind]}
        bare = body(model, script)
        assert "seed" not in bare
        assert "logit_bias" not in bare
        assert bare["max_tokens"] == 512 - len(bare["prompt"])
        assert (bare["temperature"], bare["top_k"], bare["top_p"], bare["min_p"]) == (0.6, 40, 0.9, 0.05)


FORMS = {
    ("edge-llama", "json_schema"): {"json_schema": SCHEMA},
    ("edge-llama", "regex"): {"regex": "a+"},
    ("edge-llama", "grammar"): {"grammar": 'start: "a"'},
    ("vllm", "json_schema"): {"structured_outputs": {"json": SCHEMA}},
    ("vllm", "regex"): {"structured_outputs": {"regex": "a+"}},
    ("llamacpp", "json_schema"): {"json_schema": SCHEMA},
}
VALUES: dict[str, Any] = {"json_schema": SCHEMA, "regex": "a+", "grammar": 'start: "a"'}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("form", VALUES)
def test_a_form_is_asked_for_or_refused_by_name(small_talk: Path, local: Model, kind: str, form: str) -> None:
    with served_as(kind, small_talk, local) as (model, script):
        script.replies = [events(said("", [], "length"), DONE)]
        if (kind, form) in FORMS:
            sent = body(model, script, **{form: VALUES[form]})
            assert sent.items() >= FORMS[kind, form].items()
            return
        script.requests.clear()
        with pytest.raises(OptionError, match=rf"{form} is not to be had of http://127.0.0.1:\d+/v1 \(.*; leave it"):
            model.chat().send("Hello!", **{form: VALUES[form]})
        assert script.requests == []


def test_an_older_vllm_is_asked_in_its_words(small_talk: Path, local: Model) -> None:
    with served_as("vllm", small_talk, local, version="0.10.2") as (model, script):
        script.replies = [events(said("", [], "length"), DONE)]
        assert body(model, script, json_schema=SCHEMA)["guided_json"] == SCHEMA
    with served_as("vllm", small_talk, local, version="dev") as (model, script):
        script.replies = [events(said("", [], "length"), DONE)]
        assert "structured_outputs" in body(model, script, json_schema=SCHEMA)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("edge-llama", {"logits_processor": lambda _ids, logits: logits}, "logits_processor, a Python function, is not"),
    ("edge-llama", {"json_schema": True}, "json_schema that is true or false is not to be had"),
    ("edge-llama", {"penalty_window": 9, "repetition_penalty": 2.0}, "penalty_window is not to be had"),
    ("edge-llama", {"logit_bias": {5: 101}}, "logit_bias of token 5 is 101, .* takes -100 to 100"),
    ("edge-llama", {"json_schema": {"type": "nothing"}}, "json_schema: "),
    ("edge-llama", {"json_schema": {"$ref": "http://192.0.2.1/x"}}, "json_schema"),
    ("edge-llama", {"regex": "("}, "regex: "),
    ("edge-llama", {"logit_bias": {1 << 20: 1}}, "logit_bias"),
    ("other", {"logprobs": 1}, "logprobs is not to be had of .*a server of a kind that is not known here"),
]


@pytest.mark.parametrize("at", range(len(REFUSED)))
def test_what_can_not_be_had_is_refused_before_anything_is_sent(small_talk: Path, local: Model, at: int) -> None:
    kind, options, message = REFUSED[at]
    with served_as(kind, small_talk, local) as (model, script):
        script.requests.clear()
        with pytest.raises(OptionError, match=message):
            model.chat().send("Hello!", **options)
        assert script.requests == []


def test_a_window_that_changes_nothing_is_none(small_talk: Path, local: Model) -> None:
    with served_as("vllm", small_talk, local) as (model, script):
        body(model, script, penalty_window=9)
        sent = body(model, script, penalty_window=0, repetition_penalty=2.0)
        assert sent["repetition_penalty"] == 1.0
    with served_as("llamacpp", small_talk, local) as (model, script):
        assert body(model, script, penalty_window=9, repetition_penalty=2.0)["repeat_last_n"] == 9
        assert body(model, script, logit_bias={5: -10_000})["logit_bias"] == {"5": -10_000.0}


def test_log_probabilities_of_vllm(small_talk: Path, local: Model) -> None:
    """The sampled token stands beside the likeliest, what can't come is -9999."""
    logprobs = {
        "tokens": ["token_id:5", "token_id:6"],
        "token_logprobs": [-2.5, -9999.0],
        "top_logprobs": [{"token_id:5": -2.5, "token_id:9": -0.5, "token_id:8": -1.5}, {"token_id:6": -9999.0}],
        "text_offset": [0, 1],
    }
    with served_as("vllm", small_talk, local) as (model, script):
        script.replies = [events(said("xy", [5, 6], logprobs=logprobs), said("", [], "stop"), DONE)]
        answer = model.chat().send("Hello!", logprobs=2).result()
        assert answer.logprobs == (
            TokenLogprobs(5, -2.5, (Alternative(9, -0.5), Alternative(8, -1.5))),
            TokenLogprobs(6, -math.inf, (Alternative(6, -math.inf),)),
        )
        assert script.completions[0]["return_tokens_as_token_ids"] is True
        wrong = ({**logprobs, "tokens": ["x", "y"]}, {**logprobs, "token_logprobs": [1.0, 0.0]}, {"tokens": 5})
        for each in (*wrong, {**logprobs, "tokens": ["token_id:6", "token_id:5"]}, {**logprobs, "token_logprobs": []}):
            script.replies = [events(said("xy", [5, 6], logprobs=each), DONE)]
            with pytest.raises(edge_llama.RemoteError, match="sends what is not understood"):
                model.chat().send("Hello!", logprobs=2).result()


def by_llama_server(text: str, token: int | None, reason: str | None = None) -> dict[str, Any]:
    """An event as llama-server writes it."""
    told = {"__verbose": {"tokens": [] if token is None else [token]}}
    return {**said(text, reason=reason, logprobs=None), **told}


def test_text_of_llama_server_is_whole_though_ids_are_missing(small_talk: Path, local: Model) -> None:
    """It tells nothing of tokens that end within a character: a llama is four of them, of which the last is told."""
    llama = local.tokenizer.encode("🦙")
    assert len(llama) > 1
    a, end = local.tokenizer.encode("a")[0], local.tokenizer.control_tokens["<|im_end|>"]
    usage = {"prompt_tokens": 9, "completion_tokens": len(llama) + 1, "prompt_tokens_details": {"cached_tokens": 3}}
    with served_as("llamacpp", small_talk, local) as (model, script):
        script.replies = [
            events(
                by_llama_server("a", a),
                by_llama_server("🦙", llama[-1]),
                by_llama_server("", end),
                {**by_llama_server("", None, "stop"), "usage": usage},
                DONE,
            )
        ]
        answer = model.chat().send("Hello!").result()
        assert (answer.text, answer.tokens, answer.finish_reason) == ("a🦙", (a, llama[-1]), "stop")
        assert (answer.timings.generated_tokens, answer.timings.cached_tokens) == (len(llama) + 1, 3)
        script.replies = [events(by_llama_server("a", a), by_llama_server("", None, "length"), DONE)]
        assert model.chat().send("Hello!").result().finish_reason == "length"
        stopped = events(by_llama_server("a", a), by_llama_server("🦙 b", llama[-1]), is_cut=True)
        script.replies = [stopped]
        assert model.chat().send("Hello!", stop=["🦙"]).result().text == "a"


def test_log_probabilities_of_llama_server(small_talk: Path, local: Model) -> None:
    entry = {"id": 5, "logprob": -0.5, "top_logprobs": [{"id": 5, "logprob": -0.5}, {"id": 6, "logprob": -3.0e38}]}
    event = by_llama_server("x", 5)
    event["choices"][0]["logprobs"] = {"content": [entry]}
    with served_as("llamacpp", small_talk, local) as (model, script):
        script.replies = [events(event, by_llama_server("", None, "stop"), DONE)]
        answer = model.chat().send("Hello!", logprobs=2).result()
        assert answer.logprobs == (TokenLogprobs(5, -0.5, (Alternative(5, -0.5), Alternative(6, -math.inf))),)
        assert model.chat().send("Hello!", logprobs=0).result().logprobs == (TokenLogprobs(5, -0.5, ()),)
        assert [sent["logprobs"] for sent in script.completions] == [2, 1]


def test_a_server_that_tells_no_ids_is_believed_its_text(small_talk: Path, local: Model) -> None:
    with served_as("other", small_talk, local) as (model, script):
        script.replies = [events(said("<|im_end|>yes"), said(" 🦙"), said("", reason="stop"), DONE)]
        answer = model.chat().send("Hello!").result()
        assert (answer.text, answer.tokens, answer.finish_reason) == ("<|im_end|>yes 🦙", (), "stop")
        script.replies = [events(said("thoughts</think>yes"), said("", reason="stop"), DONE)]
        with edge_llama.open(script.url, tokenizer=small_talk, chat_template=THINKING) as thinker:
            assert thinker.chat().send("Hello!").result().thinking == "thoughts"
            script.replies = [events(*(said(f" thought {at}") for at in range(20)), DONE)]
            with pytest.raises(edge_llama.RemoteError, match="does not tell all tokens"):
                thinker.chat().send("Hello!", thinking_budget=3).result()
        flood = events(*(said("x") for _ in range(600)), DONE)
        script.replies = [flood]
        with pytest.raises(edge_llama.RemoteError, match="more than the context holds"):
            model.chat().send("Hello!").result()


def test_thoughts_of_text_are_told_apart_and_can_not_be_bounded(small_talk: Path, local: Model) -> None:
    with served_as("llamacpp", small_talk, local, THINKING) as (model, script):
        script.replies = [events(by_llama_server("no</think>yes", 5), by_llama_server("", None, "stop"), DONE)]
        answer = model.chat().send("Hello!").result()
        assert (answer.thinking, answer.text) == ("no", "yes")
        for name, options in {
            "thinking_budget": {"thinking_budget": 5},
            "a form after thoughts": {"json_schema": SCHEMA},
        }.items():
            with pytest.raises(OptionError, match=f"{name} is not to be had of .*: it does not tell all tokens"):
                model.chat().send("Hello!", **options)  # type: ignore[arg-type] # by their names
        sent = body(model, script, thinking_budget=0)
        closed = local.tokenizer.encode_parts(["\n", "</think>", "\n\n"])
        assert sent["prompt"][-len(closed) :] == closed


def test_an_adapter_of_vllm_has_the_context_of_its_model(small_talk: Path, local: Model) -> None:
    with scripted(local.tokenizer, "vllm") as script:
        base = {"id": "base", "owned_by": "vllm", "max_model_len": 256}
        script.places["/v1/models"] = as_json(
            200, {"data": [base, {"id": "lora", "owned_by": "vllm", "parent": "base"}]}
        )
        with edge_llama.open(script.url, model="lora", tokenizer=small_talk) as model:
            assert model.n_ctx == 256
        assert json.dumps(script.requests).count('"model": "lora"') == 2


def test_how_many_tokens_an_answer_may_have_there_is_heeded(small_talk: Path, local: Model) -> None:
    with scripted(local.tokenizer) as script:
        entry = {"id": "a", "owned_by": "edge-llama", "edge_llama": {"n_ctx": 512, "max_tokens": 20}}
        script.places["/v1/models"] = as_json(200, {"data": [entry]})
        script.replies = [END]
        with edge_llama.open(script.url, tokenizer=small_talk, chat_template=TEMPLATE) as model:
            assert body(model, script)["max_tokens"] == 20
            assert body(model, script, max_tokens=5)["max_tokens"] == 5

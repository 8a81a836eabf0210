"""A caller's functions over the logits: on both engines, with both samplers, beside grammars and logprobs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import CAPITAL, on_engine
from numpy.typing import NDArray

import edge_llama
from edge_llama import OptionError

PROMPT = "Once upon a time"
DRAWN = {"temperature": 1.5, "seed": 3}
"""Drawn by llama.cpp's own chain where it has one; at temperature 0 it is always our sampler."""


@pytest.fixture(scope="module")
def on_onnx(onnx_folder: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(onnx_folder, n_ctx=512) as opened:
        yield opened


@pytest.fixture(params=["llama.cpp", "ONNX Runtime"])
def either(request: pytest.FixtureRequest, exact: edge_llama.Model, on_onnx: edge_llama.Model) -> edge_llama.Model:
    """A model of each engine."""
    return exact if request.param == "llama.cpp" else on_onnx


def only(token: int) -> edge_llama.LogitsProcessor:
    def processor(_token_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        forced = np.full_like(logits, -np.inf)
        forced[token] = logits[token]
        return forced

    return processor


def never(*tokens: int) -> edge_llama.LogitsProcessor:
    def processor(_token_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits[list(tokens)] = -np.inf
        return logits

    return processor


def answer(model: edge_llama.Model, **options: Any) -> edge_llama.Answer:
    return model.generate(PROMPT, max_tokens=6, **options).result()


@pytest.mark.parametrize("sampling", [{"temperature": 0}, DRAWN], ids=str)
def test_a_token_is_banned(either: edge_llama.Model, sampling: dict[str, Any]) -> None:
    banned = answer(either, **sampling).tokens[0]
    found = answer(either, logits_processor=never(banned), **sampling)
    assert found.tokens
    assert banned not in found.tokens


@pytest.mark.parametrize("sampling", [{"temperature": 0}, DRAWN], ids=str)
def test_a_token_is_forced(either: edge_llama.Model, sampling: dict[str, Any]) -> None:
    token = 100 if 100 not in answer(either, temperature=0).tokens else 101
    assert not either.tokenizer.is_end(token)
    assert answer(either, logits_processor=only(token), **sampling).tokens == (token,) * 6


def test_it_is_given_the_tokens_so_far_and_the_models_own_logits(either: edge_llama.Model) -> None:
    calls: list[tuple[list[int], NDArray[np.float32]]] = []

    def watch(token_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        calls.append((list(token_ids), logits.copy()))
        return logits

    bos = either.tokenizer.bos
    prompt = ([] if bos is None else [bos]) + either.tokenizer.encode(PROMPT)
    found = answer(either, logits_processor=watch, temperature=0)
    assert found.tokens == answer(either, temperature=0).tokens
    assert [ids for ids, _ in calls] == [prompt + list(found.tokens[:count]) for count in range(len(calls))]
    assert len(calls) >= len(found.tokens)
    assert {logits.dtype for _, logits in calls} == {np.dtype(np.float32)}
    assert {logits.shape for _, logits in calls} == {(either.tokenizer.n_vocab,)}
    assert [int(logits.argmax()) for _, logits in calls[: len(found.tokens)]] == list(found.tokens)


def test_several_are_applied_in_order(either: edge_llama.Model) -> None:
    order: list[str] = []

    def noting(name: str) -> edge_llama.LogitsProcessor:
        def processor(_token_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            order.append(name)
            return logits

        return processor

    found = answer(either, logits_processor=(noting("first"), only(100), noting("last")), temperature=0)
    assert set(found.tokens) == {100}
    assert order == ["first", "last"] * 6


def test_a_grammar_holds_as_well(exact: edge_llama.Model) -> None:
    choice = {"regex": "(red|blue|green)", "temperature": 0}
    plain = exact.generate("Colours: ", max_tokens=9, **choice).result()
    begins = [
        token for token in range(exact.tokenizer.n_vocab) if exact.tokenizer.piece(token)[:1] == plain.text[:1].encode()
    ]
    found = exact.generate("Colours: ", max_tokens=9, logits_processor=never(*begins), **choice).result()
    assert found.finish_reason == "stop"
    assert found.text in {"red", "blue", "green"} - {plain.text}


def test_nothing_that_the_grammar_allows_is_an_error(exact: edge_llama.Model) -> None:
    token = next(token for token in range(exact.tokenizer.n_vocab) if exact.tokenizer.piece(token) == b"x")
    with pytest.raises(OptionError, match="no token that the schema, regex or grammar allows"):
        answer(exact, logits_processor=only(token), regex="[0-9]+")


def test_logprobs_are_the_models_own(either: edge_llama.Model) -> None:
    plain = answer(either, temperature=0, logprobs=3)
    forced = answer(either, temperature=0, logprobs=3, logits_processor=only(100))
    assert forced.logprobs[0].token_id == 100
    tops = [[each.logprob for each in found.logprobs[0].top] for found in (forced, plain)]
    assert tops[0] == pytest.approx(tops[1], abs=1e-3)
    assert forced.logprobs[0].top[0].token_id == plain.logprobs[0].top[0].token_id
    assert forced.logprobs[0].logprob < plain.logprobs[0].top[0].logprob


@pytest.mark.parametrize("sampling", [{"temperature": 0}, DRAWN], ids=str)
def test_logits_are_whole_again_for_the_next_answer(either: edge_llama.Model, sampling: dict[str, Any]) -> None:
    def at_the_prompts_end(**options: Any) -> NDArray[np.float32]:
        either.generate(PROMPT, max_tokens=1, **options).result()
        return on_engine(either, lambda session, _tower: session.logits())

    before, plain = at_the_prompts_end(temperature=0), answer(either, **sampling)
    assert np.array_equal(at_the_prompts_end(logits_processor=only(100), **sampling), before)
    with pytest.raises(OptionError):
        answer(either, logits_processor=(never(5), lambda _ids, _logits: 1 / 0))
    assert np.array_equal(on_engine(either, lambda session, _tower: session.logits()), before)
    again = either.generate(PROMPT, max_tokens=6, **sampling).result()
    assert again.tokens == plain.tokens


def test_also_where_logits_came_back_with_a_chats_cache(exact: edge_llama.Model) -> None:
    """llama.cpp's chain reads its context's logits; after a cache was loaded they lie elsewhere."""
    chat, other = exact.chat(), exact.chat()
    first = chat.send(CAPITAL, max_tokens=1, **DRAWN).result()
    other.send("Hello", max_tokens=1).result()
    banned = chat.retry(max_tokens=1, logits_processor=never(*first.tokens), **DRAWN).result()
    other.send("Hello again", max_tokens=1).result()
    assert banned.tokens != first.tokens
    assert chat.retry(max_tokens=1, **DRAWN).result().tokens == first.tokens


def raising(_token_ids: Sequence[int], _logits: NDArray[np.float32]) -> NDArray[np.float32]:
    raise KeyError("a table that isn't there")


WRONG: dict[str, tuple[Any, str]] = {
    "raises": (raising, "it raised KeyError: .a table that isn't there"),
    "leaves": (lambda _ids, _logits: (_ for _ in ()).throw(SystemExit), "SystemExit"),
    "nothing": (lambda _ids, _logits: None, "expected numbers of"),
    "short": (lambda _ids, logits: logits[:-1], "expected numbers of"),
    "a row": (lambda _ids, logits: logits[None], "expected numbers of"),
    "texts": (lambda _ids, logits: logits.astype(str), "expected numbers of"),
    "complex": (lambda _ids, logits: logits + 1j, "expected numbers of"),
    "NaN": (lambda _ids, logits: np.where(np.arange(len(logits)) == 7, np.nan, logits), "is nan"),
    "infinite": (lambda _ids, logits: np.where(np.arange(len(logits)) == 7, np.inf, logits), "is inf"),
    "too large": (lambda _ids, logits: np.where(np.arange(len(logits)) == 7, np.float64(1e300), logits), "is inf"),
    "none left": (lambda _ids, logits: np.full_like(logits, -np.inf), "is -inf"),
    "none left in float32": (lambda _ids, logits: np.full(len(logits), -1e300), "is -inf"),
    "no function": ([5], "expected a function"),
    "no functions": (5, "expected a function"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("sampling", [{"temperature": 0}, DRAWN], ids=str)
def test_a_wrong_one_ends_its_answer_by_a_typed_error(
    either: edge_llama.Model, name: str, sampling: dict[str, Any]
) -> None:
    processor, message = WRONG[name]
    kind = edge_llama.EngineError if name == "leaves" else OptionError
    with pytest.raises(kind, match=message):
        answer(either, logits_processor=processor, **sampling)
    assert len(answer(either, **sampling).tokens) == 6


@pytest.mark.parametrize("low", [-np.inf, -1e300, -1e30, -1e8])
def test_any_number_below_may_stand_for_never(either: edge_llama.Model, low: float) -> None:
    def processor(_token_ids: Sequence[int], logits: NDArray[np.float32]) -> Any:
        return np.where(np.arange(len(logits)) == 100, 1e8, np.float64(low))

    for temperature in (0, 1e-30, 1.0):
        assert answer(either, logits_processor=processor, temperature=temperature, seed=1).tokens == (100,) * 6


def test_a_chat_takes_it_for_all_answers_and_for_one(exact: edge_llama.Model) -> None:
    chat = exact.chat(logits_processor=only(100), max_tokens=3, temperature=0)
    assert chat.send(CAPITAL).result().tokens == (100,) * 3
    assert set(chat.send(CAPITAL, logits_processor=None).result().tokens) != {100}

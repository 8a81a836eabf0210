"""Logprobs are the model's own, whatever was chosen and how."""

import numpy as np
import pytest
from engines import Session, on_engine
from numpy.typing import NDArray

import edge_llama
from edge_llama.backends.base import TextTower
from edge_llama.sampling.logprobs import Distribution, likeliest

PROMPT = "My favourite colour is"
WILD = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.5, "presence_penalty": 1.0}


def reference(model: edge_llama.Model, tokens: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """The log-softmax at each place of ``tokens`` after the prompt, computed from the engine's logits."""

    def work(session: Session, tower: TextTower) -> list[NDArray[np.float64]]:
        found = []
        session.prefill(tower.tokenizer.encode(PROMPT))
        for token in tokens:
            logits = session.logits().astype(np.float64)
            found.append(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
            session.append(token)
        return found

    return on_engine(model, work)


def test_logprobs_are_of_the_raw_distribution_whatever_the_settings(exact: edge_llama.Model) -> None:
    answer = exact.generate(PROMPT, seed=5, max_tokens=10, logprobs=4, logit_bias={11: 5.0}, **WILD).result()
    assert [entry.token_id for entry in answer.logprobs] == list(answer.tokens)
    for entry, expected in zip(answer.logprobs, reference(exact, answer.tokens), strict=True):
        assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-3)
        best = np.argsort(-expected, kind="stable")[:4]
        assert [other.token_id for other in entry.top] == best.tolist()
        assert [other.logprob for other in entry.top] == pytest.approx(expected[best].tolist(), abs=1e-3)


def test_a_mask_does_not_change_them(exact: edge_llama.Model) -> None:
    answer = exact.generate(PROMPT, regex="(zq)+", seed=1, max_tokens=4, logprobs=3).result()
    for entry, expected in zip(answer.logprobs, reference(exact, answer.tokens), strict=True):
        assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-3)
        assert entry.token_id not in [other.token_id for other in entry.top]


def test_asking_does_not_change_the_answer(exact: edge_llama.Model) -> None:
    plain = exact.generate(PROMPT, seed=5, max_tokens=10, **WILD).result()
    asked = exact.generate(PROMPT, seed=5, max_tokens=10, logprobs=0, **WILD).result()
    assert asked.tokens == plain.tokens
    assert plain.logprobs == ()
    assert all(entry.top == () and entry.logprob <= 0 for entry in asked.logprobs)


def test_each_piece_carries_those_of_its_tokens(model: edge_llama.Model) -> None:
    """Also where characters span tokens, a stop string cuts text, and an end token, which is no part, ends all."""
    line = "🦙🏔️🇯🇵 日本 🦙🏔️🇯🇵 日本 "
    runs = [
        model.generate(line * 12, temperature=0, max_tokens=30, logprobs=1),
        model.generate("1 2 3 4 5 6 7", temperature=0, max_tokens=20, logprobs=1, stop=["9"]),
        model.chat().send("What is the capital of Japan?", temperature=0, logprobs=1),
    ]
    for generation in runs:
        pieces = list(generation)
        for piece in pieces:
            assert tuple(entry.token_id for entry in piece.logprobs) == piece.token_ids
        assert generation.result().logprobs == tuple(entry for piece in pieces for entry in piece.logprobs)


def test_probabilities_sum_to_one_and_equals_come_in_order() -> None:
    logits = np.array([1.0, 3.0, 3.0, -np.inf, 2.0], np.float32)
    entry = Distribution(logits).of(3, 20)
    assert [other.token_id for other in entry.top] == [1, 2, 4, 0]
    assert sum(np.exp(other.logprob) for other in entry.top) == pytest.approx(1)
    assert entry.logprob == -np.inf


@pytest.mark.parametrize("count", [1, 5, 40, 999, 1000, 2000])
def test_the_likeliest_are_those_that_sorting_finds(count: int, rng: np.random.Generator) -> None:
    values = rng.integers(0, 300, 1000).astype(np.float32)
    assert likeliest(values, count).tolist() == np.argsort(-values, kind="stable")[:count].tolist()

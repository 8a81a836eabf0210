"""Our sampler and llama.cpp's chain give the same distribution; ours alone can be repeated by its seed."""

import ctypes
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import pytest
from engines import Session, on_engine
from numpy.typing import NDArray

import edge_llama
from edge_llama.backends.base import TextTower
from edge_llama.backends.llama_cpp.sampler import links
from edge_llama.sampling.numpy_sampler import NumpySampler
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.sampler import LogitsRow

Logits = NDArray[np.float32]
TOLERANCE = 1e-4
"""Total variation, half the sum of differences. Measured: 4e-6. llama.cpp adds up probabilities in float32, one after
the other: by that rounding top_p may cut one token earlier or later, whose weight is allowed for."""
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
HISTORY = (5, 9, 9, 9, 700, 5, 31, 9)

SPREAD: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 0.1, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {},
    {"top_k": 1, "temperature": 5.0},
    {"top_k": 300, "top_p": 1.0, "min_p": 0.0, "temperature": 1.3},
    {"top_k": 10**9, "top_p": 0.99},
    {"top_k": 0, "top_p": 0.3, "min_p": 0.0, "temperature": 2.0},
    {"top_k": 0, "top_p": 0.95, "min_p": 0.0},
    {"top_k": 0, "top_p": 0.9999, "min_p": 0.0},
    {"top_k": 0, "top_p": 0.0, "min_p": 0.0},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.02, "temperature": 1.5},
    {"top_k": 0, "top_p": 1.0, "min_p": 1.0},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.2, "temperature": 0.7},
    {"repetition_penalty": 1.3, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0},
    {"repetition_penalty": 0.7, "top_k": 20},
    {"frequency_penalty": 0.9, "temperature": 1.0},
    {"presence_penalty": -1.5, "temperature": 1.0, "top_k": 0},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.4, "penalty_window": 3, "top_k": 0},
    {"repetition_penalty": 1.2, "penalty_window": 0},
    {"logit_bias": {9: 8.0, 31: -10_000.0, 700: 2.5}, "temperature": 1.0},
    {"logit_bias": {9: 3.0}, "repetition_penalty": 1.5, "frequency_penalty": 0.5, "top_k": 0, "top_p": 0.9},
]


def native(logits: Logits, params: SamplingParams, history: Sequence[int]) -> tuple[NDArray[np.int32], Logits, int]:
    """Tokens and probabilities that llama.cpp's chain leaves of the logits, and the token it chooses."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    window = params.penalty_window if params.is_penalizing else 0
    for link in links(llama_cpp, len(logits), params, window):
        llama_cpp.llama_sampler_chain_add(chain, link)
    for token in history:
        llama_cpp.llama_sampler_accept(chain, token)
    candidates = np.zeros(len(logits), _CANDIDATE)
    candidates["id"], candidates["logit"] = np.arange(len(logits)), logits
    data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    left = candidates[: array.size]
    chosen = int(left["id"][array.selected])
    llama_cpp.llama_sampler_free(chain)
    return left["id"], left["p"], chosen


def variation(logits: Logits, params: SamplingParams, history: Sequence[int]) -> float:
    """Total variation between the two distributions, without the last token if only one of them has it."""
    theirs, ours = np.zeros(len(logits)), np.zeros(len(logits))
    ids, probabilities, _ = native(logits, params, history)
    theirs[ids] = probabilities
    tokens, mine = NumpySampler(params, history).distribution(logits)
    ours[tokens] = mine
    assert ours.sum() == pytest.approx(1)
    cut = np.flatnonzero((theirs == 0) != (ours == 0))
    last = float(max(theirs[cut[0]], ours[cut[0]])) if len(cut) == 1 else 0.0
    return float(np.abs(theirs - ours).sum() / 2) - last


@pytest.fixture(scope="module")
def real(model: edge_llama.Model) -> list[Logits]:
    """Logits of the built-in model: certain, less so, and open."""
    prompts = ["The capital of Japan is", "1 2 3 4 5 6 7", "My favourite", "<div>\n"]

    def work(session: Session, tower: TextTower) -> list[Logits]:
        logits = []
        for prompt in prompts:
            session.prefill(tower.tokenizer.encode(prompt))
            logits.append(session.logits())
        return logits

    return on_engine(model, work)


def synthetic(rng: np.random.Generator) -> list[Logits]:
    flat = rng.normal(0, 0.01, 2_000).astype(np.float32)
    spread = rng.normal(0, 3, 200_000).astype(np.float32)
    masked = np.where(rng.random(50_000) < 0.999, -np.inf, rng.normal(0, 3, 50_000)).astype(np.float32)
    masked[[5, 9]] = 1.0, -2.0
    negative = (rng.normal(-50, 4, 10_000)).astype(np.float32)
    return [flat, spread, masked, negative]


@pytest.mark.parametrize("params", SPREAD, ids=str)
def test_the_distribution_of_real_logits_equals_llama_cpps(params: dict[str, Any], real: list[Logits]) -> None:
    assert max(variation(logits, SamplingParams(seed=1, **params), HISTORY) for logits in real) <= TOLERANCE


@pytest.mark.parametrize("params", SPREAD, ids=str)
def test_the_distribution_of_random_logits_equals_llama_cpps(params: dict[str, Any], rng: np.random.Generator) -> None:
    differences = [variation(logits, SamplingParams(seed=1, **params), HISTORY) for logits in synthetic(rng)]
    assert max(differences) <= TOLERANCE, differences


def test_the_likeliest_token_equals_llama_cpps(real: list[Logits], rng: np.random.Generator) -> None:
    penalized = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "logit_bias": {9: 2.0}}
    for logits, more in itertools.product([*real, *synthetic(rng)], ({}, penalized)):
        params = SamplingParams(temperature=0, **more)
        history = (*HISTORY, int(logits.argmax()))
        assert NumpySampler(params, history).sample(LogitsRow(logits)) == native(logits, params, history)[2]


def test_what_was_sampled_is_penalized_and_forgotten_as_llama_cpp_does_it(rng: np.random.Generator) -> None:
    """Greedy with a frequency penalty walks through many tokens; each depends on all that the window holds."""
    logits = rng.normal(0, 0.5, 300).astype(np.float32)
    params = SamplingParams(temperature=0, frequency_penalty=0.7, repetition_penalty=1.1, penalty_window=12)
    ours = NumpySampler(params, HISTORY[:2])
    history = list(HISTORY[:2])
    for _ in range(60):
        history.append(native(logits, params, history)[2])
    assert [ours.sample(LogitsRow(logits)) for _ in range(60)] == history[2:]
    assert len(set(history)) > 12


def test_tokens_are_drawn_as_often_as_they_are_likely(real: list[Logits]) -> None:
    params = SamplingParams(temperature=1.0, top_k=5, top_p=1.0, min_p=0.0, seed=11)
    sampler = NumpySampler(params, ())
    tokens, probabilities = sampler.distribution(real[2])
    counts = Counter(sampler.sample(LogitsRow(real[2])) for _ in range(20_000))
    for token, probability in zip(tokens, probabilities, strict=True):  # six standard deviations
        assert abs(counts[int(token)] / 20_000 - probability) < 6 * np.sqrt(probability / 20_000)


def test_the_same_seed_draws_the_same_tokens(real: list[Logits]) -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = NumpySampler(SamplingParams(temperature=1.5, seed=seed), ())
        return [sampler.sample(LogitsRow(real[2])) for _ in range(50)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_logits_are_left_as_they_were(real: list[Logits]) -> None:
    before = real[0].copy()
    params = SamplingParams(repetition_penalty=1.5, logit_bias={5: 1.0}, seed=1)
    NumpySampler(params, HISTORY).sample(LogitsRow(real[0]))
    assert (real[0] == before).all()


def test_an_engine_without_a_sampler_answers_by_ours(exact: edge_llama.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(**params: Any) -> edge_llama.Answer:
        return exact.generate("My favourite colour is", max_tokens=24, **params).result()

    settings = {"temperature": 0, "repetition_penalty": 1.3, "frequency_penalty": 0.2, "logit_bias": {28: 1.5}}
    by_llama_cpp = answer(**settings)
    tower = exact._engine.tower
    monkeypatch.setattr(tower, "sampler", NumpySampler)
    assert answer(**settings).tokens == by_llama_cpp.tokens
    assert answer(seed=3).tokens == answer(seed=3).tokens
    assert answer(seed=3, temperature=1.5).tokens != answer(seed=4, temperature=1.5).tokens
    assert answer(seed=3, regex="(red|blue), (a|b){3}", temperature=1.5).text[-3:].strip("ab") == ""


def test_equal_logits_leave_exactly_top_k() -> None:
    params = SamplingParams(top_k=7, top_p=1.0, min_p=0.0, seed=1)
    tokens, probabilities = NumpySampler(params, ()).distribution(np.ones(1000, np.float32))
    assert (len(tokens), probabilities.max()) == (7, pytest.approx(1 / 7))

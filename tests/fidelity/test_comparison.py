"""Summaries of chunks: over all, by text, domain and position, from logits that are had a few rows at a time."""

import json

import numpy as np
import pytest
import torch
from logit_arrays import Arrays
from numpy.typing import NDArray

from edge_llama.errors import EngineError, InputError, OptionError
from edge_llama.fidelity import comparison
from edge_llama.fidelity.comparison import Comparison, compare
from edge_llama.fidelity.source import Chunk

VOCAB = 211
SHAPES = (("one", "prose", 1, 130), ("one", "prose", 65, 130), ("two", "code", 1, 200), ("three", "prose", 100, 101))


def chunks() -> list[Chunk]:
    random = np.random.default_rng(0)
    return [Chunk(random.integers(0, VOCAB, n), text, domain, begin) for text, domain, begin, n in SHAPES]


def arrays(seed: int, near: list[NDArray[np.float32]] | None = None) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    own = [random.standard_normal((n, VOCAB)).astype(np.float32) for *_, n in SHAPES]
    return own if near is None else [a + np.float32(0.2) * b for a, b in zip(near, own, strict=True)]


@pytest.fixture(scope="module")
def both() -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    reference = arrays(1)
    return reference, arrays(2, reference)


@pytest.fixture
def compared(both: tuple[list[NDArray[np.float32]], ...]) -> Comparison:
    return compare(Arrays("full", both[0]), Arrays("small", both[1]), chunks())


def by_torch(both: tuple[list[NDArray[np.float32]], ...], which: range) -> tuple[NDArray[np.float64], ...]:
    """Negative log-likelihoods of the model and divergences, of the chunks ``which``."""
    nll, kl = [], []
    for number in which:
        chunk = chunks()[number]
        rows = slice(chunk.begin - 1, len(chunk.ids) - 1)
        given, own = (torch.log_softmax(torch.from_numpy(side[number][rows]).double(), 1) for side in both)
        kl.append(torch.nn.functional.kl_div(own, given, reduction="none", log_target=True).sum(1))
        nll.append(-own[torch.arange(len(own)), torch.from_numpy(chunk.ids[chunk.begin :])])
    return torch.cat(nll).numpy(), torch.cat(kl).numpy()


def test_the_summary_is_what_torch_computes(compared: Comparison, both: tuple[list[NDArray[np.float32]], ...]) -> None:
    nll, kl = by_torch(both, range(4))
    found = compared.summary()
    assert found.n_tokens == len(nll) == 129 + 65 + 199 + 1
    assert found.kl is not None
    assert found.perplexity.value == pytest.approx(np.exp(nll.mean()), rel=1e-12)
    assert found.kl.value == pytest.approx(kl.mean(), rel=1e-10)
    assert (found.kl_median, found.kl_99, found.kl_999) == pytest.approx(np.quantile(kl, (0.5, 0.99, 0.999)))
    assert found.kl_max == pytest.approx(kl.max())
    assert found.ratio is not None
    assert found.perplexity_reference is not None
    assert found.ratio.value == pytest.approx(found.perplexity.value / found.perplexity_reference.value)
    assert found.ratio.half < found.perplexity.half / found.perplexity.value  # the same tokens on both sides


def test_texts_and_domains_are_parts_of_all(compared: Comparison, both: tuple[list[NDArray[np.float32]], ...]) -> None:
    texts, domains = compared.by_text(), compared.by_domain()
    assert {name: each.n_tokens for name, each in texts.items()} == {"one": 194, "two": 199, "three": 1}
    assert {name: each.n_tokens for name, each in domains.items()} == {"prose": 195, "code": 199}
    assert texts["two"].perplexity.value == pytest.approx(np.exp(by_torch(both, range(2, 3))[0].mean()))
    assert np.isnan(texts["three"].perplexity.low)  # of a single token no bounds are known
    assert sum(each.n_tokens for each in compared.by_position(5).values()) == 394
    assert [start for start, _ in compared.by_position(4)] == sorted(start for start, _ in compared.by_position(4))


def test_slices_change_nothing_and_rows_that_are_not_scored_are_not_asked_for(
    compared: Comparison, both: tuple[list[NDArray[np.float32]], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_LOGIT_BYTES", 4 * VOCAB * 7)
    small = Arrays("small", both[1])
    told: list[tuple[str, int, int]] = []
    again = compare(Arrays("full", both[0]), small, chunks(), lambda *each: told.append(each))
    assert again.to_json() == compared.to_json()
    assert max(stop - start for _, start, stop in small.asked) == 7
    assert min(start for number, start, _ in small.asked if number == 1) == 64
    assert told[-1] == ("scoring", 561, 561)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_json_has_every_number_and_no_nan(compared: Comparison) -> None:
    told = json.loads(json.dumps(compared.to_json(), allow_nan=False))
    assert told["all"]["n_tokens"] == 394
    assert [each["domain"] for each in told["texts"]] == ["prose", "code", "prose"]
    assert told["texts"][2]["kl"]["low"] is None
    assert {"kl", "kl_median", "kl_99", "kl_999", "kl_max", "top1", "ratio"} <= set(told["domains"]["code"])


def test_without_a_reference_there_is_perplexity(both: tuple[list[NDArray[np.float32]], ...]) -> None:
    found = compare(None, Arrays("small", both[1]), chunks())
    assert found.reference is None
    assert set(found.summary().to_json()) == {"n_tokens", "perplexity"}


def test_what_cannot_be_compared_is_an_error(both: tuple[list[NDArray[np.float32]], ...]) -> None:
    narrow = Arrays("narrow", [each[:, :-1] for each in both[1]])
    with pytest.raises(OptionError, match="full has 211 tokens, narrow has 210 tokens"):
        compare(Arrays("full", both[0]), narrow, chunks())
    with pytest.raises(InputError, match="nothing to score"):
        compare(None, Arrays("small", both[1]), [])
    with pytest.raises(InputError, match="outside the vocabulary of 210"):
        compare(None, narrow, [Chunk(np.array([1, 210]), "odd")])
    broken = [each.copy() for each in both[1]]
    broken[1][70, 3] = np.nan
    with pytest.raises(EngineError, match=r"one: after 64 tokens of a chunk: the model's logits of row 6.*verify"):
        compare(Arrays("full", both[0]), Arrays("small", broken), chunks())


@pytest.mark.parametrize(("n", "begin"), [(1, 1), (5, 0), (5, 5)])
def test_a_chunk_scores_something(n: int, begin: int) -> None:
    with pytest.raises(ValueError, match="can't be scored"):
        Chunk(np.zeros(n, np.int64), "text", begin=begin)

"""llama-perplexity's numbers: the 16-bit code and statistics, as its C++ computes them and as it printed them."""

import json
import math
from pathlib import Path

import numpy as np
import perplexity_numbers
import pytest
from logit_arrays import Arrays
from numpy.typing import NDArray

import edge_llama
from edge_llama.certifying.model_logits import ModelLogits
from edge_llama.errors import InputError
from edge_llama.fidelity.comparison import compare
from edge_llama.fidelity.compatible import Collector, coded, compatible_chunks
from edge_llama.fidelity.source import Chunk

F = np.float32


def logits(seed: int, rows: int = 120, n_vocab: int = 301) -> NDArray[np.float32]:
    return (4 * np.random.default_rng(seed).standard_normal((rows, n_vocab))).astype(F)


def expf(value: np.float32) -> np.float32:
    return F(math.exp(float(value)))


def base_row(row: NDArray[np.float32]) -> tuple[list[int], np.float32, np.float32]:
    """``log_softmax(n_vocab, logits, log_prob, tok)`` of perplexity.cpp, number by number."""
    largest = max(row)
    least = max(min(row), largest - F(16))
    log_sum = F(math.log(sum(float(expf(each - largest)) for each in row)))
    scale = (largest - least) / F(65535)
    inverse = F(1) / scale if scale else F(0)
    codes = [int(np.rint(inverse * (each - least))) if scale and each > least else 0 for each in row]
    return codes, scale, least - largest - log_sum


def kl_row(row: NDArray[np.float32], base: tuple[list[int], np.float32, np.float32], token: int) -> tuple[float, ...]:
    """``log_softmax(n_vocab, logits, base_log_prob, tok, kld)``: divergence, both likelihoods, difference of p."""
    codes, scale, least = base
    largest = max(row)
    log_sum = F(math.log(sum(float(expf(each - largest)) for each in row)))
    nll, nll_base = largest + log_sum - row[token], -(scale * F(codes[token]) + least)
    divergence = 0.0
    for own, code in zip(row, codes, strict=True):
        log_base = scale * F(code) + least
        if log_base > F(-16):
            divergence += float(expf(log_base) * (log_base - own + (largest + log_sum)))
    return divergence, float(nll), float(nll_base), float(expf(-nll) - expf(-nll_base))


def test_the_code_of_16_bits_is_the_programs() -> None:
    rows = logits(1, 8)
    rows[0] *= F(0.5)  # within 16 of each other
    rows[1] *= F(20)  # wider than 16: what is below is stored as if it were at the edge
    rows[2] = 3  # all the same: no scale
    found = coded(rows)
    for at, row in enumerate(rows):
        codes, scale, least = base_row(row)
        assert found.codes[at].tolist() == codes
        assert (found.scale[at], found.least[at]) == (scale, least)
    stored = found.log_probabilities()
    exact = rows[0].astype(np.float64) - np.log(np.exp(rows[0].astype(np.float64)).sum())
    assert np.abs(stored[0] - exact).max() < 0.6 * found.scale[0]


def test_statistics_are_the_programs_number_by_number() -> None:
    base, model = logits(1), (logits(1) + F(0.3) * logits(2)).astype(F)
    chunk = Chunk(np.random.default_rng(5).integers(0, 301, 120), "text", begin=1)
    collector = Collector()
    compared = compare(Arrays("base", [base]), Arrays("model", [model]), [chunk], observe=collector)
    rows = [kl_row(model[at], base_row(base[at]), int(chunk.ids[at + 1])) for at in range(119)]
    divergence, nll, nll_base, p_diff = map(np.array, zip(*rows, strict=True))
    found = {name: (value, error) for name, value, error, _ in collector.statistics().rows()}
    count = len(rows)

    def error(values: NDArray[np.float64]) -> float:
        return math.sqrt((np.mean(values**2) - values.mean() ** 2) / (count - 1))

    assert found["Mean KLD"] == pytest.approx((divergence.mean(), error(divergence)), rel=1e-6)
    assert found["Mean PPL(Q)"][0] == pytest.approx(math.exp(nll.mean()), rel=1e-6)
    assert found["Mean PPL(base)"][0] == pytest.approx(math.exp(nll_base.mean()), rel=1e-6)
    assert found["Mean ln(PPL(Q)/PPL(base))"] == pytest.approx(
        (nll.mean() - nll_base.mean(), error(nll - nll_base)), rel=1e-4
    )
    assert found["Maximum KLD"][0] == pytest.approx(divergence.max(), rel=1e-6)
    assert found["Median KLD"][0] == pytest.approx(np.median(divergence), rel=1e-6)
    assert found["99.0% KLD"][0] == pytest.approx(np.quantile(divergence, 0.99), rel=1e-5)
    assert found["RMS Δp"][0] == pytest.approx(100 * math.sqrt((p_diff**2).mean()), rel=1e-5)
    exact = compared.summary().kl
    assert exact is not None
    assert found["Mean KLD"][0] == pytest.approx(exact.value, rel=1e-3)  # near to the exact value, and not it
    assert found["Mean KLD"][0] != exact.value


def test_a_real_model_has_the_numbers_that_the_program_printed(tmp_path: Path) -> None:
    """They were printed on another processor perhaps, whose kernels round otherwise."""
    carried = json.loads(perplexity_numbers.CARRIED.read_text("utf-8"))["printed"]
    written, base, model = perplexity_numbers.files(tmp_path)
    n_ctx, collector = perplexity_numbers.N_CTX, Collector()
    with (
        edge_llama.open(base, n_ctx=n_ctx, threads=1) as given,
        edge_llama.open(model, n_ctx=n_ctx, threads=1) as own,
    ):
        chunks = compatible_chunks("text", written.read_text("utf-8"), own.tokenizer.encode, own.tokenizer.bos, n_ctx)
        sides = [ModelLogits(each, each.artifact.name, is_whole=True) for each in (given, own)]
        compare(*sides, chunks, observe=collector)
    found = {name: (value, error) for name, value, error, _ in collector.statistics().rows()}
    assert found.keys() == carried.keys()
    for name, (value, *error) in carried.items():
        assert found[name][0] == pytest.approx(value, rel=5e-3, abs=2e-3), name
        assert len(error) == (found[name][1] is not None), name


def test_chunks_are_cut_as_the_program_cuts_them() -> None:
    def encode(text: str) -> list[int]:
        return [10 + ord(letter) - ord("a") for letter in text]

    chunks = compatible_chunks("text", "abcdefghijklmnopqr", encode, None, 8)
    assert [chunk.ids.tolist() for chunk in chunks] == [list(range(10, 18)), list(range(18, 26))]
    assert {chunk.begin for chunk in chunks} == {5}
    begun = compatible_chunks("text", "abcdefghijklmnopqr", encode, 1, 8)
    assert [chunk.ids.tolist() for chunk in begun] == [[1, *range(10, 17)], [1, *range(18, 25)]]
    with pytest.raises(InputError, match="has 15 tokens, and llama-perplexity needs two chunks of 8"):
        compatible_chunks("text", "abcdefghijklmno", encode, None, 8)


def test_few_tokens_have_no_statistics() -> None:
    collector = Collector()
    rows = logits(1, 20)
    compare(Arrays("a", [rows]), Arrays("b", [rows]), [Chunk(np.arange(20), "text")], observe=collector)
    with pytest.raises(InputError, match="19 tokens are scored"):
        collector.statistics()

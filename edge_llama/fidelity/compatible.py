"""The numbers of llama-perplexity's ``--kl-divergence``, as it computes and prints them.

Its reference's logits lie in a file in 16 bits, so what it prints of the divergence is near to the exact value and not
it. Which tokens it scores: the second half of chunks of ``n_ctx`` tokens, cut one after the other from one text.
Everything here is as in llama.cpp's ``tools/perplexity/perplexity.cpp``: types, order of operations, printed digits.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import InputError
from edge_llama.fidelity.scores import by_blocks
from edge_llama.fidelity.source import Chunk

_SPAN = np.float32(16)
"""Logits further below the largest are all stored as if they were so far below."""
_FEWEST = 100
"""Tokens of which it tells statistics."""
_LIKELY_ENOUGH = np.float32(-16)
Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Log-probabilities of rows in 16 bits: ``scale * code + least``."""

    codes: NDArray[np.uint16]
    """``(n, n_vocab)``."""
    scale: Float
    """``(n,)``, as ``least``."""
    least: Float

    def log_probabilities(self) -> Float:
        """What the codes stand for, ``(n, n_vocab)``."""
        return self.scale[:, None] * self.codes.astype(np.float32) + self.least[:, None]


def coded(logits: Float) -> Coded:
    """Logits ``(n, n_vocab)`` as the program stores a reference's."""
    largest = logits.max(axis=1)
    least = np.maximum(logits.min(axis=1), largest - _SPAN)
    scale = (largest - least) / np.float32(65535)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.float32(1) / scale
        steps = np.rint(inverse[:, None] * (logits - least[:, None]))
    codes = np.where((logits > least[:, None]) & (scale[:, None] > 0), steps, 0).astype(np.uint16)
    return Coded(codes, scale, least - largest - _log_sum(logits, largest))


def _log_sum(logits: Float, largest: Float) -> Float:
    """The logarithm of the sum of float32 exponentials, summed in float64: ``(n,)``."""
    exponentials = np.exp((logits - largest[:, None]).astype(np.float64)).astype(np.float32)
    logarithms: NDArray[np.float64] = np.log(exponentials.sum(axis=1, dtype=np.float64))
    return logarithms.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """What is kept of each token, ``(n,)``."""

    nll: Float
    nll_base: Float
    kld: NDArray[np.float64]
    p_diff: Float
    is_same_top: NDArray[np.bool_]


class Collector:
    """An observer of a comparison: what it was given becomes :meth:`statistics` in the end."""

    def __init__(self) -> None:
        self._parts: list[_Tokens] = []

    def __call__(
        self, targets: NDArray[np.int64], model: Float, reference: Float | None, pool: ThreadPoolExecutor
    ) -> None:
        """Take the logits before ``targets``; a reference there must be."""
        assert reference is not None  # noqa: S101 - the caller's check
        base = reference
        n_rows, n_vocab = model.shape
        self._parts += by_blocks(lambda rows: _tokens(targets[rows], model[rows], base[rows]), n_rows, n_vocab, pool)

    def statistics(self) -> "Statistics":
        """Of all that came. InputError for fewer tokens than the program tells statistics of."""
        found = [np.concatenate([getattr(part, name) for part in self._parts]) for name in _Tokens.__dataclass_fields__]
        tokens = _Tokens(*found)
        if len(tokens.nll) < _FEWEST:
            raise InputError(
                f"{len(tokens.nll):,} tokens are scored, and llama-perplexity tells statistics of {_FEWEST} at least",
                remedy="give a longer text, or a larger --n-ctx",
            )
        return Statistics(tokens)


def _tokens(targets: NDArray[np.int64], logits: Float, base_logits: Float) -> _Tokens:
    at = np.arange(len(targets)), targets
    base = coded(base_logits)
    log_base = base.log_probabilities()
    largest = logits.max(axis=1)
    log_sum = _log_sum(logits, largest)
    nll, nll_base = largest + log_sum - logits[at], -log_base[at]
    probabilities = np.exp(log_base.astype(np.float64)).astype(np.float32)
    terms = probabilities * ((log_base - logits) + (largest + log_sum)[:, None])
    terms[log_base <= _LIKELY_ENOUGH] = 0
    p_diff = _exp(-nll) - _exp(-nll_base)
    is_same = logits.argmax(axis=1) == base.codes.argmax(axis=1)
    return _Tokens(nll, nll_base, terms.sum(axis=1, dtype=np.float64), p_diff, is_same)


def _exp(values: Float) -> Float:
    return np.exp(values.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A mean and its standard error."""

    value: float
    error: float


class Statistics:
    """What the program prints at its end, by the names that it prints."""

    def __init__(self, tokens: _Tokens) -> None:
        self._count = len(tokens.nll)
        self.log_ppl, self.log_ppl_base = self._mean(tokens.nll), self._mean(tokens.nll_base)
        self.kld = self._mean(tokens.kld)
        self._p_diff = self._mean(tokens.p_diff)
        squares = tokens.p_diff * tokens.p_diff
        self._squares = self._mean(squares.astype(np.float64))
        products = (tokens.nll * tokens.nll_base).astype(np.float64)
        both = float(products.sum()) / self._count - self.log_ppl.value * self.log_ppl_base.value
        self._covariance = both / (self._count - 1)
        self.same_top = float(tokens.is_same_top.mean())
        self._sorted_kld = np.sort(tokens.kld.astype(np.float32))
        self._sorted_p = np.sort(tokens.p_diff)

    def _mean(self, values: NDArray[np.float32] | NDArray[np.float64]) -> Uncertain:
        """The mean and its error; the squares of float32 values are float32 too, as in the program."""
        mean = float(values.sum(dtype=np.float64)) / self._count
        variance = float((values * values).sum(dtype=np.float64)) / self._count - mean * mean
        return Uncertain(mean, math.sqrt(variance / (self._count - 1)) if variance > 0 else 0.0)

    @property
    def log_ratio(self) -> Uncertain:
        """The logarithm of both perplexities' ratio."""
        squared = self.log_ppl.error**2 + self.log_ppl_base.error**2 - 2 * self._covariance
        return Uncertain(self.log_ppl.value - self.log_ppl_base.value, math.sqrt(max(squared, 0.0)))

    def rows(self) -> list[tuple[str, float, float | None, str]]:
        """Name, value, its error if one is told, and the format of both; shares and differences of p are in percent."""
        ppl, base, ratio = (_exponential(each) for each in (self.log_ppl, self.log_ppl_base, self.log_ratio))
        error = self.log_ppl.error * self.log_ppl_base.error
        difference = ppl.error**2 + base.error**2 - 2 * ppl.value * base.value * self._covariance
        rms = math.sqrt(self._squares.value)
        top_error = math.sqrt(self.same_top * (1 - self.same_top) / (self._count - 1))
        return [
            ("Mean PPL(Q)", ppl.value, ppl.error, ".6f"),
            ("Mean PPL(base)", base.value, base.error, ".6f"),
            ("Cor(ln(PPL(Q)), ln(PPL(base)))", 100 * self._covariance / error if error else math.nan, None, ".2f"),
            ("Mean ln(PPL(Q)/PPL(base))", self.log_ratio.value, self.log_ratio.error, ".6f"),
            ("Mean PPL(Q)/PPL(base)", ratio.value, ratio.error, ".6f"),
            ("Mean PPL(Q)-PPL(base)", ppl.value - base.value, math.sqrt(max(difference, 0.0)), ".6f"),
            ("Mean KLD", self.kld.value, self.kld.error, ".6f"),
            *((f"{name} KLD", value, None, ".6f") for name, value in _quantiles(self._sorted_kld, _OF_KLD)),
            ("Mean Δp", 100 * self._p_diff.value, 100 * self._p_diff.error, ".3f"),
            *((f"{name} Δp", 100 * value, None, ".3f") for name, value in _quantiles(self._sorted_p, _OF_P)),
            ("RMS Δp", 100 * rms, 50 / rms * self._squares.error if rms else math.nan, ".3f"),
            ("Same top p", 100 * self.same_top, 100 * top_error, ".3f"),
        ]

    def printed(self) -> list[str]:
        """A line for each, with the program's names and digits."""
        return [
            f"{name}: {value:{digits}}" + (f" ± {error:{digits}}" if error is not None else "")
            for name, value, error, digits in self.rows()
        ]

    def to_json(self) -> dict[str, float | list[float] | None]:
        """By the printed names: values, or lists of a value and its error; null for what is no number."""
        return {
            name: None if math.isnan(value) else value if error is None else [value, error]
            for name, value, error, _ in self.rows()
        }


def _exponential(of: Uncertain) -> Uncertain:
    value = math.exp(of.value)
    return Uncertain(value, value * of.error)


_OF_KLD = ("Maximum", 0.999, 0.99, 0.95, 0.9, "Median", 0.1, 0.05, 0.01, 0.001, "Minimum")
_OF_P = ("Maximum", 0.999, 0.99, 0.95, 0.9, 0.75, "Median", 0.25, 0.1, 0.05, 0.01, 0.001, "Minimum")


def _quantiles(values: Float, wanted: Sequence[str | float]) -> list[tuple[str, float]]:
    """Of sorted values, in float32 as the program interpolates."""
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else np.float32(0.5) * (values[middle] + values[middle - 1])
    known = {"Maximum": values[-1], "Minimum": values[0], "Median": median}
    return [
        (part, float(known[part])) if isinstance(part, str) else (f"{100 * part:.1f}%", _quantile(values, part))
        for part in wanted
    ]


def _quantile(values: Float, part: float) -> float:
    place = np.float32(part) * np.float32(len(values) - 1)
    below = int(place)
    rest = place - np.float32(below)
    return float((np.float32(1) - rest) * values[below] + rest * values[min(below + 1, len(values) - 1)])


def compatible_chunks(
    text: str, content: str, encode: Callable[[str], Sequence[int]], bos: int | None, n_ctx: int, domain: str = ""
) -> list[Chunk]:
    """The chunks that the program scores of a text; what is left at its end it does not look at.

    Each begins with ``bos``, in place of its own first token. InputError for a text of fewer than two chunks.
    """
    ids = np.array([*([] if bos is None else [bos]), *encode(content)], np.int64)
    if len(ids) < 2 * n_ctx:
        raise InputError(
            f"{text}: has {len(ids):,} tokens, and llama-perplexity needs two chunks of {n_ctx:,}",
            remedy="give a longer text, or a smaller --n-ctx",
        )
    pieces = ids[: len(ids) // n_ctx * n_ctx].reshape(-1, n_ctx).copy()
    if bos is not None:
        pieces[:, 0] = bos
    return [Chunk(piece, text, domain, begin=n_ctx // 2 + 1) for piece in pieces]

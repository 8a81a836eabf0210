"""A sampler for engines that bring none: llama.cpp's chain in numpy, step for step.

With the same logits it gives the same distribution. Only the drawing differs: another random generator, so the same
seed gives other tokens than llama.cpp's.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_llama.sampling.logprobs import likeliest
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.sampler import LogitsRow

Logits: TypeAlias = NDArray[np.float32]
Kept: TypeAlias = NDArray[np.intp] | None

_FIRST_LOOK = 256  # tokens that usually make up top_p


class NumpySampler:
    """Keeps the Protocol :class:`edge_llama.sampling.sampler.Sampler`, for any engine."""

    def __init__(self, params: SamplingParams, history: Sequence[int]) -> None:
        """A sampler that has seen the tokens of ``history``."""
        self._params = params
        self._random = np.random.default_rng(params.seed)
        biases = params.logit_bias or {}
        self._bias_ids = np.fromiter(biases.keys(), np.intp, len(biases))
        self._biases = np.fromiter(biases.values(), np.float32, len(biases))
        self._recent: deque[int] = deque(maxlen=params.penalty_window if params.is_penalizing else 0)
        self._counts: Counter[int] = Counter()
        for token in history[-params.penalty_window :] if params.is_penalizing else ():
            self.accept(token)

    def sample(self, row: LogitsRow) -> int:
        """A token by the row's logits, which are not changed."""
        token = self._likeliest(row.values) if self._params.temperature == 0 else self._drawn(row.values)
        self.accept(token)
        return token

    def _likeliest(self, logits: Logits) -> int:
        return int(self._penalized(self._biased(logits)).argmax())

    def _drawn(self, logits: Logits) -> int:
        tokens, probabilities = self.distribution(logits)
        cumulative = probabilities.cumsum()
        at = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
        return int(tokens[min(at, len(tokens) - 1)])

    def distribution(self, logits: Logits) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The tokens that may come by ``(n_vocab,)`` logits, and their probabilities, summing to 1; none is drawn."""
        params = self._params
        if params.temperature == 0:
            return np.array([self._likeliest(logits)]), np.ones(1)
        logits = self._penalized(self._biased(logits))
        tokens: Kept = None
        for keep in _FILTERS:
            kept = keep(logits, params)
            if kept is not None:
                tokens, logits = kept if tokens is None else tokens[kept], logits[kept]
        probabilities = _exp(logits / np.float32(params.temperature)).astype(np.float64)
        probabilities /= probabilities.sum()
        return np.arange(len(logits)) if tokens is None else tokens, probabilities

    def close(self) -> None:
        """Nothing to give back."""

    def _biased(self, logits: Logits) -> Logits:
        if len(self._bias_ids):
            logits = logits.copy()
            logits[self._bias_ids] += self._biases
        return logits

    def _penalized(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._counts:
            return logits
        seen = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        params, old = self._params, logits[seen]
        repetition = np.float32(params.repetition_penalty)
        new = np.where(old <= 0, old * repetition, old / repetition)
        logits = logits.copy()
        logits[seen] = new - (counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty))
        return logits

    def accept(self, token: int) -> None:
        """Remember a token."""
        if not self._params.is_penalizing:
            return
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._recent.append(token)
        self._counts[token] += 1


def _top_k(logits: Logits, params: SamplingParams) -> Kept:
    return likeliest(logits, params.top_k) if 0 < params.top_k < len(logits) else None


def _top_p(logits: Logits, params: SamplingParams) -> Kept:
    """Where the likeliest tokens are that together reach ``top_p``, likeliest first."""
    top_p = params.top_p
    if top_p >= 1:
        return None
    probabilities = _exp(logits)
    probabilities /= probabilities.sum()
    for count in _widening(len(logits)):
        best = likeliest(logits, count)  # not of the probabilities: rounding makes some of them equal
        cumulative = probabilities[best].cumsum(dtype=np.float64)
        if cumulative[-1] >= top_p or count == len(logits):
            return best[: int(cumulative.searchsorted(top_p)) + 1]
    raise AssertionError  # the last count is the whole


def _min_p(logits: Logits, params: SamplingParams) -> Kept:
    if params.min_p <= 0:
        return None
    return np.flatnonzero(logits >= logits.max() + np.log(np.float32(params.min_p)))


_FILTERS: tuple[Callable[[Logits, SamplingParams], Kept], ...] = (_top_k, _top_p, _min_p)
"""What leaves tokens out, in llama.cpp's order: each gives the places of those that stay, or None for all."""


def _widening(size: int) -> Iterator[int]:
    """Numbers of candidates to look at: a few, more, all. Sorting a whole vocabulary takes 10 ms."""
    yield from (count for count in (_FIRST_LOOK, 16 * _FIRST_LOOK) if count < size)
    yield size


def _exp(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exps: NDArray[np.float32] = np.exp(logits - logits.max())
    return exps

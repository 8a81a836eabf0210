"""How sure a mean over tokens is: a block bootstrap.

Neighbouring tokens go wrong together, so that the plain standard error is too small: whole stretches of tokens are
drawn in place of single ones (Künsch, The jackknife and the bootstrap for general stationary observations, 1989).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
"""Tokens of a stretch."""
RESAMPLES = 2_000
_FEWEST = 8
"""Stretches of which bounds are told: fewer that happen to be alike would promise too much."""
_LEVEL = 0.95
_AT_ONCE = 1 << 22  # numbers of a matrix of draws


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the bounds between which it lies with 95 % confidence; NaN where stretches are too few."""

    value: float
    low: float
    high: float

    def exp(self) -> "Estimate":
        """Of the exponential: perplexity, of a mean negative log-likelihood."""
        with np.errstate(over="ignore"):
            value, low, high = map(float, np.exp((self.value, self.low, self.high)))
        return Estimate(value, low, high)

    @property
    def half(self) -> float:
        """Half the width: what stands behind ±."""
        return (self.high - self.low) / 2

    def to_json(self) -> dict[str, float | None]:
        """Value and bounds; a bound that is not known is null, as JSON has no NaN."""
        low, high = (None if np.isnan(bound) else bound for bound in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high}


def means(values: NDArray[np.float64], blocks: NDArray[np.int64], seed: int = 0) -> list[Estimate]:
    """The mean of each column of ``values`` ``(n, k)``, with bounds; ``blocks`` ``(n,)`` says what is drawn together.

    The columns are drawn together, so that a difference of two may be a column. The same ``seed``, the same bounds.
    """
    _, index = np.unique(blocks, return_inverse=True)
    n_blocks = int(index.max()) + 1
    counts = np.bincount(index).astype(np.float64)
    sums = np.stack([np.bincount(index, column) for column in values.T], axis=1).astype(np.float64)
    whole = values.mean(axis=0)
    if n_blocks < _FEWEST:
        return [Estimate(float(value), np.nan, np.nan) for value in whole]
    drawn = _drawn_means(sums, counts, np.random.default_rng(seed))
    low, high = np.quantile(drawn, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2), axis=0)
    return [Estimate(*map(float, bounds)) for bounds in zip(whole, low, high, strict=True)]


def _drawn_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Means ``(RESAMPLES, k)`` over as many blocks as there are, drawn with replacement."""
    n_blocks = len(counts)
    step = max(1, _AT_ONCE // n_blocks)
    found = []
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        times = random.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=rows).astype(np.float64)
        found.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(found)

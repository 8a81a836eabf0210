"""Scales of groups by the squared error that they leave, for grids whose scales are stored in 16 bits.

A group of weights becomes numbers from -8 to 7 times its scale. The scale is rounded before the numbers are chosen,
since an engine computes with the one that is stored. Several are tried, and what least squares make of the numbers of
each; that with the smallest error is taken. The first is the one of a plain rounding: no error is larger than that
one's.

All sums run over a group's weights in their order, so that a machine's SIMD width changes no bit.
"""

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import Format
from quant.floats import narrow, widen

LEAST, MOST = -8, 7
"""The numbers that 4 bits hold."""
_PLAIN = np.float32(7.5)
"""As compressed-tensors' min-max observer: the largest magnitude is half of 15 steps."""
_DIVISORS = tuple(map(np.float32, (-7.0, -8.0, -8.75, -9.5)))
"""By which the weight of the largest magnitude is divided: it becomes -7, or -8 and perhaps a little is cut off. The
scale may be negative. On SmolLM2 the squared error is 0.749 of the plain rounding's; with fifty divisors it was 0.741.
"""

Floats = NDArray[np.float32]


def fitted(groups: Floats, scales: Format) -> tuple[Floats, NDArray[np.uint8]]:
    """The scales ``(n,)`` of ``groups``, float32 ``(n, size)``, and their numbers plus 8, uint8 ``(n, size)``.

    ``scales``: float16 or bfloat16, in which the scales are exact. One that is too large for float16 is infinite. A
    group of zeros, or of what is next to nothing, has the scale 1.
    """
    with np.errstate(all="ignore"):
        columns = np.ascontiguousarray(groups.T)  # a whole row of a group's first weights, of its second ones, ...
        best = _best(columns, scales)
        numbers = _numbers(columns, best, np.empty_like(columns))
        numbers -= np.float32(LEAST)
        return best, np.ascontiguousarray(numbers.T.astype(np.uint8))


def _best(columns: Floats, scales: Format) -> Floats:
    """The scale of each of ``columns``, ``(size, n)``."""
    numbers, products = np.empty_like(columns), np.empty_like(columns)
    candidates = _candidates(columns, scales)
    best, least = candidates[0], np.full(columns.shape[1], np.inf, np.float32)
    for scale in candidates:
        _numbers(columns, scale, numbers)
        along = np.multiply(numbers, columns, out=products).sum(axis=0)
        square = np.square(numbers, out=products).sum(axis=0)
        refined = np.where(square > 0, along / square, scale)
        for tried in (scale, _stored(refined, scales)):
            # The squared error, but for the sum of the weights' own squares.
            error = tried * (tried * square - 2 * along)
            is_better = error < least
            least = np.where(is_better, error, least)
            best = np.where(is_better, tried, best)
    return best


def _candidates(columns: Floats, scales: Format) -> list[Floats]:
    low, high = columns.min(axis=0), columns.max(axis=0)
    largest = np.where(high > -low, high, low)
    tried = (np.abs(largest) / _PLAIN, *(largest / divisor for divisor in _DIVISORS))
    return [_stored(scale, scales) for scale in tried]


def _stored(scale: Floats, scales: Format) -> Floats:
    """As ``scales`` keeps it; 1 where nothing is left of it, or where there are no numbers to scale."""
    kept = widen(narrow(np.ascontiguousarray(scale[None]), scales), scales)[0]
    return np.where((kept == 0) | np.isnan(kept), np.float32(1), kept)


def _numbers(columns: Floats, scale: Floats, out: Floats) -> Floats:
    """The nearest numbers, as floats."""
    np.divide(columns, scale, out=out)
    np.rint(out, out=out)
    return np.clip(out, LEAST, MOST, out=out)

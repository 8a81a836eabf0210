"""Scales of groups by the squared error that they leave, for grids whose scales are stored in 16 bits.

A group of weights becomes numbers from -8 to 7 times its scale. The scale is rounded before the numbers are chosen,
since an engine computes with the one that is stored. Several are tried, and what least squares make of the numbers of
each; that with the smallest error is taken. The first is the one of a plain rounding: no error is larger than that
one's.

All sums run over a group's weights in their order, so that a machine's SIMD width changes no bit;
:mod:`quant.compiled.groups` does the same several times as fast.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import BF16, F16, Format
from quant import compiled
from quant.compiled import GROUPS
from quant.floats import narrow, widen
from quant.reference.vectors import rows

LEAST, MOST = -8, 7
"""The numbers that 4 bits hold."""
PLAIN = np.float32(7.5)
"""As compressed-tensors' min-max observer: the largest magnitude is half of 15 steps."""
DIVISORS = np.array([-7.0, -8.0, -8.75, -9.5], np.float32)
"""By which the weight of the largest magnitude is divided: it becomes -7, or -8 and perhaps a little is cut off. The
scale may be negative. On SmolLM2 the squared error is 0.749 of the plain rounding's; with fifty divisors it was 0.741.
"""

Floats = NDArray[np.float32]
Fit = Callable[[Floats, Format], tuple[Floats, NDArray[np.uint8]]]
"""See :func:`fitted`."""


def fitted(groups: Floats, scales: Format) -> tuple[Floats, NDArray[np.uint8]]:
    """The scales ``(n,)`` of ``groups``, float32 ``(n, size)``, and their numbers plus 8, two to a byte, the first low.

    ``scales``: float16 or bfloat16, in which the scales are exact. One that is too large for float16 is infinite. A
    group of zeros, or of what is next to nothing, has the scale 1.
    """
    if len(groups) == 1:  # numpy adds up a single column in another order
        scale, octets = fitted(np.repeat(groups, 2, axis=0), scales)
        return scale[:1], octets[:1]
    with np.errstate(all="ignore"):
        columns = np.ascontiguousarray(groups.T)  # a row of all groups' first weights, of their second ones, ...
        best = _best(columns, scales)
        numbers = (_numbers(columns, best, np.empty_like(columns)) - np.float32(LEAST)).astype(np.uint8)
        return best, np.ascontiguousarray((numbers[::2] | (numbers[1::2] << np.uint8(4))).T)


def compiled_fit() -> Fit | None:
    """:func:`fitted` for finite groups, compiled if need be (seconds); None if it gives other bytes here."""
    fit_groups = compiled.load_groups()

    def fit(groups: Floats, scales: Format) -> tuple[Floats, NDArray[np.uint8]]:
        count, size = groups.shape
        best, octets = np.empty(count, np.float32), np.empty((count, size // 2), np.uint8)
        fit_groups(groups.reshape(-1), size, PLAIN, DIVISORS, scales is F16, best, octets.reshape(-1))
        return best, octets

    return fit if compiled.noted(GROUPS, is_right=_is_the_same(fit)) else None


def _is_the_same(fit: Fit) -> bool:
    """Whether ``fit`` gives the bytes of :func:`fitted`, on rows that tell one rounding from another."""
    some = np.ascontiguousarray(rows()[::8])
    return all(
        np.array_equal(ours, theirs)
        for size in (32, 64, 128)
        for scales in (F16, BF16)
        for ours, theirs in zip(*(make(some.reshape(-1, size), scales) for make in (fit, fitted)), strict=True)
    )


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
    tried = (np.abs(largest) / PLAIN, *(largest / divisor for divisor in DIVISORS))
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

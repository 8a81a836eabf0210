"""The searches for a block's scale: ggml's, for all lanes of a tile at once, with each lane's roundings in their order.

The levels themselves are not kept: ``BEST_INVERSE`` and ``BEST_LOW`` give them again where a format needs them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from quant.compiled.arithmetic import ONE, ZERO, clamp, f4, held, nearest, rounded, select
from quant.compiled.jit import jit
from quant.compiled.lanes import (
    AUX,
    BEST,
    BEST_INVERSE,
    BEST_LOW,
    EPSILON,
    ERROR,
    FLOOR,
    GOOD,
    HIGH,
    INVERSE,
    LOW,
    NEW_LOW,
    NEW_SCALE,
    NEXT,
    SCALE,
    SUM_L,
    SUM_L2,
    SUM_W,
    SUM_X,
    SUM_XL,
    S,
    W,
    X,
)

_SANE = f4(1e30)
_EXACT = f4(4e6)  # below 2^22 rounding to an integer needs no bits


@jit
def start_affine(z, n):
    """Each lane's range, the sum of its weights, and the weighted sum of its elements."""
    for s in range(S):
        v, w = z[X + s], z[W + s]
        z[LOW + s] = v
        z[HIGH + s] = v
        z[SUM_W + s] = w
        z[SUM_X + s] = w * v
    for i in range(1, n):
        for s in range(S):
            v, w, low, high = z[X + i * S + s], z[W + i * S + s], z[LOW + s], z[HIGH + s]
            z[LOW + s] = select(v < low, v, low)
            z[HIGH + s] = select(v > high, v, high)
            z[SUM_W + s] += w
            z[SUM_X + s] += w * v


@jit
def _sums_affine(z, n, top):
    """A candidate's levels, and the sums that its least squares need."""
    for s in range(S):
        z[SUM_L + s] = ZERO
        z[SUM_L2 + s] = ZERO
        z[SUM_XL + s] = ZERO
    for start in range(0, n, 8):  # eight elements for each store of the sums
        for s in range(S):
            low, inverse = z[LOW + s], z[INVERSE + s]
            sum_l, sum_l2, sum_xl = z[SUM_L + s], z[SUM_L2 + s], z[SUM_XL + s]
            for i in range(8):
                v = z[X + (start + i) * S + s]
                level = held(rounded(inverse * (v - low)), top)
                z[AUX + (start + i) * S + s] = level
                weighted = z[W + (start + i) * S + s] * level
                sum_l += weighted
                sum_l2 += weighted * level
                sum_xl += weighted * v
            z[SUM_L + s] = sum_l
            z[SUM_L2 + s] = sum_l2
            z[SUM_XL + s] = sum_xl


@jit
def _solve_affine(z):
    """The candidate's scale and low; a determinant that is not positive gives no candidate: its error is infinite."""
    for s in range(S):
        sum_w, sum_x = z[SUM_W + s], z[SUM_X + s]
        sum_l, sum_l2, sum_xl = z[SUM_L + s], z[SUM_L2 + s], z[SUM_XL + s]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        is_above = low > ZERO  # then the scale is that of a fit without a low
        numerator = select(is_above, sum_xl, sum_w * sum_xl - sum_x * sum_l)
        z[NEW_SCALE + s] = numerator / select(is_above, sum_l2, determinant)
        z[NEW_LOW + s] = select(is_above, ZERO, low)
        z[ERROR + s] = select(determinant > ZERO, ZERO, f4(float("inf")))


@jit
def _keep_affine(z):
    """The candidate where it is better. The next one starts from its low, as ggml's does."""
    for s in range(S):
        low, error, best = z[LOW + s], z[ERROR + s], z[BEST + s]
        is_better = error < best
        z[NEXT + s] = select(is_better, error, best)
        z[NEXT + S + s] = select(is_better, z[INVERSE + s], z[BEST_INVERSE + s])
        z[NEXT + 2 * S + s] = select(is_better, low, z[BEST_LOW + s])
        z[NEXT + 3 * S + s] = select(is_better, z[NEW_SCALE + s], z[SCALE + s])
        z[NEXT + 4 * S + s] = select(is_better, z[NEW_LOW + s], low)
    # Stored where they were read they would become masked stores, which cost several times a copy.
    for s in range(S):
        z[BEST + s] = z[NEXT + s]
        z[BEST_INVERSE + s] = z[NEXT + S + s]
        z[BEST_LOW + s] = z[NEXT + 2 * S + s]
        z[SCALE + s] = z[NEXT + 3 * S + s]
        z[LOW + s] = z[NEXT + 4 * S + s]


@jit
def _next_affine(z, numerator):
    """The next inverse scale, and whether the levels stay small enough to be exact."""
    for s in range(S):
        low, high = z[LOW + s], z[HIGH + s]
        inverse = numerator / (high - low)
        z[INVERSE + s] = inverse
        reach = abs(inverse) * (abs(high) + abs(low) + abs(z[FLOOR + s]))
        z[GOOD + s] = select(reach < _EXACT, z[GOOD + s], ZERO)


@jit
def _keep_first(z):
    for s in range(S):
        z[BEST + s] = z[ERROR + s]
        z[SCALE + s] = z[NEW_SCALE + s]
        z[BEST_INVERSE + s] = z[INVERSE + s]
        z[BEST_LOW + s] = z[LOW + s]


@jit
def doubt_overflow(z):
    """Sums beyond what a float holds leave NaNs, whose signs and comparisons are not worth following."""
    for s in range(S):
        is_sane = (abs(z[SCALE + s]) < _SANE) & (abs(z[LOW + s]) < _SANE)
        z[GOOD + s] = select(is_sane, z[GOOD + s], ZERO)


def _affine(distance: Callable[..., Any]) -> Callable[..., Any]:
    """``make_qkx2_quants`` and ``make_qkx3_quants``; ``distance``: of a weight to its level."""

    @jit
    def error(z, n):
        for start in range(0, n, 8):
            for s in range(S):
                scale, low, total = z[NEW_SCALE + s], z[NEW_LOW + s], z[ERROR + s]
                for i in range(8):
                    away = scale * z[AUX + (start + i) * S + s] + low - z[X + (start + i) * S + s]
                    total += z[W + (start + i) * S + s] * distance(away)
                z[ERROR + s] = total

    @jit
    def fit(z, n, top, first, step, steps):
        start_affine(z, n)
        for s in range(S):
            floor, high = z[LOW + s], z[HIGH + s]
            low = select(floor > ZERO, ZERO, floor)
            inverse = top / (high - low)
            z[FLOOR + s] = floor
            z[LOW + s] = low
            z[INVERSE + s] = inverse
            z[NEW_SCALE + s] = ONE / inverse
            z[NEW_LOW + s] = low
            z[GOOD + s] = ONE
        _sums_affine(z, n, top)
        for s in range(S):
            z[ERROR + s] = ZERO
        error(z, n)
        _keep_first(z)
        for k in range(steps + 1):
            _next_affine(z, first + step * f4(k) + top)
            _sums_affine(z, n, top)
            _solve_affine(z)
            error(z, n)
            _keep_affine(z)
        # Equal numbers have no range to search; what the search made of their NaNs was never better than level 0.
        for s in range(S):
            z[GOOD + s] = select(z[FLOOR + s] == z[HIGH + s], ONE, z[GOOD + s])
        doubt_overflow(z)

    return fit


fit_affine = _affine(jit(lambda away: away * away))
fit_affine_by_magnitude = _affine(jit(lambda away: abs(away)))  # noqa: PLW0108 - numba can't compile a builtin


@jit
def start_symmetric(z, n):
    """Each lane's element of the largest magnitude, the first of equals, in ``HIGH``; that magnitude in ``LOW``."""
    for s in range(S):
        z[LOW + s] = ZERO
        z[HIGH + s] = ZERO
    for start in range(0, n, 8):
        for s in range(S):
            largest, value = z[LOW + s], z[HIGH + s]
            for i in range(8):
                v = z[X + (start + i) * S + s]
                is_larger = abs(v) > largest
                largest = select(is_larger, abs(v), largest)
                value = select(is_larger, v, value)
            z[LOW + s] = largest
            z[HIGH + s] = value


@jit
def _sums_symmetric(z, n, lowest, top):
    for s in range(S):
        z[SUM_XL + s] = ZERO
        z[SUM_L2 + s] = ZERO
    for start in range(0, n, 8):
        for s in range(S):
            inverse, sum_xl, sum_l2 = z[INVERSE + s], z[SUM_XL + s], z[SUM_L2 + s]
            for i in range(8):
                v = z[X + (start + i) * S + s]
                level = rounded(inverse * v)
                level = select(level < top, level, top)
                level = select(level > lowest, level, lowest)
                sum_xl += z[AUX + (start + i) * S + s] * level
                sum_l2 += z[W + (start + i) * S + s] * level * level
            z[SUM_XL + s] = sum_xl
            z[SUM_L2 + s] = sum_l2


@jit
def fit_symmetric(z, n, levels):
    """``make_qx_quants`` with weights: ``levels`` below zero, one fewer above. ``SCALE`` is 0 for a block of zeros."""
    start_symmetric(z, n)
    for i in range(n):
        for s in range(S):
            z[AUX + i * S + s] = z[W + i * S + s] * z[X + i * S + s]
    for s in range(S):
        z[INVERSE + s] = -levels / z[HIGH + s]
    _sums_symmetric(z, n, -levels, levels - ONE)
    for s in range(S):
        sum_xl, sum_l2 = z[SUM_XL + s], z[SUM_L2 + s]
        scale = select(sum_l2 == ZERO, ZERO, sum_xl / sum_l2)
        z[SCALE + s] = scale
        z[BEST + s] = scale * sum_xl
        z[BEST_INVERSE + s] = z[INVERSE + s]
    for k in range(-9, 10):
        if k == 0:
            continue
        numerator = -(levels + f4(0.1) * f4(k))
        for s in range(S):
            z[INVERSE + s] = numerator / z[HIGH + s]
        _sums_symmetric(z, n, -levels, levels - ONE)
        _keep_symmetric(z)
    for s in range(S):
        z[SCALE + s] = select(z[LOW + s] < EPSILON, ZERO, z[SCALE + s])
        z[GOOD + s] = ONE
    doubt_overflow(z)


@jit
def _keep_symmetric(z):
    """The candidate where it is better."""
    for s in range(S):
        sum_xl, sum_l2, best = z[SUM_XL + s], z[SUM_L2 + s], z[BEST + s]
        is_better = (sum_l2 > ZERO) & (sum_xl * sum_xl > best * sum_l2)
        scale = sum_xl / sum_l2
        z[NEXT + s] = select(is_better, scale * sum_xl, best)
        z[NEXT + S + s] = select(is_better, z[INVERSE + s], z[BEST_INVERSE + s])
        z[NEXT + 2 * S + s] = select(is_better, scale, z[SCALE + s])
    for s in range(S):  # as in _keep_affine
        z[BEST + s] = z[NEXT + s]
        z[BEST_INVERSE + s] = z[NEXT + S + s]
        z[SCALE + s] = z[NEXT + 2 * S + s]


@jit
def fit_descending(z, n, levels):
    """``make_q3_quants``: levels by the largest element, each moved while that lowers the error; left in ``AUX``."""
    start_symmetric(z, n)
    for s in range(S):
        z[INVERSE + s] = -levels / z[HIGH + s]
        z[SUM_XL + s] = ZERO
        z[SUM_L2 + s] = ZERO
    for i in range(n):
        for s in range(S):
            v = z[X + i * S + s]
            level = clamp(nearest(z[INVERSE + s] * v), np.int32(-levels), np.int32(levels - ONE))
            level = f4(level)
            z[AUX + i * S + s] = level
            w = v * v
            z[SUM_XL + s] += w * v * level
            z[SUM_L2 + s] += w * level * level
    for _ in range(5):
        if not _descend(z, n, levels):
            break
    for s in range(S):
        sum_xl, sum_l2 = z[SUM_XL + s], z[SUM_L2 + s]
        is_some = (sum_l2 > ZERO) & (z[LOW + s] >= EPSILON)
        z[SCALE + s] = select(is_some, sum_xl / sum_l2, ZERO)
        z[GOOD + s] = ONE
    doubt_overflow(z)


@jit
def _descend(z, n, levels):
    """One round over the elements; whether any level moved."""
    moved = ZERO
    for i in range(n):
        for s in range(S):
            v, level = z[X + i * S + s], z[AUX + i * S + s]
            sum_xl, sum_l2 = z[SUM_XL + s], z[SUM_L2 + s]
            w = v * v
            new_xl = sum_xl - w * v * level
            new_l2 = sum_l2 - w * level * level
            new_level = f4(clamp(nearest(v * new_l2 / new_xl), np.int32(-levels), np.int32(levels - ONE)))
            is_candidate = (new_xl > ZERO) & (new_level != level)
            new_xl += w * v * new_level
            new_l2 += w * new_level * new_level
            is_better = is_candidate & (new_l2 > ZERO) & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
            z[AUX + i * S + s] = select(is_better, new_level, level)
            z[SUM_XL + s] = select(is_better, new_xl, sum_xl)
            z[SUM_L2 + s] = select(is_better, new_l2, sum_l2)
            z[ERROR + s] = select(is_better, ONE, ZERO)
        for s in range(S):
            moved = select(z[ERROR + s] > ZERO, ONE, moved)
    return moved > ZERO

"""iq4_nl and iq4_xs: 4-bit levels that stand for 16 values, denser near zero.

The signature is that of :mod:`quant.compiled.k_quants`.
"""

from itertools import pairwise

import numpy as np

from quant.compiled.arithmetic import ONE, ZERO, clamp, f4, nearest, select, to_half
from quant.compiled.fits import doubt_overflow, start_symmetric
from quant.compiled.jit import jit, kernel
from quant.compiled.lanes import (
    BEST,
    DIVISOR,
    EPSILON,
    GOOD,
    HIGH,
    INVERSE,
    LOW,
    NEXT,
    SCALE,
    SIZE,
    SUM_L2,
    SUM_XL,
    S,
    W,
    X,
    gather,
    load,
    put_half,
    spread,
    weigh_by_importance,
    weigh_by_square,
)
from quant.compiled.packing import pack_block

N, K = 32, 256
_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_STEPS = np.diff(_VALUES)


def _border(low: np.float32, high: np.float32) -> np.float32:
    """The smallest float that ggml's ``x - low < high - x`` finds nearer to ``high``: roundings move the middle."""
    x = (low + high) / np.float32(2)
    while not x - low < high - x:
        x = np.nextafter(x, np.float32(-np.inf))
    while x - low < high - x:
        x = np.nextafter(x, np.float32(np.inf))
    return x


_BORDERS = np.array([_border(*pair) for pair in pairwise(_VALUES)], np.float32)


@jit
def _value(x):
    """The nearest of the sixteen values; the largest for NaN."""
    value = f4(-127)
    for k in range(15):
        value += select(x < _BORDERS[k], ZERO, _STEPS[k])
    return value


@jit
def _index(x):
    """Its index."""
    index = ZERO
    for k in range(15):
        index += select(x < _BORDERS[k], ZERO, ONE)
    return index


@jit
def _sums(z):
    for s in range(S):
        z[SUM_XL + s] = ZERO
        z[SUM_L2 + s] = ZERO
    for start in range(0, N, 4):
        for s in range(S):
            inverse, sum_xl, sum_l2 = z[INVERSE + s], z[SUM_XL + s], z[SUM_L2 + s]
            for i in range(4):
                v, w = z[X + (start + i) * S + s], z[W + (start + i) * S + s]
                value = _value(inverse * v)
                sum_xl += w * value * v
                sum_l2 += w * value * value
            z[SUM_XL + s] = sum_xl
            z[SUM_L2 + s] = sum_l2


@jit
def _keep(z):
    """The candidate where it is better; in two steps, as in ``fits``."""
    for s in range(S):
        sum_xl, sum_l2, best = z[SUM_XL + s], z[SUM_L2 + s], z[BEST + s]
        is_better = (sum_l2 > ZERO) & (sum_xl * sum_xl > best * sum_l2)
        scale = sum_xl / sum_l2
        z[NEXT + s] = select(is_better, scale * sum_xl, best)
        z[NEXT + S + s] = select(is_better, scale, z[SCALE + s])
    for s in range(S):
        z[BEST + s] = z[NEXT + s]
        z[SCALE + s] = z[NEXT + S + s]


@jit
def _fit(x, first, valid, columns, importance, over, z):
    """The scale of each lane: the middle candidate, then fifteen around it."""
    load(x, first, N, valid, z)
    if importance is not None:
        spread(x, first, N, valid, over, f4(2 / over), z)
        weigh_by_importance(z, first, N, valid, columns, importance)
    else:
        weigh_by_square(z, N)
    start_symmetric(z, N)
    for s in range(S):
        z[INVERSE + s] = ONE / (-z[HIGH + s] / f4(-127))
    _sums(z)
    for s in range(S):
        sum_xl, sum_l2 = z[SUM_XL + s], z[SUM_L2 + s]
        scale = select(sum_l2 > ZERO, sum_xl / sum_l2, ZERO)
        z[SCALE + s] = scale
        z[BEST + s] = scale * sum_xl
    for k in range(-7, 8):
        for s in range(S):
            z[INVERSE + s] = f4(k - 127) / z[HIGH + s]
        _sums(z)
        _keep(z)
    for s in range(S):
        z[SCALE + s] = select(z[LOW + s] < EPSILON, ZERO, z[SCALE + s])
        z[GOOD + s] = ONE
    doubt_overflow(z)


@jit
def _level(z):
    """``W``: each element's level, by the inverse scale in ``DIVISOR``."""
    for i in range(N):
        for s in range(S):
            z[W + i * S + s] = _index(z[DIVISOR + s] * z[X + i * S + s])


@jit
def _put_nibbles(z, lane, words, levels, packed, octets, out, at):
    gather(z, lane, 1, N, levels)
    pack_block(words, packed)
    for i in range(16):
        out[at + i] = octets[i]


@kernel
def iq4_nl(x, columns, importance, out, odd):
    """Blocks of 32 with a float16 scale."""
    z, words, packed = np.empty(SIZE, np.float32), np.empty(4, np.uint64), np.empty(2, np.uint64)
    levels, octets = words.view(np.uint8), packed.view(np.uint8)
    for first in range(0, x.size // N, S):
        valid = min(S, x.size // N - first)
        _fit(x, first, valid, columns, importance, N, z)
        for s in range(S):
            scale = z[SCALE + s]
            z[DIVISOR + s] = select(scale == ZERO, ZERO, ONE / scale)
        _level(z)
        for lane in range(valid):
            at = (first + lane) * 18
            odd[first + lane] = z[GOOD + lane] == ZERO or not abs(z[SCALE + lane]) < f4(60000)
            put_half(out, at, to_half(z[SCALE + lane]))
            _put_nibbles(z, lane, words, levels, packed, octets, out, at + 2)


@kernel
def iq4_xs(x, columns, importance, out, odd):
    """Super-blocks of 256: eight blocks with 6-bit scales of one float16."""
    z, words, packed = np.empty(SIZE, np.float32), np.empty(4, np.uint64), np.empty(2, np.uint64)
    levels, octets = words.view(np.uint8), packed.view(np.uint8)
    for first in range(0, x.size // N, S):
        valid = min(S, x.size // N - first)
        _fit(x, first, valid, columns, importance, K, z)
        for lane in range(0, valid, 8):
            block = (first + lane) // 8
            odd[block] = _put_scales(z, lane, out, block * 136)
        _level(z)
        for lane in range(valid):
            _put_nibbles(z, lane, words, levels, packed, octets, out, (first + lane) // 8 * 136 + 8 + lane % 8 * 16)


@jit
def _put_scales(z, first, out, at):
    """The head of a super-block; ``DIVISOR``: the inverses of its scales as they are read back. Whether it is odd."""
    largest, value, is_odd = ZERO, ZERO, False
    for j in range(8):
        scale = z[SCALE + first + j]
        is_odd |= z[GOOD + first + j] == ZERO
        if abs(scale) > largest:
            largest, value = abs(scale), scale
    scale = -value / f4(32)
    inverse = f4(1) / scale if scale != ZERO else ZERO
    put_half(out, at, to_half(scale))
    high = 0
    for j in range(8):
        steps = clamp(nearest(inverse * z[SCALE + first + j]), np.int32(-32), np.int32(31))
        rounded = scale * f4(steps)
        z[DIVISOR + first + j] = f4(1) / rounded if rounded != ZERO else ZERO
        bits = int(steps) + 32
        if j % 2 == 0:
            out[at + 4 + j // 2] = bits & 0xF
        else:
            out[at + 4 + j // 2] |= (bits & 0xF) << 4
        high |= (bits >> 4) << (2 * j)
    out[at + 2] = high & 0xFF
    out[at + 3] = high >> 8
    return is_odd or not abs(scale) < f4(60000)

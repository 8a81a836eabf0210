"""q4_0 to q8_0: blocks of 32 weights with a float16 scale, and perhaps a low, of their own.

The signature is that of :mod:`quant.compiled.k_quants`; ``odd`` has a flag for each block.
"""

import numpy as np

from quant.compiled.arithmetic import (
    ONE,
    ZERO,
    away_from_zero,
    clamp,
    f4,
    from_bits,
    larger,
    magnitude_bits,
    nearest,
    select,
    to_half,
    truncated,
)
from quant.compiled.fits import fit_affine, fit_symmetric, start_affine, start_symmetric
from quant.compiled.jit import jit, kernel
from quant.compiled.lanes import (
    BEST_INVERSE,
    BEST_LOW,
    DIVISOR,
    EPSILON,
    GOOD,
    HIGH,
    LOW,
    OFFSET,
    SCALE,
    SIGMA2,
    SIZE,
    S,
    W,
    X,
    gather,
    load,
    put_half,
    weigh_by_importance,
)
from quant.compiled.packing import pack_block, pack_fifth_bits

N = 32
_LEAST, _MOST = f4(1e-30), f4(60000)
"""Between these a scale's inverse is finite, and the scale is a float16 that is."""


@jit
def row_spread(x, first, valid, columns, z):
    """``SIGMA2``: the mean of the squares of the whole row that a lane's block belongs to."""
    last, mean = -1, ZERO
    for lane in range(S):
        row = (first + min(lane, valid - 1)) * N // columns
        if row != last:
            last, total = row, ZERO
            for i in range(row * columns, (row + 1) * columns):
                total += x[i] * x[i]
            mean = total / f4(columns)
        z[SIGMA2 + lane] = mean


@jit
def invert(z):
    """``DIVISOR``: the inverse of the scale, 0 of 0; ``GOOD``: whether both are sane."""
    for s in range(S):
        scale = z[SCALE + s]
        size = abs(scale)
        z[DIVISOR + s] = select(scale == ZERO, ZERO, ONE / scale)
        is_good = (size == ZERO) | ((size > _LEAST) & (size < _MOST))
        z[GOOD + s] = select(is_good & (abs(z[OFFSET + s]) < _MOST), ONE, ZERO)


@jit
def level_by_cut(z, middle, top):
    """Levels by the scale's inverse, cut off to integers as C does."""
    for i in range(N):
        for s in range(S):
            steps = truncated((z[X + i * S + s] - z[OFFSET + s]) * z[DIVISOR + s] + middle)
            z[W + i * S + s] = f4(clamp(steps, np.int32(-128), np.int32(top)))


@jit
def level_by_search(z, low, top):
    """The levels that the search found."""
    for i in range(N):
        for s in range(S):
            steps = nearest(z[BEST_INVERSE + s] * (z[X + i * S + s] - z[BEST_LOW + s]))
            z[W + i * S + s] = f4(clamp(steps, np.int32(low), np.int32(top)))


@jit
def symmetric(x, first, valid, columns, importance, half, z):
    """Scales and levels of a tile for q4_0 (``half`` 8) and q5_0 (16)."""
    load(x, first, N, valid, z)
    if importance is not None:
        row_spread(x, first, valid, columns, z)
        weigh_by_importance(z, first, N, valid, columns, importance)
        fit_symmetric(z, N, f4(half))
        for s in range(S):
            z[BEST_LOW + s] = ZERO
        level_by_search(z, -half, half - 1)
        for i in range(N):
            for s in range(S):
                z[W + i * S + s] = select(z[LOW + s] < EPSILON, ZERO, z[W + i * S + s] + f4(half))
        for s in range(S):
            z[GOOD + s] = select(abs(z[SCALE + s]) < _MOST, z[GOOD + s], ZERO)
    else:
        start_symmetric(z, N)
        for s in range(S):
            z[SCALE + s] = z[HIGH + s] / f4(-half)
            z[OFFSET + s] = ZERO
        invert(z)
        level_by_cut(z, f4(half + 0.5), 2 * half - 1)


@jit
def affine(x, first, valid, columns, importance, top, z):
    """Scales, lows and levels of a tile for q4_1 (``top`` 15) and q5_1 (31)."""
    load(x, first, N, valid, z)
    if importance is not None:
        row_spread(x, first, valid, columns, z)
        weigh_by_importance(z, first, N, valid, columns, importance)
        fit_affine(z, N, f4(top), f4(-0.9), f4(0.05), 36)
        level_by_search(z, 0, top)
        for s in range(S):
            is_good = (abs(z[SCALE + s]) < _MOST) & (abs(z[LOW + s]) < _MOST)
            z[OFFSET + s] = z[LOW + s]
            z[GOOD + s] = select(is_good, z[GOOD + s], ZERO)
    else:
        start_affine(z, N)
        for s in range(S):
            z[SCALE + s] = (z[HIGH + s] - z[LOW + s]) / f4(top)
            z[OFFSET + s] = z[LOW + s]
        invert(z)
        level_by_cut(z, f4(0.5), top)


@jit
def put_blocks(z, first, valid, has_low, has_fifth, out, odd):
    """The tile's blocks: scale, low, fifth bits, nibbles."""
    words, packed = np.empty(4, np.uint64), np.empty(2, np.uint64)
    levels, octets = words.view(np.uint8), packed.view(np.uint8)
    size = 18 + 2 * has_low + 4 * has_fifth
    for lane in range(valid):
        at = (first + lane) * size
        odd[first + lane] = z[GOOD + lane] == ZERO
        put_half(out, at, to_half(z[SCALE + lane]))
        at += 2
        if has_low:
            put_half(out, at, to_half(z[OFFSET + lane]))
            at += 2
        gather(z, lane, 1, N, levels)
        if has_fifth:
            bits = pack_fifth_bits(words)
            for i in range(4):
                out[at + i] = (bits >> (8 * i)) & 0xFF
            at += 4
        pack_block(words, packed)
        for i in range(16):
            out[at + i] = octets[i]


@jit
def symmetric_blocks(x, columns, importance, out, odd, half, has_fifth):
    """All blocks of a symmetric format, a tile at a time."""
    z = np.empty(SIZE, np.float32)
    for first in range(0, x.size // N, S):
        valid = min(S, x.size // N - first)
        symmetric(x, first, valid, columns, importance, half, z)
        put_blocks(z, first, valid, False, has_fifth, out, odd)


@jit
def affine_blocks(x, columns, importance, out, odd, top, has_fifth):
    """All blocks of a format with a low, a tile at a time."""
    z = np.empty(SIZE, np.float32)
    for first in range(0, x.size // N, S):
        valid = min(S, x.size // N - first)
        affine(x, first, valid, columns, importance, top, z)
        put_blocks(z, first, valid, True, has_fifth, out, odd)


@kernel
def q4_0(x, columns, importance, out, odd):
    """Levels from -8 to 7 times a scale."""
    symmetric_blocks(x, columns, importance, out, odd, 8, False)


@kernel
def q5_0(x, columns, importance, out, odd):
    """Levels from -16 to 15 times a scale."""
    symmetric_blocks(x, columns, importance, out, odd, 16, True)


@kernel
def q4_1(x, columns, importance, out, odd):
    """Levels from 0 to 15 times a scale, plus a low."""
    affine_blocks(x, columns, importance, out, odd, 15, False)


@kernel
def q5_1(x, columns, importance, out, odd):
    """Levels from 0 to 31 times a scale, plus a low."""
    affine_blocks(x, columns, importance, out, odd, 31, True)


@kernel
def q8_0(x, columns, importance, out, odd):
    """Levels from -127 to 127 times a scale; importance makes no difference. No lanes: nothing is summed."""
    z, levels = np.empty(S * N, np.float32), np.empty(S * N, np.uint8)
    for first in range(0, x.size // N, S):
        valid = min(S, x.size // N - first)
        for i in range(valid * N):
            z[i] = x[first * N + i]
        for lane in range(valid):
            most = np.int32(0)
            for i in range(N):
                most = larger(most, magnitude_bits(z[lane * N + i]))
            scale = from_bits(np.int64(most)) / f4(127)
            odd[first + lane] = not (scale == ZERO or _LEAST < scale < _MOST)
            put_half(out, (first + lane) * 34, to_half(scale))
            inverse = f4(1) / scale if scale != ZERO else ZERO
            for i in range(N):
                z[lane * N + i] *= inverse
        for i in range(valid * N):
            levels[i] = away_from_zero(z[i])
        for lane in range(valid):
            for i in range(N):
                out[(first + lane) * 34 + 2 + i] = levels[lane * N + i]

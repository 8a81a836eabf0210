"""q2_k to q6_k: super-blocks of 256 weights whose 8 or 16 blocks have scales that are quantized themselves.

Each kernel has the same signature: float32 weights ``x`` (whole rows, flat), ``columns`` of a row, ``importance`` of
each column or None, bytes ``out``, and ``odd``, a flag for each super-block, which is set where the fast arithmetic is
not certain to be ggml's: its caller has ggml make these.
"""

import numpy as np

from quant.compiled.arithmetic import ZERO, clamp, f4, from_half, nearest, to_half
from quant.compiled.fits import fit_affine, fit_affine_by_magnitude, fit_descending, fit_symmetric
from quant.compiled.jit import jit, kernel
from quant.compiled.lanes import (
    AUX,
    BEST_INVERSE,
    BEST_LOW,
    DIVISOR,
    EPSILON,
    GOOD,
    LOW,
    NEXT,
    OFFSET,
    SCALE,
    SIZE,
    SUM_W,
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
from quant.compiled.packing import (
    copy,
    pack_high_bits,
    pack_nibbles,
    pack_nibbles_across,
    pack_pairs,
    pack_upper_pairs,
)
from quant.compiled.scales import (
    eight_bit_scales,
    fit_signed,
    four_bit_scales,
    put_signed_scales,
    signed_scales,
    six_bit_scales,
)

K = 256


@jit
def weigh_by_size(z, n):
    """``W``: the block's root mean square plus the element's magnitude."""
    for s in range(S):
        z[SUM_W + s] = ZERO
    for i in range(n):
        for s in range(S):
            v = z[X + i * S + s]
            z[SUM_W + s] += v * v
    for s in range(S):
        z[SUM_W + s] = np.sqrt(z[SUM_W + s] / f4(n))
    for i in range(n):
        for s in range(S):
            z[W + i * S + s] = z[SUM_W + s] + abs(z[X + i * S + s])


@jit
def weigh_by_magnitude(z, n):
    """``W``: the element's magnitude."""
    for i in range(n):
        for s in range(S):
            z[W + i * S + s] = abs(z[X + i * S + s])


@jit
def sum_weights(z, n):
    """``SUM_W``: the sum of a block's weights."""
    for s in range(S):
        z[SUM_W + s] = ZERO
    for i in range(n):
        for s in range(S):
            z[SUM_W + s] += z[W + i * S + s]


@jit
def level(z, n, lowest, top):
    """The levels of all lanes by ``DIVISOR`` and ``OFFSET``, counted from ``lowest``."""
    for i in range(n):
        for s in range(S):
            steps = nearest((z[X + i * S + s] + z[OFFSET + s]) / z[DIVISOR + s])
            z[W + i * S + s] = f4(clamp(steps, np.int32(lowest), np.int32(top))) - f4(lowest)


@jit
def level_as_searched(z, s, n, top):
    """The levels that the search of lane ``s`` found: ggml keeps them where the quantized scale is 0."""
    for i in range(n):
        steps = nearest(z[BEST_INVERSE + s] * (z[X + i * S + s] - z[BEST_LOW + s]))
        z[W + i * S + s] = f4(clamp(steps, np.int32(0), np.int32(top)))


@jit
def level_as_searched_symmetric(z, s, n, top):
    """The same for a symmetric fit; zeros for a block of zeros."""
    for i in range(n):
        steps = clamp(nearest(z[BEST_INVERSE + s] * z[X + i * S + s]), np.int32(-top), np.int32(top - 1))
        z[W + i * S + s] = ZERO if z[LOW + s] < EPSILON else f4(steps) + f4(top)


@jit
def mark(z, first, count, scale, low, odd, at):
    """``odd`` if any of the super-block's lanes has doubts, or its scales are too large for float16."""
    is_odd = not (abs(scale) < f4(65000) and abs(low) < f4(65000))
    for s in range(first, first + count):
        is_odd |= z[GOOD + s] == ZERO
    odd[at] = is_odd


@jit
def divide_by(z, first, count, scale, low, scales, lows):
    """How a super-block's levels are computed: by its scales as they are read back."""
    for j in range(count):
        z[DIVISOR + first + j] = scale * f4(scales[j])
        z[OFFSET + first + j] = low * f4(lows[j])


@jit
def affine_levels(z, n, valid, top):
    """The levels of all lanes."""
    level(z, n, 0, top)
    for s in range(valid):
        if z[DIVISOR + s] == ZERO:
            level_as_searched(z, s, n, top)


@jit
def fit_blocks_of_32(x, first, valid, columns, importance, top, step0, step, steps, z):
    """Load and fit a tile for q4_k or q5_k."""
    load(x, first, 32, valid, z)
    if importance is not None:
        spread(x, first, 32, valid, K, f4(2 / K), z)
        weigh_by_importance(z, first, 32, valid, columns, importance)
        fit_affine(z, 32, top, f4(-0.9), f4(0.05), 36)
    else:
        weigh_by_size(z, 32)
        fit_affine(z, 32, top, step0, step, steps)


@jit
def blocks_of_32(x, columns, importance, out, odd, top, step0, step, steps, has_high, packed):
    """All super-blocks of q4_k, or of q5_k, which ``has_high`` bits; ``packed`` has room for one's levels."""
    z, words = np.empty(SIZE, np.float32), np.empty(K // 8, np.uint64)
    values, scales, lows = np.empty(8, np.float32), np.empty(8, np.uint8), np.empty(8, np.uint8)
    levels, size, above = words.view(np.uint8), 16 + 8 * packed.size, 4 * has_high
    for first in range(0, x.size // 32, S):
        valid = min(S, x.size // 32 - first)
        fit_blocks_of_32(x, first, valid, columns, importance, f4(top), step0, step, steps, z)
        for lane in range(0, valid, 8):
            block = (first + lane) // 8
            scale, low = six_bit_scales(z, lane, importance, values, scales, lows, out, block * size)
            divide_by(z, lane, 8, scale, low, scales, lows)
            mark(z, lane, 8, scale, low, odd, block)
        affine_levels(z, 32, valid, top)
        for lane in range(0, valid, 8):
            gather(z, lane, 8, 32, levels)
            if has_high:
                pack_high_bits(words, 4, packed)
            pack_nibbles(words, packed[above:])
            copy(packed, out, (first + lane) // 8 * size + 16)


@kernel
def q4_k(x, columns, importance, out, odd):
    """4-bit levels of 8 blocks of 32; see the module for the signature."""
    blocks_of_32(x, columns, importance, out, odd, 15, f4(-1), f4(0.1), 20, False, np.empty(16, np.uint64))


@kernel
def q5_k(x, columns, importance, out, odd):
    """5-bit levels of 8 blocks of 32: the high bits apart."""
    blocks_of_32(x, columns, importance, out, odd, 31, f4(-0.5), f4(0.1), 15, True, np.empty(20, np.uint64))


@kernel
def q2_k(x, columns, importance, out, odd):
    """2-bit levels of 16 blocks of 16."""
    z, words, packed = np.empty(SIZE, np.float32), np.empty(K // 8, np.uint64), np.empty(8, np.uint64)
    values, scales, lows = np.empty(16, np.float32), np.empty(16, np.uint8), np.empty(16, np.uint8)
    levels = words.view(np.uint8)
    for first in range(0, x.size // 16, S):
        valid = min(S, x.size // 16 - first)
        load(x, first, 16, valid, z)
        if importance is not None:
            spread(x, first, 16, valid, K, f4(1 / K), z)
            weigh_by_importance(z, first, 16, valid, columns, importance)
            fit_affine(z, 16, f4(3), f4(-0.9), f4(0.05), 36)
        else:
            weigh_by_magnitude(z, 16)
            fit_affine_by_magnitude(z, 16, f4(3), f4(-0.5), f4(0.1), 15)
        for lane in range(0, valid, 16):
            block = (first + lane) // 16
            at = block * 84
            scale, low = four_bit_scales(z, lane, importance, values, scales, lows)
            mark(z, lane, 16, scale, low, odd, block)
            for j in range(16):
                out[at + j] = scales[j] | (lows[j] << 4)
                scales[j], lows[j] = out[at + j] & 0xF, out[at + j] >> 4
            put_half(out, at + 80, to_half(scale))
            put_half(out, at + 82, to_half(low))
            divide_by(z, lane, 16, from_half(to_half(scale)), from_half(to_half(low)), scales, lows)
        affine_levels(z, 16, valid, 3)
        for lane in range(0, valid, 16):
            gather(z, lane, 16, 16, levels)
            pack_pairs(words, packed)
            copy(packed, out, (first + lane) // 16 * 84 + 16)


@kernel
def q3_k(x, columns, importance, out, odd):
    """3-bit signed levels of 16 blocks of 16, with 6-bit scales: the high bits apart."""
    z, words, packed = np.empty(SIZE, np.float32), np.empty(K // 8, np.uint64), np.empty(12, np.uint64)
    values, weights, scales = np.empty(16, np.float32), np.empty(16, np.float32), np.empty(16, np.int64)
    levels = words.view(np.uint8)
    for first in range(0, x.size // 16, S):
        valid = min(S, x.size // 16 - first)
        load(x, first, 16, valid, z)
        if importance is not None:
            spread(x, first, 16, valid, K, f4(2 / K), z)
            weigh_by_importance(z, first, 16, valid, columns, importance)
            sum_weights(z, 16)
            fit_symmetric(z, 16, f4(4))
        else:
            fit_descending(z, 16, f4(4))
        for lane in range(0, valid, 16):
            block = (first + lane) // 16
            for j in range(16):
                values[j], weights[j] = z[SCALE + lane + j], z[SUM_W + lane + j]
            if importance is not None:
                scale = fit_signed(values, weights, 16, 32, scales)
            else:
                scale = signed_scales(values, scales)
            mark(z, lane, 16, scale, ZERO, odd, block)
            put_signed_scales(scale, scales, out, block * 110 + 96)
            for j in range(16):
                z[DIVISOR + lane + j] = from_half(to_half(scale)) * f4((scales[j] & 63) - 32)
                z[OFFSET + lane + j] = ZERO
        level(z, 16, -4, 3)
        for s in range(valid):
            if z[DIVISOR + s] == ZERO and importance is not None:
                level_as_searched_symmetric(z, s, 16, 4)
            elif z[DIVISOR + s] == ZERO:
                level_as_descended(z, s)
        for lane in range(0, valid, 16):
            gather(z, lane, 16, 16, levels)
            pack_high_bits(words, 2, packed)
            pack_pairs(words, packed[4:])
            copy(packed, out, (first + lane) // 16 * 110)


@jit
def level_as_descended(z, s):
    """The levels that ``fit_descending`` left for a lane."""
    for i in range(16):
        z[W + i * S + s] = ZERO if z[LOW + s] < EPSILON else z[AUX + i * S + s] + f4(4)


@kernel
def q6_k(x, columns, importance, out, odd):
    """6-bit signed levels of 16 blocks of 16, with 8-bit scales: the two high bits apart."""
    z, words, packed = np.empty(SIZE, np.float32), np.empty(K // 8, np.uint64), np.empty(24, np.uint64)
    scales, levels = np.empty(16, np.int64), words.view(np.uint8)
    for first in range(0, x.size // 16, S):
        valid = min(S, x.size // 16 - first)
        load(x, first, 16, valid, z)
        if importance is not None:
            copy_importance(z, first, 16, valid, columns, importance)
        else:
            weigh_by_square(z, 16)
        fit_symmetric(z, 16, f4(32))
        for lane in range(0, valid, 16):
            block = (first + lane) // 16
            scale = eight_bit_scales(z, lane, scales)
            mark(z, lane, 16, scale, ZERO, odd, block)
            put_half(out, block * 210 + 208, to_half(scale))
            for j in range(16):
                out[block * 210 + 192 + j] = scales[j] & 0xFF
                z[DIVISOR + lane + j] = from_half(to_half(scale)) * f4(scales[j])
                z[OFFSET + lane + j] = ZERO
                z[NEXT + lane + j] = scale
        level(z, 16, -32, 31)
        for s in range(valid):
            if z[DIVISOR + s] == ZERO:
                level_as_searched_symmetric(z, s, 16, 32)
        for lane in range(0, valid, 16):
            at = (first + lane) // 16 * 210
            if z[NEXT + lane] == ZERO:
                out[at : at + 210] = 0
                continue
            gather(z, lane, 16, 16, levels)
            pack_nibbles_across(words, packed)
            pack_upper_pairs(words, packed[16:])
            copy(packed, out, at)


@jit
def copy_importance(z, first, n, valid, columns, importance):
    """``W``: each column's importance alone."""
    for lane in range(S):
        start = (first + min(lane, valid - 1)) * n % columns
        for i in range(n):
            z[W + i * S + lane] = importance[start + i]

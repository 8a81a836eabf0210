"""Scales of groups of weights in 16 bits, as :mod:`quant.fitting` chooses them: the same operations in the same order.

Each lane has a group of its own, of up to 128 weights, which lie transposed as in :mod:`quant.compiled.lanes`.
"""

import numpy as np

from quant.compiled.arithmetic import ONE, ZERO, bits_of, f4, from_bits, from_half, rounded, select, to_half
from quant.compiled.jit import jit, kernel

S = 32
_MOST = 128
LARGEST, SCALE, ALONG, SQUARE, BEST, LEAST = (_MOST * S + 80 + at * S for at in range(6))
SIZE = LEAST + S
_LOW, _HIGH, _TWO, _INFINITY = f4(-8), f4(7), f4(2), f4(float("inf"))


@jit
def stored(value, is_half):
    """``value`` as float16 or bfloat16 has it; 1 where nothing is left."""
    if is_half:
        kept = from_half(to_half(value))
    else:
        bits = np.int64(bits_of(value)) & 0xFFFFFFFF
        kept = from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000)
    return select(kept == ZERO, ONE, kept)


@jit
def number(value, scale):
    """The nearest of the numbers from -8 to 7, as a float."""
    nearest = rounded(value / scale)
    nearest = select(nearest < _LOW, _LOW, nearest)
    return select(nearest > _HIGH, _HIGH, nearest)


@jit
def load_groups(x, first, size, valid, z):
    """Transpose ``valid`` groups from group ``first`` on (the last fills what is left) and find the largest weights."""
    for lane in range(S):
        start = (first + min(lane, valid - 1)) * size
        for i in range(size):
            z[i * S + lane] = x[start + i]
    for s in range(S):
        z[BEST + s] = z[s]
        z[LEAST + s] = z[s]
    for i in range(1, size):
        for s in range(S):
            v, low, high = z[i * S + s], z[LEAST + s], z[BEST + s]
            z[LEAST + s] = select(v < low, v, low)
            z[BEST + s] = select(v > high, v, high)
    for s in range(S):
        low, high = z[LEAST + s], z[BEST + s]
        z[LARGEST + s] = select(high > -low, high, low)


@jit
def sums(z, size):
    """What a candidate's numbers add up to, with the weights and with themselves."""
    for s in range(S):
        z[ALONG + s] = ZERO
        z[SQUARE + s] = ZERO
    for i in range(size):  # not several weights at once: LLVM makes no SIMD of that here
        for s in range(S):
            v = z[i * S + s]
            q = number(v, z[SCALE + s])
            z[ALONG + s] += q * v
            z[SQUARE + s] += q * q


@jit
def keep(z, lane, tried):
    """The scale ``tried`` where its error is the smallest so far."""
    error = tried * (tried * z[SQUARE + lane] - _TWO * z[ALONG + lane])
    if error < z[LEAST + lane]:
        z[LEAST + lane] = error
        z[BEST + lane] = tried


@jit
def fit(z, size, plain, divisors, is_half):
    """The best scale of each lane."""
    for s in range(S):
        z[SCALE + s] = stored(abs(z[LARGEST + s]) / plain, is_half)
        z[BEST + s] = z[SCALE + s]
        z[LEAST + s] = _INFINITY
    for candidate in range(divisors.size + 1):
        if candidate > 0:
            for s in range(S):
                z[SCALE + s] = stored(z[LARGEST + s] / divisors[candidate - 1], is_half)
        sums(z, size)
        for s in range(S):
            scale, along, square = z[SCALE + s], z[ALONG + s], z[SQUARE + s]
            keep(z, s, scale)
            keep(z, s, stored(select(square > ZERO, along / square, scale), is_half))


@kernel
def fit_groups(x, size, plain, divisors, is_half, scales, octets):
    """Of groups of ``size`` finite float32: their scales, and their numbers plus 8, two to a byte."""
    z = np.empty(SIZE, np.float32)
    half = size // 2
    for first in range(0, scales.size, S):
        valid = min(S, scales.size - first)
        load_groups(x, first, size, valid, z)
        fit(z, size, plain, divisors, is_half)
        for i in range(size):
            for s in range(S):
                z[i * S + s] = number(z[i * S + s], z[BEST + s]) - _LOW
        for lane in range(valid):
            scales[first + lane] = z[BEST + lane]
            for i in range(half):
                even, odd = np.uint8(z[2 * i * S + lane]), np.uint8(z[(2 * i + 1) * S + lane])
                octets[(first + lane) * half + i] = even | (odd << 4)

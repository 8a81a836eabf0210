"""What all kernels stand on: a tile of blocks that lie side by side.

A *tile* is up to ``S`` blocks of 16 or 32 weights. It lies transposed in a scratch array, element ``i`` of block
``lane`` at ``X + i * S + lane``: a loop over lanes is one SIMD instruction for eight blocks, while each block's own
sums still run in the order of its elements, as ggml's do. That order decides the last bit of a sum, and so the bytes.

The scratch is one flat array with constant offsets because LLVM then sees that its parts don't overlap.
"""

import numpy as np

from quant.compiled.arithmetic import ZERO, f4
from quant.compiled.jit import jit

EPSILON = f4(1e-15)
"""``GROUP_MAX_EPS``: a block whose largest magnitude is smaller counts as zeros."""

S = 64
"""Lanes of a tile: two arrays of 32 elements and the sums stay within a first-level cache."""
_GAP = 5 * 16  # arrays a multiple of 4096 bytes apart would contend for the same cache lines
X = 0
W = X + 32 * S + _GAP
"""Weights of the squared error, one for each element; after the fit the levels, as floats."""
AUX = W + 32 * S + _GAP
"""A candidate's levels; q3_k: the levels so far."""
_SUMS = AUX + 32 * S + _GAP
LOW, HIGH, FLOOR, SUM_W, SUM_X, INVERSE, BEST, SUM_L, SUM_L2, SUM_XL, NEW_SCALE, NEW_LOW, ERROR = (
    _SUMS + at * S for at in range(13)
)
"""A number for each lane, while a fit is going on."""
SCALE, BEST_INVERSE, BEST_LOW, GOOD, SIGMA2 = (_SUMS + at * S for at in range(13, 18))
"""What a fit leaves, a number for each lane: the scale, how the best levels are computed, and whether all held."""
DIVISOR, OFFSET = (_SUMS + at * S for at in range(18, 20))
"""What a lane's levels are computed by: ``(x + OFFSET) / DIVISOR``."""
NEXT = _SUMS + 20 * S
"""What ``BEST`` and others will be, five numbers for each lane."""
SIZE = NEXT + 5 * S


@jit
def put_half(out, at, bits):
    """Store a float16's two bytes."""
    out[at] = bits & 0xFF
    out[at + 1] = bits >> 8


@jit
def load(x, first, n, valid, z):
    """Transpose ``valid`` blocks of ``n`` weights from block ``first`` on into ``z``; the last fills what is left."""
    for lane in range(S):
        start = (first + min(lane, valid - 1)) * n
        for i in range(n):
            z[X + i * S + lane] = x[start + i]


@jit
def weigh_by_importance(z, first, n, valid, columns, importance):
    """``W``: each column's importance, times what the weight adds to its block's spread (``SIGMA2``)."""
    for lane in range(S):
        start = (first + min(lane, valid - 1)) * n % columns
        sigma2 = z[SIGMA2 + lane]
        for i in range(n):
            v = z[X + i * S + lane]
            z[W + i * S + lane] = importance[start + i] * np.sqrt(sigma2 + v * v)


@jit
def spread(x, first, n, valid, over, factor, z):
    """``SIGMA2``: ``factor`` times the sum of squares of the ``over`` weights that a lane's block belongs to."""
    per = over // n
    for lane in range(valid):
        if lane % per == 0 or lane == 0:
            start = (first + lane) * n // over * over
            total = ZERO
            for i in range(over):
                total += x[start + i] * x[start + i]
            total = total * factor
        z[SIGMA2 + lane] = total
    for lane in range(valid, S):
        z[SIGMA2 + lane] = z[SIGMA2 + valid - 1]


@jit
def weigh_by_square(z, n):
    """``W``: the element's square."""
    for i in range(n):
        for s in range(S):
            v = z[X + i * S + s]
            z[W + i * S + s] = v * v


@jit
def gather(z, first, count, n, levels):
    """The levels of ``count`` lanes from ``first`` on, as bytes in the order of the weights."""
    for j in range(count):
        for i in range(n):
            levels[j * n + i] = np.uint8(z[W + i * S + first + j])

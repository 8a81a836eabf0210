"""The scales of a super-block's blocks, quantized themselves: ggml's searches over 8 or 16 numbers."""

import numpy as np

from quant.compiled.arithmetic import ONE, ZERO, clamp, f4, from_half, nearest, to_half
from quant.compiled.jit import jit
from quant.compiled.lanes import EPSILON, LOW, SCALE, SUM_W, put_half


@jit
def largest_scales(z, first, count):
    """The largest scale and the largest negated low of ``count`` lanes; 0 if none is positive."""
    scale, low = ZERO, ZERO
    for s in range(first, first + count):
        scale = z[SCALE + s] if z[SCALE + s] > scale else scale
        low = -z[LOW + s] if -z[LOW + s] > low else low
    return scale, low


@jit
def best_inverse(values, weights, n, top, largest):
    """Of nine inverse scales around ``top / largest`` the one with the smallest error."""
    inverse = f4(top) / largest
    scale = ONE / inverse
    best = ZERO
    for i in range(n):
        away = values[i] - scale * f4(np.int64(nearest(inverse * values[i])) & 0xFF)
        best += weights[i] * away * away
    for k in range(-4, 5):
        if k == 0:
            continue
        candidate = (f4(0.1) * f4(k) + f4(top)) / largest
        scale = ONE / candidate
        error = ZERO
        for i in range(n):
            away = values[i] - scale * f4(min(np.int64(nearest(candidate * values[i])), top))
            error += weights[i] * away * away
        if error < best:
            best = error
            inverse = candidate
    return inverse


@jit
def fit_positive(values, weights, n, top, levels):
    """``make_qp_quants``: one scale for ``n`` numbers, and their ``levels`` (bytes that wrap, as ggml's do)."""
    largest = ZERO
    for i in range(n):
        largest = values[i] if values[i] > largest else largest
    if largest < EPSILON:
        for i in range(n):
            levels[i] = 0
        return ZERO
    inverse = best_inverse(values, weights, n, top, largest)
    sum_xl, sum_l2 = ZERO, ZERO
    for i in range(n):
        steps = min(np.int64(nearest(inverse * values[i])), top)
        levels[i] = steps & 0xFF
        sum_xl += weights[i] * values[i] * f4(steps)
        sum_l2 += weights[i] * f4(steps) * f4(steps)
    for _ in range(5):
        old_xl, old_l2 = sum_xl, sum_l2
        sum_xl, sum_l2 = move_levels(values, weights, n, top, levels, sum_xl, sum_l2)
        if sum_xl == old_xl and sum_l2 == old_l2:
            break
    return sum_xl / sum_l2 if sum_l2 > ZERO else ZERO


@jit
def move_levels(values, weights, n, top, levels, sum_xl, sum_l2):
    """Move each level to where the error is smaller, with the sums of all."""
    for i in range(n):
        w, v, steps = weights[i], values[i], np.int64(levels[i])
        new_xl = sum_xl - w * v * f4(steps)
        new_l2 = sum_l2 - w * f4(steps) * f4(steps)
        if not (new_xl > ZERO and new_l2 > ZERO):
            continue
        new_steps = min(np.int64(nearest(v * new_l2 / new_xl)), top)
        if new_steps == steps:
            continue
        new_xl += w * v * f4(new_steps)
        new_l2 += w * f4(new_steps) * f4(new_steps)
        if new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2:
            levels[i] = new_steps & 0xFF
            sum_xl, sum_l2 = new_xl, new_l2
    return sum_xl, sum_l2


@jit
def six_bit_scales(z, first, importance, values, scales, lows, out, at):
    """The header of q4_k and q5_k: two float16, then eight scales and eight lows of six bits, in 12 bytes."""
    if importance is not None:
        for j in range(8):
            values[j] = z[SCALE + first + j]
        scale = fit_positive(values, z[SUM_W + first : SUM_W + first + 8], 8, 63, scales)
        for j in range(8):
            values[j] = -z[LOW + first + j]
        low = fit_positive(values, z[SUM_W + first : SUM_W + first + 8], 8, 63, lows)
    else:
        scale, low = largest_scales(z, first, 8)
        to_scale = f4(63) / scale if scale > ZERO else ZERO
        to_low = f4(63) / low if low > ZERO else ZERO
        for j in range(8):
            scales[j] = min(63, np.int64(nearest(to_scale * z[SCALE + first + j])) & 0xFF)
            lows[j] = min(63, np.int64(nearest(to_low * -z[LOW + first + j])) & 0xFF)
        scale, low = scale / f4(63), low / f4(63)
    put_half(out, at, to_half(scale))
    put_half(out, at + 2, to_half(low))
    for j in range(4):
        out[at + 4 + j] = scales[j]
        out[at + 8 + j] = lows[j]
    for j in range(4, 8):
        out[at + 8 + j] = (scales[j] & 0xF) | ((lows[j] & 0xF) << 4)
        out[at + j] |= (scales[j] >> 4) << 6
        out[at + 4 + j] |= (lows[j] >> 4) << 6
    for j in range(8):  # as they are read back
        if j < 4:
            scales[j], lows[j] = out[at + 4 + j] & 63, out[at + 8 + j] & 63
        else:
            scales[j] = (out[at + 8 + j] & 0xF) | ((out[at + j] >> 6) << 4)
            lows[j] = (out[at + 8 + j] >> 4) | ((out[at + 4 + j] >> 6) << 4)
    return from_half(to_half(scale)), from_half(to_half(low))


@jit
def four_bit_scales(z, first, importance, values, scales, lows):
    """q2_k's scale and low, and their 16 levels each."""
    if importance is not None:
        for j in range(16):
            values[j] = z[SCALE + first + j]
        scale = fit_positive(values, z[SUM_W + first : SUM_W + first + 16], 16, 15, scales)
        for j in range(16):
            values[j] = -z[LOW + first + j]
        return scale, fit_positive(values, z[SUM_W + first : SUM_W + first + 16], 16, 15, lows)
    scale, low = largest_scales(z, first, 16)
    to_scale = f4(15) / scale if scale > ZERO else ZERO
    to_low = f4(15) / low if low > ZERO else ZERO
    for j in range(16):
        scales[j] = nearest(to_scale * z[SCALE + first + j]) if scale > ZERO else 0
        lows[j] = nearest(to_low * -z[LOW + first + j]) if low > ZERO else 0
    return scale / f4(15), low / f4(15)


@jit
def fit_signed(values, weights, n, top, levels):
    """``make_qx_quants`` with weights, for the ``n`` scales of one super-block."""
    largest, value = ZERO, ZERO
    for i in range(n):
        if abs(values[i]) > largest:
            largest, value = abs(values[i]), values[i]
    if largest < EPSILON:
        for i in range(n):
            levels[i] = 0
        return ZERO
    scale, best, best_inverse = ZERO, ZERO, ZERO
    for turn in range(-10, 10):
        if turn == 0:
            continue
        k = 0 if turn == -10 else turn  # the middle first
        inverse = -(f4(top) + f4(0.1) * f4(k)) / value
        sum_xl, sum_l2 = ZERO, ZERO
        for i in range(n):
            level = f4(clamp(nearest(inverse * values[i]), np.int32(-top), np.int32(top - 1)))
            sum_xl += weights[i] * values[i] * level
            sum_l2 += weights[i] * level * level
        if turn == -10:
            scale = ZERO if sum_l2 == ZERO else sum_xl / sum_l2
            best = scale * sum_xl
            best_inverse = inverse
        elif sum_l2 > ZERO and sum_xl * sum_xl > best * sum_l2:
            scale = sum_xl / sum_l2
            best = scale * sum_xl
            best_inverse = inverse
    for i in range(n):
        levels[i] = np.int64(clamp(nearest(best_inverse * values[i]), np.int32(-top), np.int32(top - 1))) + top
    return scale


@jit
def signed_scales(values, levels):
    """q3_k's scale without importance: by the largest of the blocks' scales. Six bits each, and 0 if all are 0."""
    largest, value = ZERO, ZERO
    for j in range(16):
        if abs(values[j]) > largest:
            largest, value = abs(values[j]), values[j]
    if value == ZERO:
        for j in range(16):
            levels[j] = 0
        return ZERO
    inverse = f4(-32) / value
    for j in range(16):
        steps = np.int64(nearest(inverse * values[j])) & 0xFF  # int8_t
        steps = steps - 256 if steps > 127 else steps
        levels[j] = max(-32, min(31, int(steps))) + 32
    return f4(1) / inverse


@jit
def put_signed_scales(scale, levels, out, at):
    """Sixteen levels of six bits in 12 bytes, then the scale."""
    for i in range(12):
        out[at + i] = 0
    for j in range(16):
        out[at + j % 8] |= (levels[j] & 0xF) << (4 * (j // 8))
        out[at + 8 + j % 4] |= ((levels[j] >> 4) & 3) << (2 * (j // 4))
    put_half(out, at + 12, to_half(scale))


@jit
def eight_bit_scales(z, first, levels):
    """q6_k's scale by the largest of the blocks' scales, and a signed byte for each; 0 for a super-block of zeros."""
    largest, value = ZERO, ZERO
    for j in range(16):
        scale = z[SCALE + first + j]
        if abs(scale) > largest:
            largest, value = abs(scale), scale
    if largest < EPSILON:
        return ZERO
    inverse = f4(-128) / value
    for j in range(16):
        steps = min(127, int(nearest(inverse * z[SCALE + first + j]))) & 0xFF  # int8_t
        levels[j] = steps - 256 if steps > 127 else steps
    return f4(1) / inverse

"""What C does and numba would not: 32-bit integers, conversions to the last bit, choices without branches."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quant.compiled.jit import jit

f4 = np.float32
ZERO, ONE = f4(0), f4(1)


@intrinsic
def select(_context, condition, yes, no):
    """``yes if condition else no`` as a value. Python's own form is a branch, which LLVM turns into masked stores."""

    def build(_context, builder, _signature, args):
        return builder.select(*args)

    return yes(types.boolean, yes, yes), build


@intrinsic
def nearest(_context, value):
    """``nearest_int`` of ggml in all its bits: it wraps from 2^22 on, and has an answer for infinity and NaN."""

    def build(_context, builder, _signature, args):
        i32 = ir.IntType(32)
        moved = builder.fadd(args[0], ir.Constant(ir.FloatType(), 12582912.0))
        mantissa = builder.and_(builder.bitcast(moved, i32), ir.Constant(i32, 0x007FFFFF))
        return builder.sub(mantissa, ir.Constant(i32, 0x00400000))

    return types.int32(types.float32), build


@intrinsic
def clamp(_context, value, low, high):
    """``value`` held within ``low`` and ``high``, in 32 bits: numba would widen to 64."""

    def build(_context, builder, _signature, args):
        value, low, high = args
        value = builder.select(builder.icmp_signed("<", value, low), low, value)
        return builder.select(builder.icmp_signed(">", value, high), high, value)

    return types.int32(types.int32, types.int32, types.int32), build


@intrinsic
def bits_of(_context, value):
    """The 32 bits of a float."""

    def build(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), build


@intrinsic
def from_bits(_context, bits):
    """The float that 32 bits are."""

    def build(_context, builder, _signature, args):
        return builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), build


@intrinsic
def magnitude_bits(_context, value):
    """The bits of ``abs(value)``: they compare as the magnitudes do, and their maximum may be taken in any order."""

    def build(_context, builder, _signature, args):
        i32 = ir.IntType(32)
        return builder.and_(builder.bitcast(args[0], i32), ir.Constant(i32, 0x7FFFFFFF))

    return types.int32(types.float32), build


@intrinsic
def larger(_context, a, b):
    """The larger of two integers, in 32 bits."""

    def build(_context, builder, _signature, args):
        return builder.select(builder.icmp_signed(">", *args), *args)

    return types.int32(types.int32, types.int32), build


@intrinsic
def truncated(_context, value):
    """C's ``(int) value``."""

    def build(_context, builder, _signature, args):
        return builder.fptosi(args[0], ir.IntType(32))

    return types.int32(types.float32), build


@intrinsic
def away_from_zero(_context, value):
    """C's ``(int) roundf(value)``: ties away from zero."""

    def build(_context, builder, _signature, args):
        round_ = builder.module.declare_intrinsic("llvm.round", [ir.FloatType()])
        return builder.fptosi(builder.call(round_, args), ir.IntType(32))

    return types.int32(types.float32), build


@intrinsic
def half_to_float(_context, bits):
    """The float that float16's bits are, without a branch: the exponent is moved by a product, which is exact."""

    def build(_context, builder, _signature, args):
        i32, f32 = ir.IntType(32), ir.FloatType()
        number = lambda value: ir.Constant(i32, value)  # noqa: E731
        bits = builder.zext(args[0], i32)
        moved = builder.shl(builder.and_(bits, number(0x7FFF)), number(13))
        scaled = builder.bitcast(builder.fmul(builder.bitcast(moved, f32), ir.Constant(f32, 2.0**112)), i32)
        is_special = builder.icmp_unsigned(">=", moved, number(0x7C00 << 13))
        magnitude = builder.select(is_special, builder.or_(moved, number(0x7F800000)), scaled)
        sign = builder.shl(builder.and_(bits, number(0x8000)), number(16))
        return builder.bitcast(builder.or_(magnitude, sign), f32)

    return types.float32(types.uint16), build


@intrinsic
def rounded(_context, value):
    """``nearest`` as a float, in one instruction, for values that are known to lie below 2^22: ties to even."""

    def build(_context, builder, _signature, args):
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), args)

    return types.float32(types.float32), build


@jit
def held(value, top):
    """``value`` within 0 and ``top``; NaN is 0."""
    value = select(value > ZERO, value, ZERO)
    return select(value < top, value, top)


@jit
def to_half(value):
    """A float's nearest float16, ties to even, as bits."""
    bits = np.int64(bits_of(value)) & 0xFFFFFFFF
    sign = (bits >> 16) & 0x8000
    bits &= 0x7FFFFFFF
    if bits > 0x7F800000:
        return sign | 0x7E00
    if bits >= 0x477FF000:  # from 65520 on
        return sign | 0x7C00
    if bits < 0x38800000:  # a float16 below 2^-14 has a spacing of 2^-24, as floats from 0.5 to 1 have
        return sign | (np.int64(bits_of(from_bits(bits) + f4(0.5))) - 0x3F000000)
    return sign | ((bits + 0xFFF + ((bits >> 13) & 1) - (112 << 23)) >> 13)


@jit
def from_half(bits):
    """The float that float16's bits are."""
    sign, exponent, mantissa = (bits & 0x8000) << 16, (bits >> 10) & 0x1F, bits & 0x3FF
    if exponent == 0:
        magnitude = f4(mantissa) * f4(2.0**-24)
        return -magnitude if sign else magnitude
    if exponent == 0x1F:
        return from_bits(sign | 0x7F800000 | (mantissa << 13))
    return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13))

"""ggml's formats to float32, also without ggml: in numpy, what its own C makes on x86-64, to the last bit.

Each decoder takes whole blocks ``(n, block_bytes)`` uint8 and writes ``(n, block_size)`` float32. It keeps the order of
ggml's float operations (``dequantize_row_*`` of ``ggml-quants.c``, ggml 0.25): a product is rounded before a minimum is
taken off. Formats of one to three bits that look their values up in large grids are left to ggml, whichever its build:
no sum follows a product there, so that there is nothing that a compiler could fuse.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import Format
from quant.floats import FLOATS, floats_are_finite, widen
from quant.reference import ggml

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Decoder = Callable[[Bytes, Floats], None]

_DECODERS: dict[str, Decoder] = {}
"""By the format's name; floats need none."""
_BY_GGML = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
_SCALES = {
    **dict.fromkeys(("q4_0", "q5_0", "q8_0", "iq4_nl", "iq4_xs", "q1_0", "q2_0"), (0, 1)),
    **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), (0, 2)),
    **dict.fromkeys(("iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"), (0, 1)),
    "q2_k": (80, 2),
    "q3_k": (108, 1),
    "q6_k": (208, 1),
    "tq1_0": (52, 1),
    "tq2_0": (64, 1),
}
"""Where a block has its float16, a scale and perhaps a minimum, and how many."""
_NIBBLE, _PAIR = np.uint8(0x0F), np.uint8(0x03)
_PAIRS_OF_BYTE = np.arange(0, 8, 2, dtype=np.uint8)
_BITS_OF_BYTE = np.arange(8, dtype=np.uint8).reshape(8, 1)
"""Shifts."""
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Values of mxfp4 and nvfp4, doubled; their scales are halved."""


def can_dequantize(format_: Format) -> bool:
    """Whether ``format_`` holds weights, and :func:`dequantize` knows it where llama-cpp-python is installed."""
    return format_ in FLOATS or format_.name in _DECODERS or format_.name in _BY_GGML


def takes_ggml(format_: Format) -> bool:
    """Whether :func:`dequantize` asks :mod:`quant.reference.ggml` for ``format_``."""
    return format_.name in _BY_GGML


def dequantize(raw: Bytes, format_: Format) -> Floats:
    """``(n_rows, row_bytes)`` bytes of ``format_``, C-contiguous, as ``(n_rows, columns)`` float32.

    By ggml's C, two to ten times as fast, where it is installed and gives the same bits. Raises EngineError for a
    format that :func:`takes_ggml` where llama-cpp-python is missing, KeyError for one that can't be dequantized.
    """
    if format_ in FLOATS:
        return widen(raw, format_)
    if takes_ggml(format_) or _ggml_gives_these_bits(format_):
        return ggml.dequantize(raw, format_)
    return dequantize_by_numpy(raw, format_)


def dequantize_by_numpy(raw: Bytes, format_: Format) -> Floats:
    """As :func:`dequantize`, for quantized formats that have a decoder here."""
    blocks = raw.reshape(-1, format_.block_bytes)
    out = np.empty((len(blocks), format_.block_size), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be infinite or NaN
        _DECODERS[format_.name](blocks, out)
    return out.reshape(raw.shape[0], raw.shape[1] // format_.block_bytes * format_.block_size)


@cache
def _ggml_gives_these_bits(format_: Format) -> bool:
    """Whether ggml is here and its build didn't fuse products and sums, as compilers for aarch64 do unasked."""
    if not ggml.is_installed():
        return False
    drawn = np.random.PCG64(0).random_raw(64 * format_.block_bytes).view(np.uint8)
    blocks = drawn.reshape(-1, format_.block_bytes)
    ours, theirs = dequantize_by_numpy(blocks, format_), ggml.dequantize(blocks, format_)
    return np.array_equal(ours, theirs, equal_nan=True)


def is_finite(raw: Bytes, format_: Format) -> bool:
    """Whether all floats in ``raw``, C-contiguous bytes of ``format_``, are finite: weights, or scales and minima.

    KeyError for a quantized format whose blocks have no float16.
    """
    if format_ in FLOATS:
        return floats_are_finite(raw, format_)
    blocks = raw.reshape(-1, format_.block_bytes)
    if format_.name == "iq1_m":
        return bool(np.isfinite(_scattered_halves(blocks)).all())
    at, count = _SCALES[format_.name]
    return bool(np.isfinite(_halves(blocks, at, count)).all())


def _decodes(*names: str) -> Callable[[Decoder], Decoder]:
    def register(decoder: Decoder) -> Decoder:
        _DECODERS.update(dict.fromkeys(names, decoder))
        return decoder

    return register


def _halves(blocks: Bytes, at: int, count: int = 1) -> Floats:
    """``count`` float16 from byte ``at`` on: ``(n, count)`` float32."""
    return blocks[:, at : at + 2 * count].copy().view("<f2").astype(np.float32)


def _scattered_halves(blocks: Bytes) -> Floats:
    """The scales of iq1_m, a nibble of which ends each of the last four words: ``(n,)`` float32."""
    words = blocks[:, -8:].copy().view("<u2") & np.uint16(0xF000)
    bits: NDArray[np.uint16] = (words >> np.array([12, 8, 4, 0], np.uint16)).sum(axis=1, dtype=np.uint16)
    return bits.view(np.float16).astype(np.float32)


def _nibbles(octets: Bytes, out: Bytes) -> None:
    """The low halves of the bytes, then the high ones: the last axis of ``out`` is twice as long."""
    half = octets.shape[-1]
    np.bitwise_and(octets, _NIBBLE, out=out[..., :half])
    np.right_shift(octets, 4, out=out[..., half:])


def _levels_of_32(octets: Bytes) -> Bytes:
    """Sixteen bytes' nibbles: ``(n, 32)``."""
    levels = np.empty((len(octets), 32), np.uint8)
    _nibbles(octets, levels)
    return levels


def _fifth_bits(octets: Bytes) -> Bytes:
    """Four bytes' bits, each with the value 16: ``(n, 32)``."""
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    bits <<= 4
    return bits


@_decodes("q4_0")
def _q4_0(blocks: Bytes, out: Floats) -> None:
    levels = _levels_of_32(blocks[:, 2:])
    levels -= 8
    np.multiply(levels.view(np.int8), _halves(blocks, 0), out=out)


@_decodes("q4_1")
def _q4_1(blocks: Bytes, out: Floats) -> None:
    np.multiply(_levels_of_32(blocks[:, 4:]), _halves(blocks, 0), out=out)
    out += _halves(blocks, 2)


@_decodes("q5_0")
def _q5_0(blocks: Bytes, out: Floats) -> None:
    levels = _levels_of_32(blocks[:, 6:])
    levels |= _fifth_bits(blocks[:, 2:6])
    levels -= 16
    np.multiply(levels.view(np.int8), _halves(blocks, 0), out=out)


@_decodes("q5_1")
def _q5_1(blocks: Bytes, out: Floats) -> None:
    levels = _levels_of_32(blocks[:, 8:])
    levels |= _fifth_bits(blocks[:, 4:8])
    np.multiply(levels, _halves(blocks, 0), out=out)
    out += _halves(blocks, 2)


@_decodes("q8_0")
def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _halves(blocks, 0), out=out)


@_decodes("q1_0")
def _q1_0(blocks: Bytes, out: Floats) -> None:
    bits, scale = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), _halves(blocks, 0)
    out[:] = np.where(bits, scale, -scale)


@_decodes("q2_0")
def _q2_0(blocks: Bytes, out: Floats) -> None:
    levels = (blocks[:, 2:, None] >> _PAIRS_OF_BYTE) & _PAIR
    np.multiply(levels.reshape(len(blocks), 64).view(np.int8) - np.int8(1), _halves(blocks, 0), out=out)


@_decodes("iq4_nl")
def _iq4_nl(blocks: Bytes, out: Floats) -> None:
    np.take(_IQ4, _levels_of_32(blocks[:, 2:]), out=out, mode="clip")
    out *= _halves(blocks, 0)


@_decodes("mxfp4")
def _mxfp4(blocks: Bytes, out: Floats) -> None:
    exponents = blocks[:, :1].astype(np.uint32)
    scale = np.where(exponents < 2, 0x00200000 << exponents, (exponents - 1) << 23).astype(np.uint32).view(np.float32)
    np.take(_FP4, _levels_of_32(blocks[:, 1:]), out=out, mode="clip")
    out *= scale


@_decodes("nvfp4")
def _nvfp4(blocks: Bytes, out: Floats) -> None:
    scales, levels = _UE4M3[blocks[:, :4]], np.empty((len(blocks), 4, 16), np.uint8)
    _nibbles(blocks[:, 4:].reshape(-1, 4, 8), levels)
    np.multiply(_FP4[levels], scales[..., None], out=out.reshape(-1, 4, 16))


def _unsigned_e4m3() -> Floats:
    """Half the value of each byte: four bits of exponent, three of mantissa; the sign is not looked at but for NaN."""
    octets = np.arange(256)
    exponents, mantissas = (octets >> 3) & 15, (octets & 7).astype(np.float32)
    values = np.where(exponents == 0, np.ldexp(mantissas, -9), np.ldexp(1 + mantissas / 8, exponents - 7))
    values[[0, 0x7F]] = 0
    return (values * 0.5).astype(np.float32)


_UE4M3 = _unsigned_e4m3()


@_decodes("q2_k")
def _q2_k(blocks: Bytes, out: Floats) -> None:
    heads = _halves(blocks, 80, 2)
    scales = heads[:, :1] * (blocks[:, :16] & _NIBBLE)
    minima = heads[:, 1:] * (blocks[:, :16] >> 4)
    out = out.reshape(-1, 16, 16)
    np.multiply(_pairs(blocks[:, 16:80]).reshape(out.shape), scales[..., None], out=out)
    out -= minima[..., None]


def _pairs(octets: Bytes) -> Bytes:
    """Two bits each of 32 bytes, lowest first, then of the next 32: ``(n, 256)`` of 64 bytes."""
    quarters = octets.reshape(-1, 2, 1, 32) >> _PAIRS_OF_BYTE.reshape(4, 1)
    quarters &= _PAIR
    return quarters.reshape(-1, 256)


@_decodes("q3_k")
def _q3_k(blocks: Bytes, out: Floats) -> None:
    levels = _pairs(blocks[:, 32:96]).reshape(-1, 8, 32)
    bits = (blocks[:, None, :32] >> _BITS_OF_BYTE) & np.uint8(1)
    bits <<= 2
    levels |= bits
    levels -= 4
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    scales = np.empty((len(blocks), 16), np.uint8)
    _nibbles(low, scales)
    scales |= ((high[:, None] >> _PAIRS_OF_BYTE.reshape(4, 1)) & _PAIR).reshape(-1, 16) << 4
    scales -= 32
    out = out.reshape(-1, 16, 16)
    np.multiply(
        levels.view(np.int8).reshape(out.shape), (_halves(blocks, 108) * scales.view(np.int8))[..., None], out=out
    )


def _six_bit_scales(octets: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of q4_k and q5_k, from 12 bytes (``get_scale_min_k4``)."""
    scales, minima = np.empty((2, len(octets), 8), np.uint8)
    first, second, last = octets[:, :4], octets[:, 4:8], octets[:, 8:]
    scales[:, :4], minima[:, :4] = first & 63, second & 63
    scales[:, 4:] = (last & _NIBBLE) | ((first >> 6) << 4)
    minima[:, 4:] = (last >> 4) | ((second >> 6) << 4)
    return scales, minima


def _affine_of_32(blocks: Bytes, levels: Bytes, out: Floats) -> None:
    heads = _halves(blocks, 0, 2)
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    np.multiply(levels, (heads[:, :1] * scales)[..., None], out=out)
    out -= (heads[:, 1:] * minima)[..., None]


def _nibbles_of_256(octets: Bytes) -> Bytes:
    """Of each 32 of 128 bytes the low halves, then the high ones: ``(n, 8, 32)``."""
    levels = np.empty((len(octets), 4, 64), np.uint8)
    _nibbles(octets.reshape(-1, 4, 32), levels)
    return levels.reshape(-1, 8, 32)


@_decodes("q4_k")
def _q4_k(blocks: Bytes, out: Floats) -> None:
    _affine_of_32(blocks, _nibbles_of_256(blocks[:, 16:]), out.reshape(-1, 8, 32))


@_decodes("q5_k")
def _q5_k(blocks: Bytes, out: Floats) -> None:
    levels = _nibbles_of_256(blocks[:, 48:])
    bits = blocks[:, None, 16:48] >> _BITS_OF_BYTE
    bits &= np.uint8(1)
    bits <<= 4
    levels |= bits
    _affine_of_32(blocks, levels, out.reshape(-1, 8, 32))


@_decodes("q6_k")
def _q6_k(blocks: Bytes, out: Floats) -> None:
    levels = np.empty((len(blocks), 256), np.uint8)
    _nibbles(blocks[:, :128].reshape(-1, 2, 64), levels.reshape(-1, 2, 128))
    bits = _pairs(blocks[:, 128:192])
    bits <<= 4
    levels |= bits
    levels -= 32
    scales = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8)
    out = out.reshape(-1, 16, 16)
    np.multiply(levels.view(np.int8).reshape(out.shape), scales[..., None], out=out)


@_decodes("iq4_xs")
def _iq4_xs(blocks: Bytes, out: Floats) -> None:
    high = blocks[:, 2:4].copy().view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    low = (blocks[:, 4:8, None] >> np.array([0, 4], np.uint8)).reshape(-1, 8) & _NIBBLE
    scales = (low | ((high & 3) << 4).astype(np.uint8)).view(np.int8) - np.int8(32)
    levels = np.empty((len(blocks), 8, 32), np.uint8)
    _nibbles(blocks[:, 8:].reshape(-1, 8, 16), levels)
    out = out.reshape(-1, 8, 32)
    np.take(_IQ4, levels, out=out, mode="clip")
    out *= (_halves(blocks, 0) * scales)[..., None]


@_decodes("tq1_0")
def _tq1_0(blocks: Bytes, out: Floats) -> None:
    powers = np.array([1, 3, 9, 27, 81], np.uint8).reshape(5, 1)
    parts = (blocks[:, None, :32] * powers, blocks[:, None, 32:48] * powers, blocks[:, None, 48:52] * powers[:4])
    trits = np.concatenate([part.reshape(len(blocks), part.shape[1] * part.shape[2]) for part in parts], axis=1)
    levels = ((trits.astype(np.uint16) * 3) >> 8).astype(np.int8) - np.int8(1)
    np.multiply(levels, _halves(blocks, 52), out=out)


@_decodes("tq2_0")
def _tq2_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(_pairs(blocks[:, :64]).view(np.int8) - np.int8(1), _halves(blocks, 64), out=out)

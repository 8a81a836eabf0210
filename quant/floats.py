"""float32, float16 and bfloat16 into each other, as ggml rounds them: to the nearest, ties to even."""

import sys

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import BF16, F16, F32, Format

FLOATS = (F32, F16, BF16)


def widen(raw: NDArray[np.uint8], format_: Format) -> NDArray[np.float32]:
    """``(n_rows, row_bytes)`` bytes of one of ``FLOATS``, C-contiguous, as ``(n_rows, columns)`` float32."""
    if format_ is F32:
        return raw.view(np.float32)
    if format_ is F16:
        return raw.view(np.float16).astype(np.float32)
    bits = raw.view(np.uint16)
    wide = np.zeros(bits.shape, np.uint32)  # a bfloat16 is the high half of a float32
    wide.view(np.uint16)[..., _HIGH::2] = bits
    return wide.view(np.float32)


def narrow(rows: NDArray[np.float32], format_: Format) -> NDArray[np.uint8]:
    """``(n_rows, columns)`` float32, C-contiguous, as ``(n_rows, row_bytes)`` bytes of one of ``FLOATS``.

    What is too large for float16 becomes infinite.
    """
    if format_ is F32:
        return rows.view(np.uint8)
    return (_to_half(rows) if format_ is F16 else _to_bfloat(rows)).view(np.uint8)


def floats_are_finite(raw: NDArray[np.uint8], format_: Format) -> bool:
    """Whether no number in ``raw``, C-contiguous bytes of one of ``FLOATS``, is infinite or NaN."""
    if format_ is BF16:
        return bool(((raw.view(np.uint16) & np.uint16(0x7F80)) != 0x7F80).all())
    return bool(np.isfinite(raw.view(np.float16 if format_ is F16 else np.float32)).all())


_HIGH = int(sys.byteorder == "little")
"""Which half of a float32 has its sign."""


def _to_half(rows: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = rows.astype(np.float16)
    if (is_nan := np.isnan(halves)).any():  # numpy keeps bits of a NaN's mantissa, ggml has one NaN of each sign
        bits = halves.view(np.uint16)
        bits[is_nan] = bits[is_nan] & 0x8000 | 0x7E00
    return halves


def _to_bfloat(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = rows.view(np.uint32)
    rounded = (bits >> np.uint32(16)) & np.uint32(1)
    rounded += bits
    rounded += np.uint32(0x7FFF)
    halves = np.ascontiguousarray(rounded.view(np.uint16)[..., _HIGH::2])
    if (is_nan := np.isnan(rows)).any():  # rounding would make a NaN infinite: cut off, and quiet
        halves[is_nan] = (bits[is_nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40)
    return halves

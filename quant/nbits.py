"""Weights as ONNX Runtime's MatMulNBits and GatherBlockQuantized take them: numbers, scales and zero points apart.

A row is cut into blocks; a weight is ``(number - zero point) * scale`` of its block. Numbers have 4 bits, two to a
byte, the first in the low half, or 8; scales are float32. Without zero points of its own a block has 8 or 128.
What ggml stores as Q4_0 and Q8_0 are the same numbers in another order: they are carried over bit for bit, and blocks
of 32 without zero points are quantized by these formats' kernels.

Compressed-tensors' ``pack-quantized`` weights are the same, read as 32-bit words, but for scales of 16 bits, which
:mod:`quant.fitting` chooses.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import F16, F32, FORMATS, Format
from quant.fitting import Fit, fitted
from quant.floats import floats_are_finite, narrow, widen

BLOCKS = (32, 64, 128)
_Q4_0, _Q4_1, _Q8_0 = FORMATS["q4_0"], FORMATS["q4_1"], FORMATS["q8_0"]
_LOW, _HALF = np.uint8(15), np.uint8(4)
_HALF_MAX = 65504.0
_GGML = {4: _Q4_0, 8: _Q8_0}

Quantize = Callable[[NDArray[np.float32], Format], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class ArrayFormat(Format):
    """One of the arrays that a matrix becomes: ``part`` is numbers, scales, zero_points or offsets.

    ``is_transposed``: of the transposed matrix, with blocks down its columns and signed numbers, as DequantizeLinear
    takes it before a MatMul. A row holds ``block`` rows of it, one after another.
    """

    grid: "Grid"
    part: str
    is_transposed: bool = False

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` weights; ValueError unless it is whole blocks."""
        if columns % self.block_size:
            raise ValueError(f"{columns} values are no multiple of the {self.block_size} in a block")
        return -(-columns // self.block_size * self.grid.bits_of(self.part) // 8)


@dataclass(frozen=True, slots=True)
class Grid:
    """How weights are quantized: ``bits`` (4 or 8) a number, ``block`` of them with a scale, and perhaps a zero point.

    ``has_offsets``: to each weight its block's offset is added. So Q4_1 is held, where a weight is ``number * scale +
    minimum``: the offset is the value of number 8. Numbers are counted from there since rounded activations are
    multiplied with them: from 0, as Q4_1 counts, the KL divergence of SmolLM2 was four times as large.
    ``scales``: how these are stored; those of 16 bits are of 4-bit numbers without zero points, and are fitted.
    """

    bits: int
    block: int = 32
    has_zero_points: bool = False
    has_offsets: bool = False
    scales: Format = F32

    @property
    def name(self) -> str:
        """``int4``, and what differs from the usual: ``int4 by 128 with zeros``, ``int4 with f16 scales``."""
        block = "" if self.block == 32 else f" by {self.block}"
        more = f"{' with zeros' * self.has_zero_points}{' with offsets' * self.has_offsets}"
        return f"int{self.bits}{block}{more}{f' with {self.scales} scales' * self.is_fitted}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The arrays that a matrix becomes."""
        return ("numbers", "scales", *["zero_points"] * self.has_zero_points, *["offsets"] * self.has_offsets)

    @property
    def is_fitted(self) -> bool:
        """Whether scales are chosen by the error that they leave."""
        return self.scales is not F32

    def bits_of(self, part: str) -> int:
        """Bits that a block takes in an array."""
        sizes = {"numbers": self.bits * self.block, "zero_points": self.bits, "scales": 8 * self.scales.block_bytes}
        return sizes.get(part, 32)

    def array(self, part: str, *, is_transposed: bool = False) -> ArrayFormat:
        """The format of an array."""
        return ArrayFormat(
            f"{self.name}: {part}", -1, self.block, -(-self.bits_of(part) // 8), self, part, is_transposed
        )

    def fits(self, columns: int) -> bool:
        """Whether rows of ``columns`` are whole blocks."""
        return columns % self.block == 0


def exact_grid(source: Format) -> Grid | None:
    """The grid that holds the very weights of ``source``; None if there is none."""
    return {_Q4_0: Grid(4), _Q8_0: Grid(8), _Q4_1: Grid(4, has_offsets=True)}.get(source)


def is_exact(source: Format, target: Format) -> bool:
    """Whether weights in ``source`` keep their values in ``target``: ggml's scales are float16."""
    if not isinstance(target, ArrayFormat) or target.is_transposed or target.grid.scales not in (F32, F16):
        return False
    return exact_grid(source) == replace(target.grid, scales=F32)


def kernel_format(grid: Grid) -> Format | None:
    """Ggml's format whose kernel quantizes weights for ``grid``; None where numpy does."""
    format_ = _GGML[grid.bits]
    return format_ if grid == exact_grid(format_) else None


Arrays = dict[str, NDArray[np.uint8]]
"""By part, each ``(n_rows, row_bytes)`` bytes."""


def is_held(arrays: Arrays, grid: Grid) -> bool:
    """Whether what ``arrays`` say is finite: scales, and in float16 also the largest number's weight."""
    if grid.scales is not F16:
        return floats_are_finite(arrays["scales"], grid.scales)
    return bool((np.abs(widen(arrays["scales"], F16)) <= _HALF_MAX / 2 ** (grid.bits - 1)).all())


def repacked(raw: NDArray[np.uint8], source: Format, scales: Format = F32) -> Arrays:
    """Rows in ggml's ``source`` as the same weights in :func:`exact_grid`, with ``scales`` in float32 or float16."""
    blocks = raw.reshape(-1, source.block_bytes)
    heads = blocks[:, : 4 if source is _Q4_1 else 2].copy().view(np.float16).astype(np.float32)
    arrays = {"scales": blocks[:, :2].copy() if scales is F16 else np.ascontiguousarray(heads[:, :1]).view(np.uint8)}
    if source is _Q4_1:
        arrays["offsets"] = (heads[:, 1:] + 8 * heads[:, :1]).view(np.uint8)
    if source is _Q8_0:
        arrays["numbers"] = blocks[:, 2:] ^ np.uint8(0x80)
    else:  # low halves hold numbers 0 to 15, high ones 16 to 31: two bytes have four, and become one of each
        pairs = np.ascontiguousarray(blocks[:, -16:]).view("<u2")
        numbers = arrays["numbers"] = np.empty((len(blocks), 16), np.uint8)
        shifted = pairs >> 4
        numbers[:, :8] = (pairs & 0x0F) | (shifted & 0xF0)
        numbers[:, 8:] = (shifted & 0x0F) | ((pairs >> 8) & 0xF0)
    return {part: array.reshape(len(raw), -1) for part, array in arrays.items()}


def quantize(
    rows: NDArray[np.float32], grid: Grid, kernel: Quantize, *, fit: Fit = fitted, is_transposed: bool = False
) -> Arrays:
    """Finite rows ``(n_rows, columns)`` in ``grid``; ``kernel`` quantizes to ggml's formats, ``fit`` fits scales.

    ``is_transposed``: see :class:`ArrayFormat`.
    """
    if is_transposed:
        return _transposed(rows, grid, kernel)
    if (source := kernel_format(grid)) is not None:
        return repacked(kernel(rows, source), source)
    if grid.is_fitted:
        return _fitted(rows, grid, fit)
    blocks = rows.reshape(len(rows), -1, grid.block)
    scales, zero_points = _asymmetric(blocks, grid) if grid.has_zero_points else _symmetric(blocks, grid)
    numbers = (_divided(blocks, scales) + zero_points[..., None]).clip(0, 2**grid.bits - 1)
    return {
        "numbers": _packed(numbers.reshape(len(rows), -1), grid.bits),
        "scales": scales.view(np.uint8).reshape(len(rows), -1),
        **({"zero_points": _packed(zero_points, grid.bits)} if grid.has_zero_points else {}),
    }


def _fitted(rows: NDArray[np.float32], grid: Grid, fit: Fit) -> Arrays:
    scales, octets = fit(rows.reshape(-1, grid.block), grid.scales)
    return {
        "numbers": octets.reshape(len(rows), -1),
        "scales": narrow(scales.reshape(len(rows), -1), grid.scales),
    }


def _transposed(rows: NDArray[np.float32], grid: Grid, kernel: Quantize) -> Arrays:
    width = rows.shape[1] // grid.block
    blocks = np.ascontiguousarray(rows.reshape(len(rows), grid.block, width).swapaxes(1, 2)).reshape(-1, grid.block)
    arrays = quantize(blocks, grid, kernel)
    signed = _unpacked(arrays["numbers"], grid.bits) ^ np.uint8(2 ** (grid.bits - 1))
    transposed = np.ascontiguousarray(signed.reshape(len(rows), width, grid.block).swapaxes(1, 2)).reshape(
        len(rows), -1
    )
    return {
        "numbers": transposed if grid.bits == 8 else _paired(transposed),
        "scales": arrays["scales"].reshape(len(rows), -1),
    }


def _symmetric(blocks: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As ggml: the number of largest magnitude becomes the lowest number, whichever its sign."""
    at = np.abs(blocks).argmax(axis=-1)[..., None]
    largest = np.take_along_axis(blocks, at, axis=-1)[..., 0]
    middle = np.float32(2 ** (grid.bits - 1))
    return largest / -middle, np.full(largest.shape, middle)


def _asymmetric(blocks: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """From the lowest to the highest number, with 0 among them."""
    low, high = blocks.min(axis=-1).clip(max=0), blocks.max(axis=-1).clip(min=0)
    scales = ((high - low) / np.float32(2**grid.bits - 1)).astype(np.float32)
    return scales, _divided(-low[..., None], scales)[..., 0]


def _divided(blocks: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    return np.rint(blocks * inverse[..., None])


def _packed(numbers: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    small = numbers.astype(np.uint8)
    if bits == 8:
        return small
    return _paired(np.pad(small, ((0, 0), (0, small.shape[1] % 2))))


def _paired(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return numbers[:, ::2] | (numbers[:, 1::2] << _HALF)


def _unpacked(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return raw if bits == 8 else np.stack([raw & _LOW, raw >> _HALF], axis=-1).reshape(len(raw), -1)

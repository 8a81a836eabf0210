"""Matrices that are transposed while they are read, a stripe of columns at a time."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.files.formats import F32
from quant.kernels import recode

_STRIPE = 20 << 20  # bytes in memory at once; of Llama 4's experts 2,048 columns, in pieces of a page or more on disk
_BLOCK = 128  # rows transposed at once, or as many as must be read: what they take stays in a core's cache


@dataclass(frozen=True, slots=True, eq=False)
class _Floats:
    """Rows of ``source`` in float32."""

    source: Tensor

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        return recode(self.source.read(start, stop), self.source.format, F32)


def floats(tensor: Tensor) -> Tensor:
    """In float32 if it is quantized: blocks can't be transposed."""
    return in_f32(tensor) if tensor.format.is_quantized else tensor


def in_f32(tensor: Tensor) -> Tensor:
    """In float32, whatever it is stored as."""
    return replace(tensor, format=F32, read=_Floats(tensor))


def transposed(tensor: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    """Columns ``first`` to ``last`` of each matrix in ``tensor`` as rows.

    ``(..., rows, columns)`` becomes ``(..., last - first, rows)``, in the same format of floats. However many matrices
    there are and however large they are, reading takes the memory of a stripe.
    """
    last = tensor.columns if last is None else last
    *outer, rows, _ = tensor.shape
    height = last - first
    step = min(max(_STRIPE // (rows * tensor.format.block_bytes), 1), height)
    return replace(tensor, shape=(*outer, height, rows), read=_Transposed(tensor, first, height), step=step)


@dataclass(frozen=True, slots=True, eq=False)
class _Transposed:
    """``height`` columns of each matrix of ``source``, from ``first`` on, as rows."""

    source: Tensor
    first: int
    height: int

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        height, width = self.height, self.source.shape[-2] * self.source.format.block_bytes
        out = np.empty((stop - start, width), np.uint8)
        for matrix in range(start // height, -(-stop // height)):
            begin, end = max(start - matrix * height, 0), min(stop - matrix * height, height)
            at = matrix * height + begin - start
            self._transpose(matrix, begin, end, out[at : at + end - begin])
        return out

    def _transpose(self, matrix: int, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        rows, item = self.source.shape[-2], self.source.format.block_bytes
        number = np.dtype(f"u{item}")
        numbers = out.view(number)
        block = max(_BLOCK // self.source.step, 1) * self.source.step  # whole heads, where these are permuted
        for row in range(0, rows, block):
            end = min(row + block, rows)
            at = matrix * rows
            columns = (self.first + start) * item, (self.first + stop) * item
            stripe = self.source.stripe(at + row, at + end, *columns)
            numbers[:, row:end] = np.ascontiguousarray(stripe).view(number).T

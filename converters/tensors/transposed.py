"""Matrices that are transposed while they are read, a stripe of columns at a time."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.files.formats import F32
from quant.kernels import recode

_STRIPE = 20 << 20  # bytes in memory at once; of Llama 4's experts 2,048 columns, in pieces of a page or more on disk
_BLOCK = 128  # rows transposed at once: what they take stays in a core's cache


def floats(tensor: Tensor) -> Tensor:
    """In float32 if it is quantized: blocks can't be transposed."""
    if not tensor.format.is_quantized:
        return tensor

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return recode(tensor.read(start, stop), tensor.format, F32)

    return replace(tensor, format=F32, read=read)


def transposed(tensor: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    """Columns ``first`` to ``last`` of each matrix in ``tensor`` as rows.

    ``(..., rows, columns)`` becomes ``(..., last - first, rows)``, in the same format of floats. However many matrices
    there are and however large they are, reading takes the memory of a stripe.
    """
    last = tensor.columns if last is None else last
    *outer, rows, _ = tensor.shape
    height, item = last - first, tensor.format.block_bytes
    number = np.dtype(f"u{item}")

    def transpose(matrix: int, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        numbers = out.view(number)
        for row in range(0, rows, _BLOCK):
            end = min(row + _BLOCK, rows)
            at = matrix * rows
            stripe = tensor.stripe(at + row, at + end, (first + start) * item, (first + stop) * item)
            numbers[:, row:end] = np.ascontiguousarray(stripe).view(number).T

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        out = np.empty((stop - start, rows * item), np.uint8)
        for matrix in range(start // height, -(-stop // height)):
            begin, end = max(start - matrix * height, 0), min(stop - matrix * height, height)
            at = matrix * height + begin - start
            transpose(matrix, begin, end, out[at : at + end - begin])
        return out

    step = min(max(_STRIPE // (rows * item), 1), height)
    return replace(tensor, shape=(*outer, height, rows), read=read, step=step)

"""Matrices of integers with scales apart, seen as float32: what other runtimes quantized becomes weights again."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.errors import CheckpointError
from edge_llama.files.formats import F32, Format
from quant.kernels import NonFiniteError, recode

Rows = Callable[[NDArray[np.float32], int, int], NDArray[np.float32]]


def dequantized(numbers: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
    """``numbers``, int8 ``(rows, columns)``, as ``(numbers - zeros) * scales``, float32 of the same shape.

    ``scales`` and ``zeros`` are floats ``(rows, groups)``, for groups of neighbouring columns.
    """
    groups = scales.columns

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        rows = numbers.read(start, stop).view(np.int8).astype(np.float32).reshape(stop - start, groups, -1)
        if zeros is not None:
            rows -= floats(zeros, start, stop)[..., None]
        rows *= floats(scales, start, stop)[..., None]
        return rows.reshape(stop - start, -1).view(np.uint8)

    return replace(numbers, format=F32, read=read).reading(scales, *([] if zeros is None else [zeros]))


def column(vector: Tensor) -> Tensor:
    """A vector ``(rows,)`` as ``(rows, 1)``."""
    item = vector.format.block_bytes

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return vector.stripe(0, 1, start * item, stop * item).reshape(stop - start, item)

    return replace(vector, shape=(vector.columns, 1), read=read)


def changed(tensor: Tensor, change: Rows) -> Tensor:
    """Rows of ``tensor``, float32, after ``change(rows, start, stop)``."""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        rows = np.ascontiguousarray(change(floats(tensor, start, stop), start, stop), np.float32)
        return rows.view(np.uint8)

    return replace(tensor, format=F32, read=read)


def floats(tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows ``start`` to ``stop``, float32 ``(stop - start, columns)``; CheckpointError for NaN and infinity."""
    return recoded(tensor, start, stop, F32).view(np.float32)


def recoded(tensor: Tensor, start: int, stop: int, format_: Format) -> NDArray[np.uint8]:
    """The same rows in ``format_``, uint8 ``(stop - start, row_bytes)``; CheckpointError likewise."""
    try:
        return recode(tensor.read(start, stop), tensor.format, format_)
    except NonFiniteError as error:
        raise CheckpointError(f"tensor {tensor.name!r}: {error}", remedy="it is damaged: download it again") from error


def hadamard(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each of ``rows``, ``(n, width)``, times Sylvester's Hadamard matrix over the root of ``width``, a power of two.

    The matrix is symmetric and its own inverse, so what a runtime does to a matrix's inputs may be done to its rows.
    """
    n, width = rows.shape
    half = 1
    while half < width:
        pairs = rows.reshape(n, -1, 2, half)
        rows = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
        half *= 2
    return rows.reshape(n, width) * np.float32(1 / math.sqrt(width))

"""Parts of tensors, and rows counted in another way: what a target stores apart or together."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor


def rows(tensor: Tensor, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last``: ``(rows, ...)`` becomes ``(last - first, ...)``."""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return tensor.read(first + start, first + stop)

    return replace(tensor, shape=(last - first, *tensor.shape[1:]), read=read)


def matrix(tensor: Tensor, index: int) -> Tensor:
    """One of several matrices: ``(matrices, rows, columns)`` becomes ``(rows, columns)``, named ``NAME.index``."""
    _, height, columns = tensor.shape

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return tensor.read(index * height + start, index * height + stop)

    return replace(tensor, name=f"{tensor.name}.{index}", shape=(height, columns), read=read)


def alternating(first: Tensor, second: Tensor) -> Tensor:
    """A row of each in turn: two of ``(matrices, rows, columns)`` become ``(matrices, 2 * rows, columns)``."""
    count, height, columns = first.shape

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        pair = [tensor.read(start // 2, stop // 2) for tensor in (first, second)]
        return np.stack(pair, axis=1).reshape(stop - start, -1)

    return replace(first, shape=(count, 2 * height, columns), read=read, step=2 * first.step).reading(second)


def row_blocks(tensor: Tensor, block: int) -> Tensor:
    """``block`` rows as one: ``(rows, columns)`` becomes ``(rows / block, columns * block)``."""
    height, columns = tensor.shape

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return tensor.read(start * block, stop * block).reshape(stop - start, -1)

    step = max(tensor.step // block, 1)
    return replace(tensor, shape=(height // block, columns * block), read=read, step=step)

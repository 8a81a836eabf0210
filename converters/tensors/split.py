"""Parts of tensors, and rows counted in another way: what a target stores apart or together."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _From:
    """Rows of ``source`` from ``first`` on."""

    source: Tensor
    first: int

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.source.read(self.first + start, self.first + stop)

    def stripe(self, start: int, stop: int, first: int, last: int) -> NDArray[np.uint8]:
        return self.source.stripe(self.first + start, self.first + stop, first, last)


def rows(tensor: Tensor, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last``: ``(rows, ...)`` becomes ``(last - first, ...)``."""
    return replace(tensor, shape=(last - first, *tensor.shape[1:]), read=_From(tensor, first))


def matrix(tensor: Tensor, index: int) -> Tensor:
    """One of several matrices: ``(matrices, rows, columns)`` becomes ``(rows, columns)``, named ``NAME.index``."""
    _, height, columns = tensor.shape
    read = _From(tensor, index * height)
    return replace(tensor, name=f"{tensor.name}.{index}", shape=(height, columns), read=read)


@dataclass(frozen=True, slots=True, eq=False)
class _Alternating:
    """A row of each in turn."""

    first: Tensor
    second: Tensor

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        pair = [tensor.read(start // 2, stop // 2) for tensor in (self.first, self.second)]
        return np.stack(pair, axis=1).reshape(stop - start, -1)


def alternating(first: Tensor, second: Tensor) -> Tensor:
    """A row of each in turn: two of ``(matrices, rows, columns)`` become ``(matrices, 2 * rows, columns)``."""
    count, height, columns = first.shape
    read = _Alternating(first, second)
    return replace(first, shape=(count, 2 * height, columns), read=read, step=2 * first.step).reading(second)


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """``block`` rows of ``source`` as one."""

    source: Tensor
    block: int

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.source.read(start * self.block, stop * self.block).reshape(stop - start, -1)


def row_blocks(tensor: Tensor, block: int) -> Tensor:
    """``block`` rows as one: ``(rows, columns)`` becomes ``(rows / block, columns * block)``."""
    height, columns = tensor.shape
    step = max(tensor.step // block, 1)
    return replace(tensor, shape=(height // block, columns * block), read=_Blocks(tensor, block), step=step)

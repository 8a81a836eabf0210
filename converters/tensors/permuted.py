"""The rows of Q and K in another order: what stands for the pairs that RoPE rotates differs between publishers.

Hugging Face pairs a head's first half with its second, Meta's code and llama.cpp neighbouring rows.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor


def interleaved(tensor: Tensor, head_dim: int) -> Tensor:
    """Q or K rows ``(heads * head_dim, inputs)``, or their bias, from halves to neighbouring pairs."""
    return _permuted(tensor, head_dim, (2, head_dim // 2))


def halved(tensor: Tensor, head_dim: int) -> Tensor:
    """The inverse of :func:`interleaved`."""
    return _permuted(tensor, head_dim, (head_dim // 2, 2))


@dataclass(frozen=True, slots=True, eq=False)
class _Permuted:
    """Within each head, rows of ``source`` seen as ``grid`` are transposed; ``unit`` are the bytes of one."""

    source: Tensor
    grid: tuple[int, int]
    unit: int

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        raw = self.source.read(start, stop)
        return raw.reshape(-1, *self.grid, self.unit).swapaxes(1, 2).reshape(raw.shape)


def _permuted(tensor: Tensor, head_dim: int, grid: tuple[int, int]) -> Tensor:
    """A bias is a column of such rows."""
    is_vector = len(tensor.shape) == 1
    unit = tensor.format.row_bytes(1 if is_vector else tensor.columns)
    return replace(tensor, read=_Permuted(tensor, grid, unit), step=1 if is_vector else head_dim)

"""The rows of Q and K in another order: what stands for the pairs that RoPE rotates differs between publishers.

Hugging Face pairs a head's first half with its second, Meta's code and llama.cpp neighbouring rows.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor


def interleaved(tensor: Tensor, head_dim: int) -> Tensor:
    """Q or K rows ``(heads * head_dim, inputs)``, or their bias, from halves to neighbouring pairs."""
    return _permuted(tensor, head_dim, (2, head_dim // 2))


def halved(tensor: Tensor, head_dim: int) -> Tensor:
    """The inverse of :func:`interleaved`."""
    return _permuted(tensor, head_dim, (head_dim // 2, 2))


def _permuted(tensor: Tensor, head_dim: int, grid: tuple[int, int]) -> Tensor:
    """Within each head, rows seen as ``grid`` are transposed. A bias is a column of such rows."""
    is_vector = len(tensor.shape) == 1
    unit = tensor.format.row_bytes(1 if is_vector else tensor.columns)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        raw = tensor.read(start, stop)
        return raw.reshape(-1, *grid, unit).swapaxes(1, 2).reshape(raw.shape)

    return replace(tensor, read=read, step=1 if is_vector else head_dim)

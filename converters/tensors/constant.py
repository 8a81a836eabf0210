"""Tensors that are computed rather than read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.files.formats import F32


@dataclass(frozen=True, slots=True, eq=False)
class _Constant:
    """Numbers that are there already, as rows of bytes."""

    rows: NDArray[np.uint8]

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.rows[start:stop]


def constant(name: str, values: NDArray[np.float32]) -> Tensor:
    """The vector ``values``."""
    return Tensor(name, values.shape, F32, _Constant(values.view(np.uint8).reshape(1, -1)))

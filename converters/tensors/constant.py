"""Tensors that are computed rather than read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.files.formats import F32, FORMATS


@dataclass(frozen=True, slots=True, eq=False)
class _Constant:
    """Numbers that are there already, as rows of bytes."""

    rows: NDArray[np.uint8]

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.rows[start:stop]


def constant(name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> Tensor:
    """The vector ``values``."""
    format_ = F32 if values.dtype == np.float32 else FORMATS["i64"]
    return Tensor(name, values.shape, format_, _Constant(values.view(np.uint8).reshape(1, -1)))

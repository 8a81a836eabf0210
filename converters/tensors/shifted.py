"""Weights to which a number is added: norms that one stores as they multiply, and another less one."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.files.formats import F32
from quant.kernels import recode


@dataclass(frozen=True, slots=True, eq=False)
class _Shifted:
    """Rows of ``source``, in float32, and a number added to each weight."""

    source: Tensor
    by: float

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        numbers = recode(self.source.read(start, stop), self.source.format, F32).view(np.float32)
        shifted: NDArray[np.float32] = numbers + np.float32(self.by)
        return shifted.view(np.uint8)


def shifted(tensor: Tensor, by: float) -> Tensor:
    """``tensor`` in float32 with ``by`` added; there and back again is the tensor that it was, bit for bit."""
    if isinstance(tensor.read, _Shifted) and tensor.read.by == -by:
        return replace(tensor.read.source, name=tensor.name)
    return replace(tensor, format=F32, read=_Shifted(tensor, by))

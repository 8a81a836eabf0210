"""Position embeddings on another grid."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.files.formats import F32
from quant.kernels import recode


@dataclass(frozen=True, slots=True, eq=False)
class _Resampled:
    """Each place of a grid of ``side`` is the mean of the four of ``source`` around it; the token comes last."""

    source: Tensor
    side: int

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        old = self.source
        rows = recode(old.read(0, old.rows), old.format, F32, check=False).view(np.float32)
        token, places = rows[:1], rows[1:].reshape(self.side, self.side, old.columns)
        around = np.pad(places, ((1, 0), (1, 0), (0, 0)))
        mean = (around[:-1, :-1] + around[:-1, 1:] + around[1:, :-1] + around[1:, 1:]) / np.float32(4)
        return np.concatenate([mean.reshape(-1, old.columns), token]).view(np.uint8)[start:stop]


def resampled(old: Tensor) -> Tensor:
    """Position embeddings as Meta's code had them before ``positional_embedding_vlm``, as these: float32.

    The class token's is the first of them and remains. The others lie half a patch further right and down: each of
    the new is the mean of the four around it, and beyond the upper and left edge there are zeros. So the load hook of
    ``llama_models``' ``VisionEncoder`` samples them.
    """
    return replace(old, format=F32, read=_Resampled(old, math.isqrt(old.rows - 1)), step=1)

"""One row format to another: the one door to the kernels, whichever are in use.

Today ggml's own (:mod:`quant.ggml`) do the work; faster ones that give the same bytes enter here.
"""

import math

import numpy as np
from numpy.typing import NDArray

from edge_llama.formats import Format
from quant import ggml
from quant.ggml import can_read

__all__ = ["NonFiniteError", "can_read", "recode"]


_HALF_MAX = 65504.0
"""Scales are float16 and no larger than the weights they scale: up to this no format overflows."""


class NonFiniteError(ValueError):
    """Weights hold NaN or infinity; ``count`` of them."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count:,} weights are NaN or infinite")
        self.count = count


def recode(raw: NDArray[np.uint8], source: Format, target: Format, *, check: bool = True) -> NDArray[np.uint8]:
    """Rows of bytes ``(n_rows, row_bytes)`` in ``source`` as rows of ``target``.

    Equal formats pass untouched. Raises NonFiniteError for NaN or infinite weights, ValueError for weights
    that ``target`` cannot hold; without ``check`` what the kernels make of these is given.
    """
    if source is target and not check:
        return raw
    rows = ggml.dequantize(np.ascontiguousarray(raw), source)
    largest = _largest(rows) if check else 0.0
    if source is target:
        return raw
    out = ggml.quantize(rows, target)
    if largest > _HALF_MAX and not ggml.is_finite(out, target):
        raise ValueError(f"a weight of {largest:g} is too large for {target}")
    return out


def _largest(rows: NDArray[np.float32]) -> float:
    """The largest magnitude; NonFiniteError if there are weights that have none. NaN survives ``max`` and ``min``."""
    high, low = float(rows.max(initial=0.0)), float(rows.min(initial=0.0))
    if math.isfinite(high) and math.isfinite(low):
        return max(high, -low)
    raise NonFiniteError(rows.size - int(np.isfinite(rows).sum()))

"""One row format to another: the one door to the kernels, whichever are in use.

Today ggml's own (:mod:`quant.ggml`) do the work; faster ones that give the same bytes enter here.
"""

import numpy as np
from numpy.typing import NDArray

from edge_llama.formats import BF16, F16, Format
from quant import ggml
from quant.ggml import can_read

__all__ = ["NonFiniteError", "can_read", "recode"]


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
    if check:
        _check_finite(rows)
    if source is target:
        return raw
    out = ggml.quantize(rows, target, check=check)
    if check and target in (F16, BF16):
        _check_range(rows, out, target)
    return out


def _check_finite(rows: NDArray[np.float32]) -> None:
    """A sum is finite only if every term is: one fast pass, and a slow one only when something is wrong."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = rows.sum()
    if np.isfinite(total):
        return
    count = rows.size - int(np.isfinite(rows).sum())
    if count:
        raise NonFiniteError(count)


def _check_range(rows: NDArray[np.float32], out: NDArray[np.uint8], target: Format) -> None:
    """Finite weights that became infinite are an error, never a silent clip."""
    largest = 65504.0 if target is F16 else 3.3895314e38
    if np.abs(rows).max(initial=0.0) > largest and not np.isfinite(ggml.dequantize(out, target)).all():
        raise ValueError(f"a weight of {np.abs(rows).max():g} is larger than {target} can hold")

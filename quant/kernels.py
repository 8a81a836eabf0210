"""One row format to another: the one door to the kernels, whichever are in use.

Floats are numpy's (:mod:`quant.floats`); :mod:`quant.dequantize` chooses what dequantizes. What quantizes has the same
bytes twice: in llama.cpp's own C (:mod:`quant.reference`), and compiled here, several times as fast
(:mod:`quant.compiled`).
The C does the work until :func:`load` has brought the other; :mod:`quant.loading` says when that is worth it.
"""

import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import BF16, F16, FORMATS, Format
from quant import compiled, nbits
from quant.dequantize import dequantize, is_finite
from quant.fitting import compiled_fit, fitted
from quant.floats import FLOATS, narrow
from quant.reference import ggml
from quant.reference.vectors import require_ggml

if TYPE_CHECKING:
    from quant.compiled import Kernel, RowTools
    from quant.fitting import Fit

__all__ = [
    "NonFiniteError",
    "fit_is_loaded",
    "is_loaded",
    "load",
    "load_fit",
    "quantize",
    "recode",
    "recode_arrays",
]

_INTEGERS = (FORMATS["i8"], FORMATS["i16"], FORMATS["i64"])  # always finite
_SLAB = 1 << 18  # weights recoded at once: 1 MB as float32, about a core's second-level cache
_HALF_MAX = 65504.0
"""Scales are float16 and no larger than the weights they scale: up to this no format overflows."""

_loaded: "dict[tuple[str, bool], Kernel | None]" = {}
"""By format and whether there is importance; None where ggml's kernel has to do."""
_rows: "list[RowTools]" = []
"""The compiled ways to widen rows: one, or none before a kernel was loaded."""
_fits: "list[Fit | None]" = []
"""What fits groups' scales, compiled: None where numpy has to do; nothing before it was loaded."""
_loading = threading.Lock()


class NonFiniteError(ValueError):
    """Weights hold NaN or infinity; ``count`` of them."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count:,} weights are NaN or infinite")
        self.count = count


def recode(
    raw: NDArray[np.uint8],
    source: Format,
    target: Format,
    *,
    check: bool = True,
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Rows of bytes ``(n_rows, row_bytes)`` in ``source`` as rows of ``target``.

    Equal formats pass untouched. ``importance``: see :func:`quantize`. Raises NonFiniteError for NaN or infinite
    weights, ValueError for weights that ``target`` cannot hold; without ``check`` what ggml makes of these is given.
    Raises EngineError where neither the compiled kernel nor ggml's gives the bytes that all machines shall give, and
    for weights that only ggml's can quantize where that one doesn't, or llama-cpp-python is missing.
    """
    if source is target and (not check or source in _INTEGERS):
        return raw
    if isinstance(target, nbits.ArrayFormat):
        return recode_arrays(raw, source, target, check=check, importance=importance)[target.part]
    out = raw if source is target else np.empty((len(raw), target.row_bytes(_columns(raw, source))), np.uint8)
    for start, rows, largest in _slabs(raw, source, check=check):
        if source is target:
            continue
        kernel = quantize if np.isfinite(largest) else _quantize_nonfinite
        recoded = kernel(rows, target, importance)
        if check and (largest > _HALF_MAX or importance is not None) and not is_finite(recoded, target):
            raise _too_large(largest, target)
        out[start : start + len(rows)] = recoded
    return out


def recode_arrays(
    raw: NDArray[np.uint8],
    source: Format,
    target: nbits.ArrayFormat,
    *,
    check: bool = True,
    importance: NDArray[np.float32] | None = None,
) -> nbits.Arrays:
    """As :func:`recode`, all arrays that the rows become in the grid of ``target``."""
    if nbits.is_exact(source, target):
        raw = np.ascontiguousarray(raw)
        if check and not is_finite(raw, source):
            raise NonFiniteError(_count_nonfinite(raw, source))
        return nbits.repacked(raw, source, target.grid.scales)
    slabs = []
    for _, rows, largest in _slabs(raw, source, check=check):
        is_sane = bool(np.isfinite(largest))
        kernel = partial(quantize if is_sane else _quantize_nonfinite, importance=importance)
        fit = _fits[0] if is_sane and _fits and _fits[0] else fitted
        arrays = nbits.quantize(rows, target.grid, kernel, fit=fit, is_transposed=target.is_transposed)
        if check and largest > _HALF_MAX / 2 and not nbits.is_held(arrays, target.grid):
            raise _too_large(largest, target)
        slabs.append(arrays)
    return {part: np.concatenate([arrays[part] for arrays in slabs]) for part in slabs[0]}


def _slabs(raw: NDArray[np.uint8], source: Format, *, check: bool) -> Iterator[tuple[int, NDArray[np.float32], float]]:
    """Some rows at a time: the first one's number, floats, and the largest magnitude among them."""
    step = max(_SLAB // _columns(raw, source), 1)
    for start in range(0, len(raw), step):
        slab = np.ascontiguousarray(raw[start : start + step])
        rows = _dequantize(slab, source)
        largest = _largest_bf16(slab) if source is BF16 else _largest(rows)
        if check and not np.isfinite(largest):
            raise NonFiniteError(_count_nonfinite(raw[start:], source))
        yield start, rows, largest


def _columns(raw: NDArray[np.uint8], source: Format) -> int:
    return int(raw.shape[1]) // source.block_bytes * source.block_size


def _too_large(weight: float, target: Format) -> ValueError:
    return ValueError(f"a weight of {weight:g} is too large for {target}")


def quantize(
    rows: NDArray[np.float32], target: Format, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Finite rows ``(n_rows, columns)``, C-contiguous, as ``(n_rows, row_bytes)`` bytes of ``target``.

    ``importance``, ``(columns,)`` float32, weighs the columns' errors in formats that search for their scales. Raises
    EngineError where ggml's kernel would be taken and is missing, or gives other bytes than it should.
    """
    if target in FLOATS:
        return narrow(rows, target)
    if kernel := _loaded.get((target.name, importance is not None)):
        return kernel.quantize(rows, importance)
    require_ggml(f"quantizing to {target} takes ggml's own kernel", target, has_importance=importance is not None)
    return ggml.quantize(rows, target, importance)


def _quantize_nonfinite(
    rows: NDArray[np.float32], target: Format, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """As :func:`quantize`, rows with infinities or NaN among them, of which compiled kernels know nothing."""
    if target in FLOATS:
        return narrow(rows, target)
    need = f"weights that are infinite or NaN take ggml's own kernel of {target}"
    require_ggml(need, target, has_importance=importance is not None)
    return ggml.quantize(rows, target, importance)


def load(format_: Format, *, has_importance: bool = False) -> bool:
    """Have the compiled kernel of ``format_`` in use from now on; whether there is one that gives ggml's bytes here."""
    if format_.name not in compiled.NAMES:
        return False
    key = (format_.name, has_importance)
    with _loading:
        if key not in _loaded:
            _loaded[key] = compiled.load(format_.name, has_importance=has_importance)
        if not _rows:
            _rows.append(compiled.load_rows())
    return _loaded[key] is not None


def load_fit() -> bool:
    """Have groups' scales fitted by compiled code from now on; whether that gives numpy's bytes here."""
    with _loading:
        if not _fits:
            _fits.append(compiled_fit())
    return _fits[0] is not None


def fit_is_loaded() -> bool:
    """Whether :func:`load_fit` was called, whatever came of it."""
    return bool(_fits)


def is_loaded(format_: Format, *, has_importance: bool = False) -> bool:
    """Whether :func:`load` was called for ``format_``, whatever came of it."""
    return (format_.name, has_importance) in _loaded


def _dequantize(raw: NDArray[np.uint8], source: Format) -> NDArray[np.float32]:
    if source not in (BF16, F16) or not _rows:
        return dequantize(raw, source)
    bits, wide = raw.view(np.uint16), np.empty((raw.shape[0], raw.shape[1] // 2), np.float32)
    if source is BF16:
        _rows[0].widen(bits.reshape(-1), wide.view(np.uint32).reshape(-1))
    else:
        _rows[0].widen_half(bits.reshape(-1), wide.reshape(-1))
    return wide


def _largest_bf16(slab: NDArray[np.uint8]) -> float:
    """As :func:`_largest`, of half as many bytes."""
    bits = int((slab.view(np.uint16) & np.uint16(0x7FFF)).max(initial=0))
    return float(np.uint32(bits << 16).view(np.float32))


def _largest(rows: NDArray[np.float32]) -> float:
    """The largest magnitude; infinite or NaN if there are weights that have none."""
    if _rows:
        return float(np.uint32(_rows[0].largest_bits(rows.reshape(-1))).view(np.float32))
    high, low = float(rows.max(initial=0.0)), float(rows.min(initial=0.0))  # NaN survives both
    return max(high, -low) if high == high and low == low else float("nan")  # noqa: PLR0124 - that is, not NaN


def _count_nonfinite(raw: NDArray[np.uint8], source: Format) -> int:
    rows = dequantize(np.ascontiguousarray(raw), source)
    return rows.size - int(np.isfinite(rows).sum())

"""One row format to another: the one door to the kernels, whichever are in use.

ggml's own (:mod:`quant.ggml`) are always there. :mod:`quant.compiled` has the same bytes several times as fast, but
must load numba first and, on a machine's first conversion, compile: worth it for models from some hundred million
weights on. :func:`hastened` does that while ggml's kernels already work. ``EDGE_LLAMA_KERNELS`` decides otherwise:
``ggml``, or ``compiled`` (from the first row on, whatever it takes).
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import OptionError
from edge_llama.files.formats import BF16, F16, FORMATS, Format
from quant import compiled, ggml, nbits
from quant.ggml import can_read

if TYPE_CHECKING:
    from quant.compiled import Kernel, RowTools

__all__ = [
    "CHOICES",
    "NonFiniteError",
    "can_read",
    "choice",
    "hastened",
    "in_use",
    "load",
    "quantize",
    "recode",
    "recode_arrays",
]

_log = logging.getLogger("edge_llama")
_INTEGERS = (FORMATS["i8"], FORMATS["i16"])  # always finite
CHOICES = ("auto", "ggml", "compiled")


class _Cost(NamedTuple):
    """Of a format whose compiled kernel is faster than ggml's without importance; both figures are about right."""

    ggml_rate: float
    """Weights a second and core that ggml's kernel makes."""
    compiling: float
    """Seconds."""


_COSTS = {
    "q8_0": _Cost(240e6, 2.0),
    "iq4_nl": _Cost(4.5e6, 5.0),
    "iq4_xs": _Cost(4.5e6, 5.0),
    "q3_k": _Cost(70e6, 6.0),
    "q4_k": _Cost(14e6, 7.0),
    "q5_k": _Cost(16e6, 7.0),
    "q2_k": _Cost(16e6, 8.0),
    "q6_k": _Cost(30e6, 10.0),
}
_LOADING = 2.0
"""Seconds of ggml's work from which on loading numba is worth its while."""
_SLAB = 1 << 18  # weights recoded at once: 1 MB as float32, about a core's second-level cache
_HALF_MAX = 65504.0
"""Scales are float16 and no larger than the weights they scale: up to this no format overflows."""

_loaded: "dict[tuple[str, bool], Kernel | None]" = {}
"""By format and whether there is importance; None where ggml's kernel has to do."""
_rows: "list[RowTools]" = []
"""The compiled ways to read rows: one, or none before a kernel was loaded."""
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
    """
    if source is target and (not check or source in _INTEGERS):
        return raw
    if isinstance(target, nbits.Stored):
        return recode_arrays(raw, source, target, check=check, importance=importance)[target.part]
    out = raw if source is target else np.empty((len(raw), target.row_bytes(_columns(raw, source))), np.uint8)
    for start, rows, largest in _slabs(raw, source, check=check):
        if source is target:
            continue
        is_sane = bool(np.isfinite(largest))
        made = quantize(rows, target, importance) if is_sane else ggml.quantize(rows, target, importance)
        if check and largest > _HALF_MAX and not ggml.is_finite(made, target):
            raise _too_large(largest, target)
        out[start : start + len(rows)] = made
    return out


def recode_arrays(
    raw: NDArray[np.uint8],
    source: Format,
    target: nbits.Stored,
    *,
    check: bool = True,
    importance: NDArray[np.float32] | None = None,
) -> nbits.Arrays:
    """As :func:`recode`, all arrays that the rows become in the grid of ``target``."""
    if nbits.is_exact(source, target):
        raw = np.ascontiguousarray(raw)
        if check and not ggml.is_finite(raw, source):
            raise NonFiniteError(_count_nonfinite(raw, source))
        return nbits.repacked(raw, source)
    made = []
    for _, rows, largest in _slabs(raw, source, check=check):
        kernel = partial(quantize if np.isfinite(largest) else ggml.quantize, importance=importance)
        arrays = nbits.quantize(rows, target.grid, kernel, is_across=target.is_across)
        if check and largest > _HALF_MAX and not np.isfinite(arrays["scales"].view(np.float32)).all():
            raise _too_large(largest, target)
        made.append(arrays)
    return {part: np.concatenate([arrays[part] for arrays in made]) for part in made[0]}


def _slabs(raw: NDArray[np.uint8], source: Format, *, check: bool) -> Iterator[tuple[int, NDArray[np.float32], float]]:
    """Some rows at a time: the first one's number, floats, and the largest magnitude among them."""
    step = max(_SLAB // _columns(raw, source), 1)
    for start in range(0, len(raw), step):
        stored = np.ascontiguousarray(raw[start : start + step])
        rows = _dequantize(stored, source)
        largest = _largest_bf16(stored) if source is BF16 else _largest(rows)
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

    ``importance``, a float32 for each column, weighs the columns' errors in formats that search for their scales.
    """
    kernel = _loaded.get((target.name, importance is not None))
    return kernel.quantize(rows, importance) if kernel else ggml.quantize(rows, target, importance)


def choice() -> str:
    """What ``EDGE_LLAMA_KERNELS`` says, ``auto`` if nothing; OptionError for anything unknown."""
    value = os.environ.get("EDGE_LLAMA_KERNELS") or "auto"
    if value not in CHOICES:
        raise OptionError(f"EDGE_LLAMA_KERNELS is {value!r}", remedy=f"known: {', '.join(CHOICES)}")
    if value == "compiled" and not compiled.is_available():
        raise OptionError("EDGE_LLAMA_KERNELS is compiled, but numba is not installed", remedy="pip install numba")
    return value


def in_use() -> str:
    """Which kernels a conversion takes, in a sentence."""
    chosen = choice()
    if chosen == "ggml" or not compiled.is_available():
        why = "EDGE_LLAMA_KERNELS" if chosen == "ggml" else "numba is not installed: pip install 'edge-llama[convert]'"
        return f"ggml's ({why})"
    return "compiled for this machine; ggml's for small models and while they are compiled"


@contextmanager
def hastened(work: Mapping[Format, int], threads: int) -> Iterator[None]:
    """While within, load the kernels that ``work`` (weights to quantize in each format) is worth.

    ``threads`` share the work. With ``auto`` nobody waits; with ``compiled`` all kernels are ready at once.
    """
    chosen = choice()
    if chosen == "compiled":
        for format_ in work:
            load(format_)
    seconds = {
        format_.name: weights / _COSTS[format_.name].ggml_rate / threads
        for format_, weights in work.items()
        if format_.name in _COSTS and (format_.name, False) not in _loaded
    }
    if chosen != "auto" or not compiled.is_available() or sum(seconds.values()) < _LOADING:
        yield
        return
    loader = _Loader(sorted(seconds, key=lambda name: -seconds[name]), sum(seconds.values()))
    try:
        yield
    finally:
        loader.close()


class _Loader:
    """Loads kernels in a thread; what was never compiled is compiled in a process of its own.

    There the compiler takes neither this process's lock nor its memory, and can be left unfinished.
    """

    def __init__(self, names: list[str], seconds: float) -> None:
        self._names = names
        is_worth_it = seconds >= sum(_COSTS[name].compiling for name in names)
        self._may_compile = is_worth_it and not getattr(sys, "frozen", False)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kernels", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._load_all()
        except Exception as error:  # whatever numba or the file system has against it: ggml's kernels do the work
            _log.warning("compiled kernels are not used: %s: %s", type(error).__name__, error)

    def _load_all(self) -> None:
        from quant.compiled.jit import FOLDER  # noqa: PLC0415 - loads numba

        for name in self._names:
            is_compiled = (FOLDER / f"{name}.compiled").exists()
            if is_compiled or (self._may_compile and self._compile(name)):
                load(FORMATS[name])
            if self._is_closed.is_set():
                return

    def _compile(self, name: str) -> bool:
        """Whether the compiler came to its end before the work did."""
        command = [sys.executable, "-m", "quant.compiled", name]
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)  # noqa: S603 - our own module
        try:
            while process.poll() is None:
                if self._is_closed.wait(0.05):
                    return False
            if process.returncode:
                _log.warning("the kernel of %s could not be compiled: python -m quant.compiled %s says why", name, name)
            return process.returncode == 0
        finally:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop what is not finished."""
        self._is_closed.set()
        self._thread.join()


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


def _dequantize(raw: NDArray[np.uint8], source: Format) -> NDArray[np.float32]:
    if source not in (BF16, F16) or not _rows:
        return ggml.dequantize(raw, source)
    bits, wide = raw.view(np.uint16), np.empty((raw.shape[0], raw.shape[1] // 2), np.float32)
    if source is BF16:
        _rows[0].widen(bits.reshape(-1), wide.view(np.uint32).reshape(-1))
    else:
        _rows[0].widen_half(bits.reshape(-1), wide.reshape(-1))
    return wide


def _largest_bf16(stored: NDArray[np.uint8]) -> float:
    """As :func:`_largest`, of half as many bytes."""
    bits = int((stored.view(np.uint16) & np.uint16(0x7FFF)).max(initial=0))
    return float(np.uint32(bits << 16).view(np.float32))


def _largest(rows: NDArray[np.float32]) -> float:
    """The largest magnitude; infinite or NaN if there are weights that have none."""
    if _rows:
        return float(np.uint32(_rows[0].largest_bits(rows.reshape(-1))).view(np.float32))
    high, low = float(rows.max(initial=0.0)), float(rows.min(initial=0.0))  # NaN survives both
    return max(high, -low) if high == high and low == low else float("nan")  # noqa: PLR0124 - that is, not NaN


def _count_nonfinite(raw: NDArray[np.uint8], source: Format) -> int:
    rows = ggml.dequantize(np.ascontiguousarray(raw), source)
    return rows.size - int(np.isfinite(rows).sum())

"""Kernels that numba compiles for the machine at hand: ggml's bytes, several times as fast.

ggml's quantizers are scalar. Here each lane of a SIMD register works on a block of its own, and every lane keeps ggml's
order of operations (:mod:`quant.compiled.lanes`), so that the bytes are the same. Where that can't be sure (infinities,
numbers near the ends of float32) a kernel says so, and ggml quantizes these rows, if its own bytes are those expected.

Whether it holds on this machine is not taken for granted: a compiler may fuse products and sums. So a kernel's bytes
are compared with those expected (:mod:`quant.reference`) when it is loaded, and it is not used where one differs.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import FORMATS, Format
from quant.reference import ggml
from quant.reference.vectors import gives_expected_bytes, require_ggml

_MODULES = {
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"), "k_quants"),
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"), "legacy"),
    **dict.fromkeys(("iq4_nl", "iq4_xs"), "iq4"),
}
NAMES = tuple(_MODULES)
"""Formats that have a kernel here."""


class Kernel:
    """Rows of float32 into bytes of ``format``."""

    def __init__(self, format_: Format, function: Callable[..., None]) -> None:
        self.format = format_
        self._function = function

    def quantize(self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """``(n_rows, columns)``, C-contiguous and finite, as ``(n_rows, row_bytes)``; releases the GIL.

        ``importance``: ``(columns,)`` float32. EngineError for rows that only ggml quantizes where it is missing, or
        gives other bytes than it should.
        """
        n_rows, columns = rows.shape
        out = np.empty((n_rows, self.format.row_bytes(columns)), np.uint8)
        odd = np.zeros(rows.size // self.format.block_size, np.bool_)
        self._function(rows.reshape(-1), columns, importance, out.reshape(-1), odd)
        if odd.any():
            need = f"weights near the ends of float32 take ggml's own kernel of {self.format}"
            require_ggml(need, self.format, has_importance=importance is not None)
            for row in np.flatnonzero(odd.reshape(n_rows, -1).any(axis=1)):
                out[row] = ggml.quantize(rows[row : row + 1], self.format, importance)
        return out


def is_available() -> bool:
    """Whether kernels can be compiled here: numba is installed, and words have their lowest byte first."""
    return sys.byteorder == "little" and find_spec("numba") is not None


def load(name: str, *, has_importance: bool = False) -> Kernel | None:
    """The kernel of a format, compiled if need be (seconds); None if it does not give the expected bytes here.

    With importance it is other code, which is compiled and compared only where it is asked for.
    """
    from quant.compiled import cache  # noqa: PLC0415 - may raise OSError: there may be no place for a cache

    functions: Any = import_module(f"quant.compiled.{_MODULES[name]}")
    kernel = Kernel(FORMATS[name], getattr(functions, name))
    with cache.locked(name):
        is_right = gives_expected_bytes(kernel.format, kernel.quantize, has_importance=has_importance)
        cache.note(cache.key(name, has_importance=has_importance), is_right)
    return kernel if is_right else None


class Verdicts(NamedTuple):
    """Names of formats by what came of their kernels, without importance, when they were last loaded here."""

    accepted: tuple[str, ...]
    refused: tuple[str, ...]
    """They give other bytes here than they should, and are not used."""


def verdicts() -> Verdicts:
    """What is known of the kernels; those in neither list were not compiled yet."""
    try:
        from quant.compiled import cache  # noqa: PLC0415
    except OSError:
        return Verdicts((), ())
    return Verdicts(*(tuple(name for name in NAMES if cache.verdict(name) is wanted) for wanted in (True, False)))


GROUPS = "groups"
"""The name of what :func:`load_groups` loads."""


def load_groups() -> Callable[..., None]:
    """:func:`quant.compiled.groups.fit_groups`, compiled if need be; who takes it compares its bytes first."""
    from quant.compiled.cache import locked  # noqa: PLC0415

    groups: Any = import_module("quant.compiled.groups")
    ones, octets = np.ones(32, np.float32), np.empty(16, np.uint8)
    with locked(GROUPS):
        groups.fit_groups(ones, 32, ones[0], ones[:1], True, np.empty(1, np.float32), octets)
    function: Callable[..., None] = groups.fit_groups
    return function


def noted(name: str, *, is_right: bool) -> bool:
    """``is_right``, noted for the next process: whether a kernel gave the bytes that it should."""
    from quant.compiled import cache  # noqa: PLC0415

    with cache.locked(name):
        cache.note(name, is_right)
    return is_right


class RowTools(NamedTuple):
    """Functions of :mod:`quant.compiled.rows`."""

    widen: Callable[[NDArray[np.uint16], NDArray[np.uint32]], None]
    widen_half: Callable[[NDArray[np.uint16], NDArray[np.float32]], None]
    largest_bits: Callable[[NDArray[np.float32]], int]


def load_rows() -> RowTools:
    """What widens rows, compiled if need be."""
    from quant.compiled.cache import locked  # noqa: PLC0415

    rows: Any = import_module("quant.compiled.rows")
    with locked("rows"):
        rows.widen(np.zeros(1, np.uint16), np.zeros(1, np.uint32))
        rows.widen_half(np.zeros(1, np.uint16), np.zeros(1, np.float32))
        rows.largest_bits(np.zeros(1, np.float32))
    return RowTools(rows.widen, rows.widen_half, rows.largest_bits)

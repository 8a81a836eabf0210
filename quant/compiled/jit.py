"""How kernels are compiled."""

from collections.abc import Callable
from typing import Any

import numba
from numba import njit

from quant.compiled.cache import FLAGS, FOLDER


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a kernel: compiled with each kernel that calls it."""
    return njit(**FLAGS)(function)  # type: ignore[no-any-return]


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """What Python calls. It runs without the GIL, and what it compiles to is kept in ``FOLDER`` for the next process.

    Only these are kept, and only under :func:`quant.compiled.cache.locked` may they be called for the first time:
    numba numbers the variants of a function, and two processes at once would give two of them the same number.
    """
    # The setting is numba's only way to say where; others in this process keep theirs.
    others = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(FOLDER)
    try:
        return njit(cache=True, **FLAGS)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = others

"""How kernels are compiled, and where the compiled code is kept."""

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock
from numba import njit

from edge_llama.host.user_cache import folder

FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": False}
"""No contraction (FMA) and no fast-math: each rounding is one that ggml's C does too. Divisions don't raise."""


def _cache_folder() -> Path:
    """One for each state of these sources and of the compiler: numba itself looks at one file's time only."""
    digest = hashlib.sha256(f"{numba.__version__} {sorted(FLAGS.items())}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return folder() / "kernels" / f"{version('edge-llama')}-{digest.hexdigest()[:16]}"


FOLDER = _cache_folder()


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a kernel: compiled with each kernel that calls it."""
    return njit(**FLAGS)(function)  # type: ignore[no-any-return]


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """What Python calls. It runs without the GIL, and what it compiles to is kept in ``FOLDER`` for the next process.

    Only these are kept, and only :func:`locked` may they be called for the first time: numba numbers the variants of a
    function, and two processes at once would give two of them the same number.
    """
    # The setting is numba's only way to say where; others in this process keep theirs.
    others = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(FOLDER)
    try:
        return njit(cache=True, **FLAGS)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = others


def locked(name: str) -> FileLock:
    """While it is held no other process compiles the kernel."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FileLock(FOLDER / f"{name}.lock")

"""Where compiled code is kept, and what is known of it. Nothing here loads numba."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from edge_llama.host.user_cache import folder

FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": False}
"""numba's. No contraction (FMA), no fast-math: each rounding is one that ggml's C does too. Divisions don't raise."""


def _cache_folder() -> Path:
    """One for each state of these sources and of the compiler: numba itself looks at one file's time only."""
    digest = hashlib.sha256(f"{version('numba')} {sorted(FLAGS.items())}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return folder() / "kernels" / f"{version('edge-llama')}-{digest.hexdigest()[:16]}"


FOLDER = _cache_folder()


def locked(name: str) -> FileLock:
    """While it is held no other process compiles the kernel."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FileLock(FOLDER / f"{name}.lock")


def is_compiled(name: str) -> bool:
    """Whether the kernel of a format, without importance, lies ready."""
    return (FOLDER / f"{name}.compiled").exists()


def note_compiled(name: str) -> None:
    """Note that it does."""
    (FOLDER / f"{name}.compiled").touch()


def note_refused(name: str, is_refused: bool) -> None:
    """Note whether a kernel, without importance, gave other bytes than it should."""
    mark = FOLDER / f"{name}.refused"
    if is_refused:
        mark.touch()
    else:
        mark.unlink(missing_ok=True)


def refused() -> tuple[str, ...]:
    """Names of the formats whose kernels were refused when they were last loaded."""
    return tuple(sorted(mark.stem for mark in FOLDER.glob("*.refused")))

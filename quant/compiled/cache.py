"""Where compiled code is kept, and what is known of it. Nothing here loads numba."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from edge_llama.host.devices import cpu
from edge_llama.host.user_cache import folder

FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": False}
"""numba's. No fast-math, so no contraction (FMA): each rounding is one that ggml's C does too. Divisions don't raise.

LLVM fuses ``fmul`` and ``fadd`` only where both carry the flag ``contract`` (LangRef, "Fast-Math Flags"), which numba
sets by ``fastmath`` alone, or where the target machine's ``AllowFPOpFusion`` is ``Fast``. llvmlite leaves that at
LLVM's default, ``Standard`` (``TargetOptions.h``: "only allow fusion of 'blessed' ops (currently just fmuladd)"), on
every processor: what clang does unasked on aarch64 is the work of its front end, which emits ``fmuladd``.
"""


def _cache_folder() -> Path:
    """One for each state of these sources, of the compiler and of the processor, since verdicts are kept there too.

    numba itself looks at one file's time only.
    """
    digest = hashlib.sha256(f"{version('numba')} {sorted(FLAGS.items())} {cpu()}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return folder() / "kernels" / f"{version('edge-llama')}-{digest.hexdigest()[:16]}"


FOLDER = _cache_folder()


def locked(name: str) -> FileLock:
    """While it is held no other process compiles the kernel."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FileLock(FOLDER / f"{name}.lock")


def key(name: str, *, has_importance: bool) -> str:
    """What verdicts call the kernel of a format; with importance it is another one."""
    return f"{name}-importance" if has_importance else name


def verdict(name: str) -> bool | None:
    """Whether the kernel that :func:`key` calls so gave the bytes it should; None: it was never loaded here."""
    if (FOLDER / f"{name}.accepted").exists():
        return True
    return False if (FOLDER / f"{name}.refused").exists() else None


def note(name: str, is_right: bool) -> None:
    """Note a verdict: the kernel lies compiled now."""
    FOLDER.joinpath(f"{name}.{'accepted' if is_right else 'refused'}").touch()
    FOLDER.joinpath(f"{name}.{'refused' if is_right else 'accepted'}").unlink(missing_ok=True)

"""Proof that the installed llama.cpp works on this processor: a few tokens decoded in a child process.

Some virtual machines announce AMX and fault on its first instruction; a build made elsewhere may use instructions
that this processor lacks. Either kills the process in the first ``llama_decode``: so a child goes first. A good verdict
is remembered for this build on this processor; a bad one is never: the check is made again each time.

    python -m edge_llama.backends.llama_cpp.build_probe
"""

import json
import logging
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edge_llama.backends import crash_probe
from edge_llama.backends.base import Placement
from edge_llama.backends.device_names import environment
from edge_llama.backends.llama_cpp import offload
from edge_llama.backends.llama_cpp.tiny_models import VOCABULARY, tiny_model
from edge_llama.errors import EngineError
from edge_llama.host import devices, user_cache
from edge_llama.host.llama_library import VARIABLE, library_folder

_log = logging.getLogger(__name__)
_KIND = "engine-health"
_SECONDS = 120  # half a second when quiet
# Without products and sums fused into one rounding, which would give other quantized bytes than elsewhere; on x86-64
# without AMX, which some virtual machines announce and fault on. scripts/install.py builds with the same.
_NO_FUSING = "-ffp-contract=off"
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def rebuild_remedy(machine: str, system: str = os.name) -> str:
    """How to get an engine that works on a ``machine``, named as ``uname -m`` does, under a ``system`` as os.name."""
    command = (
        "build llama-cpp-python again on this machine: pip install --force-reinstall --no-cache-dir --no-binary "
        "llama-cpp-python llama-cpp-python"
    )
    if system == "nt":  # MSVC takes no such flags
        return command
    flags = f"{_NO_FUSING} {_NO_AMX}" if machine.lower() in ("x86_64", "amd64") else _NO_FUSING
    return f"{command}; with CFLAGS and CXXFLAGS set to '{flags}'"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A sound engine: its version, what llama.cpp says of its build, its devices, and when that was found."""

    version: str
    system_info: str
    devices: tuple[devices.Device, ...]
    checked: str
    """Local time, ISO 8601."""


def build() -> dict[str, Any] | None:
    """What tells one installed llama.cpp from another, without loading it; None if there is none."""
    spec, folder = find_spec("llama_cpp"), library_folder()
    if spec is None or not spec.origin or folder is None:
        return None
    # In a frozen program no module has a file of its own.
    files = [file for file in (Path(spec.origin), *sorted(folder.glob("*"))) if file.is_file()]
    found = {"package": str(Path(spec.origin).parent), "files": [(file.name, *_stamp(file)) for file in files]}
    return found if VARIABLE not in os.environ else {**found, "libraries": str(folder.absolute())}


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@cache
def require() -> None:
    """EngineError unless the engine is known to work here; once in a process.

    Where no child can be started (a frozen application without a helper), its maker is trusted.
    """
    if not crash_probe.has_children():
        _log.debug("the engine is not checked: this process can start no child")
        return
    verdict()


def verdict(*, again: bool = False) -> Verdict:
    """The remembered verdict for this build and processor, else (or ``again``) that of :func:`check`."""
    key = {"build": build(), "cpu": asdict(devices.cpu()), "environment": environment()}
    if not again and (found := user_cache.recall(_KIND, key)):
        try:
            return Verdict(**{**found, "devices": tuple(devices.Device(**device) for device in found["devices"])})
        except (TypeError, KeyError):
            _log.debug("a remembered verdict has another form: checking again")
    good = check()
    user_cache.remember(_KIND, key, asdict(good))
    return good


def check() -> Verdict:
    """Decode in a child process; EngineError with what to do if it dies or fails."""
    try:
        outcome = crash_probe.run(__name__, seconds=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"llama.cpp does not work here: a test decode took more than {_SECONDS} s",
            remedy=rebuild_remedy(devices.cpu().machine),
        ) from error
    if outcome.said is None:
        raise EngineError(
            f"llama.cpp does not work here: a test decode {outcome.how}",
            remedy=rebuild_remedy(devices.cpu().machine),
        )
    said = outcome.said
    found = tuple(devices.Device(**device) for device in said["devices"])
    return Verdict(said["version"], said["system_info"], found, datetime.now().astimezone().isoformat("T", "seconds"))


def present(good: Verdict) -> tuple[devices.Device, ...]:
    """The devices that there are now: a child lists them anew, as a model that is opened does.

    Those of the verdict if it can't.
    """
    try:
        outcome = crash_probe.run("edge_llama.backends.llama_cpp.devices", seconds=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.debug("devices are not listed anew: %s", error)
        return good.devices
    if outcome.said is None:
        _log.debug("devices are not listed anew: a child %s", outcome.how)
        return good.devices
    return tuple(devices.Device(**device) for device in outcome.said["devices"])


def decode() -> None:
    """Write a one-layer model with random weights, and decode a batch and a token with it, in this process."""
    import ctypes  # noqa: PLC0415

    import llama_cpp  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        path.write_bytes(tiny_model())
        options = llama_cpp.llama_model_default_params()
        kept = offload.apply(Placement(0, ""), options, llama_cpp)  # a GPU's driver has a trial of its own
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 256
        params.n_threads = params.n_threads_batch = 1  # more would wait for each other on a busy machine
        params.offload_kqv = params.op_offload = False
        context = llama_cpp.llama_init_from_model(model, params)
        for count in (64, 1):
            tokens = (ctypes.c_int32 * count)(*range(count))
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)):
                raise EngineError("llama_decode failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(VOCABULARY,))
        if not np.isfinite(logits).all() or not logits.any():
            raise EngineError("llama_decode gave no sound logits")
        del kept


def main() -> None:
    """The child: decode; then tell what :class:`Verdict` holds."""
    crash_probe.begin()
    decode()
    import llama_cpp  # noqa: PLC0415

    from edge_llama.backends.llama_cpp.devices import engine_devices  # noqa: PLC0415

    info = llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(" |")
    found = [asdict(device) for device in engine_devices()]
    crash_probe.end(json.dumps({"version": llama_cpp.__version__, "system_info": info, "devices": found}))


if __name__ == "__main__":
    main()

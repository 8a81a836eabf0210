"""The ONNX Runtime library: loaded once, and what it can run on."""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from edge_llama.backends import crash_probe
from edge_llama.backends.crash_probe import CrashProbe
from edge_llama.backends.onnxruntime.providers import PROVIDERS, canonical
from edge_llama.errors import ArtifactError, EngineError, NotVerifiableError
from edge_llama.files import manifest
from edge_llama.host import user_cache

CPU = PROVIDERS["cpu"].name
_PROBE = CrashProbe("ONNX Runtime", "onnxruntime")
_REFUSED = "the file is damaged, or newer than this onnxruntime: convert it again, or update onnxruntime"


@cache
def runtime() -> Any:
    """The ``onnxruntime`` module. EngineError if it can't be loaded."""
    try:
        import onnxruntime  # noqa: PLC0415 - loads native code, only when a tower is opened
    except (ImportError, OSError) as error:
        raise EngineError(f"onnxruntime cannot be loaded: {error}", remedy="reinstall it") from error
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def providers(device: str, options: Any) -> list[str]:
    """Where a session shall run, for ``device``: its ``providers``, none where ``options`` say it, as for plugins.

    ``options`` then allow nothing else: ONNX Runtime itself falls back to the CPU in silence. OptionError for an
    unknown device, EngineError for one that is not installed.
    """
    provider = PROVIDERS[canonical(device)]
    if provider.name == CPU:
        return [CPU]
    plugin, available = provider.plugin, runtime().get_available_providers()
    if plugin and plugin.is_installed:
        plugin.add(runtime(), options, provider.hardware)
    elif provider.name not in available:
        remedy = f"pip install {plugin.package}" if plugin else "install another"
        raise EngineError(
            f"device {device}: this onnxruntime has no {provider.name}",
            remedy=f"it has {', '.join(available)}: {remedy}",
        )
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return [] if plugin and plugin.is_installed else [provider.name]


def open_session(file: Path, model: Path, device: str, options: Any) -> Any:
    """A session of ``file`` on ``device`` alone, in which errors are about ``model``.

    Raises ArtifactError if ONNX Runtime refuses it, EngineError if there is no such device, or if it can't run the
    graph: the error names what it does not take.
    """
    lib = runtime()
    options.log_severity_level = 4  # what is wrong is raised; the rest would go to the host's stderr
    chosen = providers(device, options)
    try:
        return lib.InferenceSession(str(file), options, providers=chosen)
    except Exception as error:  # its errors share no class but this
        if chosen != [CPU]:
            raise EngineError(
                f"{model}: {PROVIDERS[canonical(device)].name} does not run it: {why(error)}{_left_over(file, device)}",
                remedy="take another device (--device cpu), or convert it for this one",
            ) from error
        raise ArtifactError(f"{model}: ONNX Runtime refuses it: {why(error)}", remedy=_REFUSED) from error


def _left_over(file: Path, device: str) -> str:
    """The first nodes that a device leaves to the CPU, for an error message; empty if that can't be found out."""
    lib = runtime()
    options = lib.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        chosen = providers(device, options)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        session = lib.InferenceSession(str(file), options, providers=[*chosen, CPU] if chosen else [])
        nodes = [
            f"{node.name} ({node.op_type})"
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name == CPU
            for node in part.get_nodes()
        ]
    except Exception:
        return ""
    more = f" and {len(nodes) - 3:,} more" if len(nodes) > 3 else ""
    return f"; it does not take {', '.join(nodes[:3])}{more}" if nodes else ""


def survived(kind: str, files: Sequence[Path], bundle: Path, identity: str, module: str, device: str) -> None:
    """ArtifactError for a graph that was damaged since it was converted, or of which ONNX Runtime would die.

    ``files`` are the graph's, and those of its weights. A graph of whose bytes ``bundle`` has the hash is as our
    converter wrote it: only the graph is read for that, since wrong weights make wrong numbers, and nothing worse.
    Others run once in a child process, by ``main`` of ``module``; that is remembered as ``kind``.
    """
    try:
        if (bundle / manifest.NAME).exists():
            manifest.verify(bundle, only=(files[0].relative_to(bundle).as_posix(),))
            return
    except NotVerifiableError:  # another program wrote it
        pass
    key = {"file": identity, "engine": runtime().__version__, "device": device}
    if not crash_probe.has_children() or user_cache.recall(kind, key) is not None:
        return
    nbytes = sum(file.stat().st_size for file in files)
    if _PROBE.run(module, files[0], device, nbytes=nbytes) is not None:
        user_cache.remember(kind, key, {"survived": True})


def fits(found: Sequence[Any], wanted: Sequence[int | None]) -> bool:
    """Whether a shape of a graph, where names stand for any size, may be the one that is wanted (None: any)."""
    return len(found) == len(wanted) and all(
        not isinstance(size, int) or want is None or size == want for size, want in zip(found, wanted, strict=True)
    )


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what lies below any living byte, half a megabyte to 50 of it."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def why(error: BaseException) -> str:
    """What ONNX Runtime says, in a line."""
    return " ".join(str(error).split())[:500]

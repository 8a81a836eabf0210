"""The engines that are installed: their versions, whether they work here, and what would be used."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edge_llama.errors import EngineError
from edge_llama.host.devices import Device

if TYPE_CHECKING:
    from edge_llama.backends.onnxruntime.providers import Plugin


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine. ``problem`` says why it can't be used, "" if it can; ``remedy`` what to do about that."""

    name: str
    runs: str
    """Which files it is for."""
    version: str | None
    build: str = ""
    """What the engine says of its own build."""
    devices: tuple[Device, ...] = ()
    checked: str = ""
    """When it decoded in a child process, ISO 8601."""
    problem: str = ""
    remedy: str = ""


def engines(*, again: bool = False) -> list[EngineState]:
    """Every engine that edge-llama knows; llama.cpp's check is made ``again`` even if a verdict is remembered."""
    return [_llama_cpp(again=again), _onnx_runtime()]


def _llama_cpp(*, again: bool) -> EngineState:
    from edge_llama.backends.llama_cpp import build_probe  # noqa: PLC0415 - imports numpy

    runs = "GGUF files"
    if build_probe.build() is None:
        return EngineState("llama.cpp", runs, None, problem="not installed", remedy="pip install llama-cpp-python")
    try:
        verdict = build_probe.verdict(again=again)
    except EngineError as error:
        installed = _version("llama-cpp-python")
        return EngineState("llama.cpp", runs, installed, problem=error.message, remedy=error.remedy)
    return EngineState("llama.cpp", runs, verdict.version, verdict.system_info, verdict.devices, verdict.checked)


def _onnx_runtime() -> EngineState:
    from edge_llama.backends.onnxruntime.providers import PLUGINS  # noqa: PLC0415
    from edge_llama.backends.onnxruntime.session import runtime  # noqa: PLC0415

    name, runs = "ONNX Runtime", "ONNX models and vision towers, on the CPU"
    if find_spec("onnxruntime") is None:
        return EngineState(name, runs, None, problem="not installed", remedy="pip install onnxruntime")
    try:
        library = runtime()
    except EngineError as error:
        return EngineState(name, runs, _version("onnxruntime"), problem=error.message, remedy=error.remedy)
    there = [*library.get_available_providers(), *map(_described, PLUGINS.values())]
    return EngineState(name, runs, library.__version__, f"providers: {', '.join(there)}")


def _described(plugin: "Plugin") -> str:
    """A provider in a package of its own: the version, or how to get it."""
    return f"{plugin.name} ({_version(plugin.package) or f'not here: pip install {plugin.package}'})"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

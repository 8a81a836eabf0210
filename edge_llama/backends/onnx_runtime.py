"""The ONNX Runtime library: loaded once, and what it can run on.

Execution providers come with it, or as plugins: packages of their own that hold a library to register.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from edge_llama.errors import EngineError, OptionError

DEVICES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""Execution providers by the names that we give devices."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A provider in a package of its own: ``module`` of ``package``, and the options for its device."""

    package: str
    module: str
    options: Callable[[ModuleType], dict[str, str]]

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.module) is not None


# By itself OpenVINO computes in bf16 where the processor has it, and rounds activations to 8 bits before 8-bit weights.
_EXACT = '{"CPU":{"INFERENCE_PRECISION_HINT":"f32","DYNAMIC_QUANTIZATION_GROUP_SIZE":"0"}}'
PLUGINS = {
    "openvino": Plugin("onnxruntime-ep-openvino", "onnxruntime_ep_openvino", lambda _: {"load_config": _EXACT}),
    # Without a backend's path QNN finds none, or computes garbage on its recorder; x86-64 has an emulator of the NPU.
    "qnn": Plugin("onnxruntime-qnn", "onnxruntime_qnn", lambda module: {"backend_path": module.get_qnn_htp_path()}),
}


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
    """Where a session shall run, for ``device``: its ``providers``, none if ``options`` say it, as for plugins.

    ``options`` then allow nothing else: ONNX Runtime itself falls back to the CPU in silence. OptionError for an
    unknown device, EngineError for one that is not installed.
    """
    device = "cpu" if device == "auto" else device
    name = DEVICES.get(device)
    if name is None:
        raise OptionError(f"device {device}: unknown to ONNX Runtime", remedy=f"known: auto, {', '.join(DEVICES)}")
    if device == "cpu":
        # Or else 8-bit weights make it round activations of 16 bits, or of float, to 8.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        return [name]
    available = runtime().get_available_providers()
    plugin = PLUGINS.get(device)
    if plugin and plugin.is_installed:
        _add_plugin(device, plugin, options)
    elif name not in available:
        remedy = f"it has {', '.join(available)}: {f'pip install {plugin.package}' if plugin else 'install another'}"
        raise EngineError(f"device {device}: this onnxruntime has no {name}", remedy=remedy)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return [] if plugin and plugin.is_installed else [name]


def _add_plugin(device: str, plugin: Plugin, options: Any) -> None:
    module = registered(device)
    found = [here for here in runtime().get_ep_devices() if here.ep_name == DEVICES[device]]
    if not found:
        raise EngineError(f"device {device}: {plugin.package} finds none here", remedy="choose another device")
    options.add_provider_for_devices(found[:1], plugin.options(module))


@cache
def registered(device: str) -> ModuleType:
    """The module of a plugin, its library known to ONNX Runtime. EngineError if that fails."""
    plugin = PLUGINS[device]
    try:
        module = importlib.import_module(plugin.module)
        runtime().register_execution_provider_library(DEVICES[device], module.get_library_path())
    except Exception as error:  # its errors share no class but this
        raise EngineError(
            f"device {device}: {plugin.package} cannot be loaded: {error}", remedy=f"pip install -U {plugin.package}"
        ) from error
    return module

"""Execution providers of ONNX Runtime, by the names of devices; some are packages with a library to register."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from edge_llama.errors import EngineError, OptionError


@dataclass(frozen=True, slots=True)
class Plugin:
    """The execution provider ``name``: ``module`` of ``package``, and the ``options`` for its device."""

    name: str
    package: str
    module: str
    options: Callable[[ModuleType], dict[str, str]]

    @property
    def is_installed(self) -> bool:
        """Whether its package is there; nothing is loaded to know it."""
        return find_spec(self.module) is not None

    def add(self, library: Any, options: Any, hardware: str | None) -> None:
        """Have a session of ``library``, which is ONNX Runtime, by its ``options`` run on this provider's first device.

        ``hardware`` says of which kind: CPU, GPU or NPU; None: of any.
        EngineError if the package can't be loaded, or finds no device.
        """
        module = _registered(self)
        kind = getattr(library.OrtHardwareDeviceType, hardware) if hardware else None
        found = [
            each for each in library.get_ep_devices() if each.ep_name == self.name and kind in (None, each.device.type)
        ]
        if not found:
            wanted = f"{hardware} " if hardware else "device "
            raise EngineError(f"{self.package} finds no {wanted.strip()} here", remedy="take another device (cpu)")
        options.add_provider_for_devices(found[:1], self.options(module))


# By itself OpenVINO computes in bf16 where the processor has it, and rounds activations to 8 bits before 8-bit weights.
_EXACT = '{"CPU":{"INFERENCE_PRECISION_HINT":"f32","DYNAMIC_QUANTIZATION_GROUP_SIZE":"0"}}'
OPENVINO = Plugin(
    *("OpenVINOExecutionProvider", "onnxruntime-ep-openvino", "onnxruntime_ep_openvino"),
    lambda _: {"load_config": _EXACT},
)
# Without a backend's path QNN finds none, or one that computes garbage. On x86-64 this one emulates the NPU.
QNN = Plugin(
    *("QNNExecutionProvider", "onnxruntime-qnn", "onnxruntime_qnn"),
    lambda module: {"backend_path": module.get_qnn_htp_path()},
)
PLUGINS = (OPENVINO, QNN)


@dataclass(frozen=True, slots=True)
class Provider:
    """The execution provider ``name``, of ONNX Runtime itself or a ``plugin``; on ``hardware`` of one kind alone."""

    name: str
    plugin: Plugin | None = None
    hardware: str | None = None


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider"),
    "cuda": Provider("CUDAExecutionProvider"),
    "coreml": Provider("CoreMLExecutionProvider"),
    "directml": Provider("DmlExecutionProvider"),
    "webgpu": Provider("WebGpuExecutionProvider"),
    "openvino": Provider(OPENVINO.name, OPENVINO),
    "openvino:cpu": Provider(OPENVINO.name, OPENVINO, "CPU"),
    "openvino:gpu": Provider(OPENVINO.name, OPENVINO, "GPU"),
    "npu:openvino": Provider(OPENVINO.name, OPENVINO, "NPU"),
    "npu:qnn": Provider(QNN.name, QNN),
}
"""By the names of devices. To add one, add it here."""
_ALIASES = {"auto": "cpu", "qnn": "npu:qnn", "openvino:npu": "npu:openvino"}


def canonical(device: str) -> str:
    """The name in :data:`PROVIDERS` that ``device`` means; OptionError if it means none."""
    name = _ALIASES.get(device, device)
    if name not in PROVIDERS:
        raise OptionError(f"device {device}: unknown to ONNX Runtime", remedy=f"known: auto, {', '.join(PROVIDERS)}")
    return name


@cache
def _registered(plugin: Plugin) -> ModuleType:
    """A plugin's module, its library known to ONNX Runtime: once in a process."""
    import onnxruntime  # noqa: PLC0415 - loads native code

    try:
        module = importlib.import_module(plugin.module)
        onnxruntime.register_execution_provider_library(plugin.name, module.get_library_path())
    except Exception as error:  # its errors share no class but this
        raise EngineError(
            f"{plugin.package} cannot be loaded: {error}", remedy=f"pip install -U {plugin.package}"
        ) from error
    return module

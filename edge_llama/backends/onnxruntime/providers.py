"""Execution providers of ONNX Runtime that are packages of their own, each with a library to register."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from edge_llama.errors import EngineError


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

    def add(self, library: Any, options: Any) -> None:
        """Have a session of ``library``, which is ONNX Runtime, by its ``options`` run on this provider's first device.

        EngineError if the package can't be loaded, or finds no device.
        """
        module = _registered(self)
        found = [device for device in library.get_ep_devices() if device.ep_name == self.name]
        if not found:
            raise EngineError(f"{self.package} finds no device here", remedy="take another (cpu)")
        options.add_provider_for_devices(found[:1], self.options(module))


# By itself OpenVINO computes in bf16 where the processor has it, and rounds activations to 8 bits before 8-bit weights.
_EXACT = '{"CPU":{"INFERENCE_PRECISION_HINT":"f32","DYNAMIC_QUANTIZATION_GROUP_SIZE":"0"}}'
PLUGINS = {
    "openvino": Plugin(
        *("OpenVINOExecutionProvider", "onnxruntime-ep-openvino", "onnxruntime_ep_openvino"),
        lambda _: {"load_config": _EXACT},
    ),
    # Without a backend's path QNN finds none, or one that computes garbage. On x86-64 this one emulates the NPU.
    "qnn": Plugin(
        *("QNNExecutionProvider", "onnxruntime-qnn", "onnxruntime_qnn"),
        lambda module: {"backend_path": module.get_qnn_htp_path()},
    ),
}
"""By the names that we give devices."""


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

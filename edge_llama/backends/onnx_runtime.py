"""The ONNX Runtime library: loaded once, and what it can run on."""

from functools import cache
from typing import Any

from edge_llama.backends.onnx_plugins import PLUGINS
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
    name = DEVICES.get("cpu" if device == "auto" else device)
    if name is None:
        raise OptionError(f"device {device}: unknown to ONNX Runtime", remedy=f"known: auto, {', '.join(DEVICES)}")
    if name == DEVICES["cpu"]:
        # Or else it rounds activations of 16 bits to 8 where they are multiplied by a matrix of 8 bits.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        return [name]
    plugin, available = PLUGINS.get(device), runtime().get_available_providers()
    if plugin and plugin.is_installed:
        plugin.add(runtime(), options)
    elif name not in available:
        remedy = f"pip install {plugin.package}" if plugin else "install another"
        raise EngineError(
            f"device {device}: this onnxruntime has no {name}", remedy=f"it has {', '.join(available)}: {remedy}"
        )
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return [] if plugin and plugin.is_installed else [name]

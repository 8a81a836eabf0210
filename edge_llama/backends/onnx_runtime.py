"""The ONNX Runtime library: loaded once, and what it can run on."""

from functools import cache
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
    """Where a session shall run, for ``device``; ``options`` then allow nothing else.

    ONNX Runtime itself falls back to the CPU in silence. OptionError for an unknown device, EngineError for one that
    this build has not.
    """
    name = DEVICES.get("cpu" if device == "auto" else device)
    if name is None:
        raise OptionError(f"device {device}: unknown to ONNX Runtime", remedy=f"known: auto, {', '.join(DEVICES)}")
    available = runtime().get_available_providers()
    if name not in available:
        raise EngineError(
            f"device {device}: this onnxruntime has no {name}", remedy=f"it has {', '.join(available)}: install another"
        )
    if name != DEVICES["cpu"]:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return [name]

"""Execution providers of ONNX Runtime: which serves a device, by which of its options, and how a session is told.

Kinds of devices, and the packages that bring their providers, are in :mod:`edge_llama.backends.device_names`.
"""

import errno
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from edge_llama.backends.device_names import (
    GROUPS,
    KINDS,
    DeviceKind,
    DeviceName,
    Onnx,
    impossible,
    parse,
)
from edge_llama.errors import EngineError, OptionError
from edge_llama.host import user_cache

CPU = "CPUExecutionProvider"


@cache
def runtime() -> Any:
    """The ``onnxruntime`` module. EngineError if it can't be loaded."""
    try:
        import onnxruntime  # noqa: PLC0415 - loads native code, only when a tower is opened
    except (ImportError, OSError) as error:
        raise EngineError(f"onnxruntime cannot be loaded: {error}", remedy="reinstall it") from error
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def why(error: BaseException) -> str:
    """What ONNX Runtime says, in a line."""
    return " ".join(str(error).split())[:500]


@dataclass(frozen=True, slots=True)
class OnnxDevice:
    """One device, and how ONNX Runtime has it; ``number`` among several of its kind."""

    name: str
    """As ``--device`` takes it."""
    onnx: Onnx
    number: int = 0

    @property
    def is_cpu(self) -> bool:
        """Whether it is ONNX Runtime's own CPU provider."""
        return self.onnx.provider == CPU


def resolve(device: str) -> OnnxDevice:
    """What ``device`` means here: of a group (gpu, npu) the first that is here and installed, of auto the CPU.

    OptionError if it names nothing, nothing that ONNX Runtime knows, or what isn't here: with the command that brings
    it. For the CPU nothing is loaded.
    """
    name = parse("cpu" if device == "auto" else device)
    kinds = [kind for kind in name.kinds if kind.onnx]
    if not kinds or len(name.numbers) > 1:
        raise _refused(device, name)
    if name.kind in GROUPS:
        kinds = [kind for kind in kinds if kind.is_likely]
    kind = next(filter(is_installed, kinds), None)
    if kind is None or kind.onnx is None:
        raise impossible(name) or _missing(device, kinds)
    if not name.numbers:
        return OnnxDevice(kind.name, kind.onnx)
    return OnnxDevice(str(name), kind.onnx, name.numbers[0])


def _refused(device: str, name: DeviceName) -> OptionError:
    if len(name.numbers) > 1:
        return OptionError(f"device {device}: ONNX Runtime runs a model on one device", remedy="name one of them")
    known = ", ".join(each.name for each in KINDS.values() if each.onnx)
    return OptionError(f"device {device}: unknown to ONNX Runtime", remedy=f"known: auto, gpu, npu, {known}")


def _missing(device: str, kinds: Sequence[DeviceKind]) -> OptionError:
    if not kinds:
        return OptionError(
            f"device {device}: no driver of one that ONNX Runtime knows is found here",
            remedy="take another device (--device cpu), or name the kind: edge-llama devices has them",
        )
    wanted = {kind.onnx.provider: kind.onnx.install for kind in kinds if kind.onnx}
    return OptionError(
        f"device {device}: this onnxruntime has no {' or '.join(wanted)}",
        remedy=f"it has {', '.join(runtime().get_available_providers())}: {' or '.join(wanted.values())}",
    )


def is_installed(kind: DeviceKind) -> bool:
    """Whether its provider is there: a plugin's library is not loaded to know it, and the CPU's is always."""
    if kind.onnx is None or kind.onnx.package:
        return kind.onnx is not None and find_spec(kind.onnx.module) is not None
    return kind.onnx.provider == CPU or kind.onnx.provider in runtime().get_available_providers()


def add(device: OnnxDevice, options: Any, told: Sequence[str] = ()) -> list[tuple[str, dict[str, str]]]:
    """Have a session run on ``device``, by its ``options`` or by the ``providers`` that are returned.

    ``options`` are ONNX Runtime's SessionOptions, whose number of threads is the provider's too; the provider is
    ``told`` the ``KEY=VALUE`` texts besides. EngineError if a plugin can't be loaded, OptionError if it finds no device
    or not so many.
    """
    onnx = device.onnx
    module = _registered(onnx.provider, onnx.package, onnx.module) if onnx.package else None
    wanted = _OPTIONS[onnx.provider](onnx, module, options.intra_op_num_threads) if onnx.provider in _OPTIONS else {}
    wanted |= dict(text.split("=", 1) for text in told)
    found = _devices(onnx)
    if not found and onnx.package:
        raise OptionError(
            f"{onnx.package} finds no {onnx.hardware or 'device'} here", remedy="take another device (--device cpu)"
        )
    if not found:  # it is in ONNX Runtime's own library, and does not list its devices
        return [(onnx.provider, wanted | ({"device_id": str(device.number)} if device.number else {}))]
    if device.number >= len(found):
        raise OptionError(f"device {device.name}: there are {len(found):,} of that kind", remedy="count from 0")
    options.add_provider_for_devices([found[device.number]], wanted)
    return []


def _devices(onnx: Onnx) -> list[Any]:
    """The devices of a provider that lists them: plugins, and some that ONNX Runtime itself has."""
    library = runtime()
    kind = getattr(library.OrtHardwareDeviceType, onnx.hardware) if onnx.hardware else None
    return [
        each for each in library.get_ep_devices() if each.ep_name == onnx.provider and kind in (None, each.device.type)
    ]


@cache
def _registered(provider: str, package: str, name: str) -> ModuleType:
    """The module ``name`` of a plugin's package, its library known to ONNX Runtime: once in a process."""
    try:
        module = importlib.import_module(name)
        path = getattr(module, "get_library_path", None) or module.library_path  # so onnxruntime-ep-mlx has it
        runtime().register_execution_provider_library(provider, path())
    except Exception as error:  # its errors share no class but this
        raise EngineError(f"{package} cannot be loaded: {why(error)}", remedy=f"pip install -U {package}") from error
    return module


def _cuda(_onnx: Onnx, _module: ModuleType | None, _threads: int) -> dict[str, str]:
    """By itself it multiplies f32 as tf32, of 10 bits, and takes twice the memory that it needs."""
    runtime().preload_dlls()  # CUDA's and cuDNN's libraries, where they are Python packages
    return {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}


def _coreml(_onnx: Onnx, _module: ModuleType | None, _threads: int) -> dict[str, str]:
    """The newer of its two forms, which has more operators; on the CPU, the GPU and the Neural Engine."""
    return {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}


def _openvino(onnx: Onnx, _module: ModuleType | None, threads: int) -> dict[str, str]:
    """By itself it computes in bf16 or f16 where there is such, and rounds activations to 8 bits before 8-bit weights.

    Its NPU has no f32. What GPUs and NPUs compile in seconds to minutes is kept.
    """
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    config = {} if onnx.hardware == "NPU" else exact
    if onnx.hardware == "CPU":
        config |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    else:
        config |= {"CACHE_DIR": str(_compiled())}
    return {"load_config": json.dumps({onnx.hardware: config})}


def _compiled() -> Path:
    """The folder for what devices compile. OptionError if nothing can be written there."""
    try:
        folder = user_cache.folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        raise OptionError(
            f"what a device compiles can't be kept: {error}",
            remedy=f"make the folder writable, or name another: {user_cache.CACHE_VARIABLE}",
        ) from error
    return folder


def _qnn(_onnx: Onnx, module: ModuleType | None, _threads: int) -> dict[str, str]:
    """Without a backend's path it finds none, or one that computes garbage. On x86-64 this one emulates the NPU.

    By itself it leaves the rounding of a graph's inputs and outputs to the CPU.
    """
    backend = {"backend_path": module.get_qnn_htp_path()} if module else {}
    return {**backend, "offload_graph_io_quantization": "0"}


_OPTIONS: Mapping[str, Callable[[Onnx, ModuleType | None, int], dict[str, str]]] = {
    "CUDAExecutionProvider": _cuda,
    "CoreMLExecutionProvider": _coreml,
    "OpenVINOExecutionProvider": _openvino,
    "QNNExecutionProvider": _qnn,
}
"""What providers are told, by their names, the plugin's module and threads: answers shall be the CPU's, as they can."""

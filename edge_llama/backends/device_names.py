"""Devices: how people name them, and the one table of their kinds. To add a kind, add it to :data:`KINDS`.

    auto | cpu | gpu | KIND[:N][,KIND:N...] | openvino[:cpu|gpu] | npu[:qnn|openvino]

KIND is cuda, metal, vulkan, rocm, sycl, coreml, directml or webgpu, N a device's number from 0; several of one kind
share a model's layers. ``qnn``, ``openvino`` (its CPU) and ``openvino:npu`` are aliases. Nothing here loads an engine
or a driver.
"""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_llama.errors import OptionError

_MOST = 255  # no engine knows as many devices
_WINDOWS = Path(r"C:\Windows\System32")


@dataclass(frozen=True, slots=True)
class Ggml:
    """How llama.cpp has a kind of device: its ``backend``'s name there, the CMake ``flag``, and what that ``needs``."""

    backend: str
    flag: str
    needs: str

    @property
    def remedy(self) -> str:
        """How to get a llama.cpp that uses it."""
        return (
            f'({self.needs}) CMAKE_ARGS="-D{self.flag}=on" pip install --force-reinstall --no-cache-dir '
            "--no-binary llama-cpp-python llama-cpp-python"
        )


@dataclass(frozen=True, slots=True)
class Onnx:
    """How ONNX Runtime has a kind of device: its execution ``provider``, and the command that brings it."""

    provider: str
    install: str
    package: str = ""
    """The distribution of a plugin, with a library that is registered; "": the provider is in ONNX Runtime's own."""
    module: str = ""
    """The plugin's."""
    hardware: str = ""
    """CPU, GPU or NPU: which of the plugin's devices alone. "": any."""
    runs: str = "ONNX models: text and vision"
    is_tried: bool = True
    """Whether ``auto`` measures models there."""
    options: tuple[str, ...] = ()
    """What people may tell the provider: those of its options that are neither ours to decide nor name files."""
    compiles: bool = False
    """Whether what it makes of a graph can be kept, and opened elsewhere."""


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """A kind of device. ``is_here`` looks for its driver without loading it."""

    name: str
    label: str
    """As its maker writes it."""
    systems: tuple[str, ...]
    """Values of ``sys.platform`` where there are such; "": everywhere."""
    is_here: Callable[[], bool]
    ggml: Ggml | None = None
    onnx: Onnx | None = None
    is_numbered: bool = True
    """Whether there may be several, told apart by ``:N``."""

    @property
    def is_possible(self) -> bool:
        """Whether this system may have one."""
        return not self.systems or sys.platform in self.systems

    @property
    def is_likely(self) -> bool:
        """Whether this system may have one, and its driver is here."""
        return self.is_possible and self.is_here()


def _pci(vendor: str) -> bool:
    """Whether Linux has a GPU of a PCI ``vendor`` (0x10de) that computes."""
    for file in Path("/sys/class/drm").glob("renderD*/device/vendor"):
        try:
            if file.read_text("ascii").strip() == vendor:
                return True
        except (OSError, ValueError):
            continue
    return False


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _has_vulkan() -> bool:
    return any(Path("/dev/dri").glob("renderD*")) or (_WINDOWS / "vulkan-1.dll").exists()


def _has_amd() -> bool:
    return Path("/dev/kfd").exists() or any(_WINDOWS.glob("amdhip64*.dll"))


def _has_intel() -> bool:
    return _pci("0x8086") or (_WINDOWS / "ze_loader.dll").exists()


def _has_intel_npu() -> bool:
    return Path("/sys/module/intel_vpu").exists() or (_WINDOWS / "ze_intel_npu.dll").exists()


def _has_hexagon() -> bool:
    is_arm_windows = sys.platform == "win32" and platform.machine().lower() == "arm64"
    return is_arm_windows or any(Path("/dev").glob("*fastrpc-cdsp*"))


def _is_always() -> bool:
    return True


_LINUX_WINDOWS = ("linux", "win32")
_OPENVINO = ("pip install onnxruntime-ep-openvino", "onnxruntime-ep-openvino", "onnxruntime_ep_openvino")
_QNN = ("pip install onnxruntime-qnn", "onnxruntime-qnn", "onnxruntime_qnn")
_MLX = ("pip install onnxruntime-ep-mlx", "onnxruntime-ep-mlx", "onnxruntime_ep_mlx")
_WEBGPU = ("pip install onnxruntime-ep-webgpu", "onnxruntime-ep-webgpu", "onnxruntime_ep_webgpu")
_PORTABLE = "ONNX models of standard operators (--portable) whole, of others a part"
_INTEGERS = "ONNX models in integers: text and vision"
# onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider; the library of onnxruntime-qnn 2.7.0 has each of them.
_QNN_OPTIONS = (
    *("htp_performance_mode", "rpc_control_latency", "qnn_context_priority", "vtcm_mb", "device_id"),
    *("htp_graph_finalization_optimization_mode", "enable_htp_fp16_precision", "extended_udma"),
    *("enable_htp_shared_memory_allocator", "enable_htp_spill_fill_buffer"),
)
# .../OpenVINO-ExecutionProvider; what it computes in is in its load_config, which is ours.
_OPENVINO_OPTIONS = ("num_streams", "model_priority", "enable_qdq_optimizer", "disable_dynamic_shapes")

# Backends' names are what ggml_backend_reg_name gives (llama-cpp-python 0.3.36: ggml/include, ggml/src/ggml-metal);
# providers' what onnxruntime.get_all_providers gives, and packages those of PyPI (but for AMD's, on its own index).
KINDS = {
    kind.name: kind
    for kind in (
        DeviceKind(
            *("cpu", "CPU", (), _is_always),
            Ggml("CPU", "GGML_CPU", "on by default"),
            Onnx("CPUExecutionProvider", "pip install onnxruntime"),
            is_numbered=False,
        ),
        DeviceKind(
            *("metal", "Metal", ("darwin",), _is_always),
            Ggml("MTL", "GGML_METAL", "a Mac; on by default there"),
            Onnx("MLXExecutionProvider", *_MLX),
        ),
        DeviceKind(
            *("cuda", "CUDA", _LINUX_WINDOWS, _has_nvidia),
            Ggml("CUDA", "GGML_CUDA", "an NVIDIA GPU and the CUDA toolkit"),
            Onnx("CUDAExecutionProvider", "pip uninstall onnxruntime; pip install onnxruntime-gpu"),
        ),
        DeviceKind(
            *("rocm", "ROCm", _LINUX_WINDOWS, _has_amd),
            Ggml("ROCm", "GGML_HIP", "an AMD GPU and ROCm"),
            Onnx("MIGraphXExecutionProvider", "pip uninstall onnxruntime; pip install onnxruntime-migraphx"),
        ),
        DeviceKind(
            *("sycl", "SYCL", _LINUX_WINDOWS, _has_intel),
            Ggml("SYCL", "GGML_SYCL", "an Intel GPU, oneAPI and its compilers: CC=icx CXX=icpx"),
        ),
        DeviceKind(
            *("vulkan", "Vulkan", (*_LINUX_WINDOWS, "darwin"), _has_vulkan),
            Ggml("Vulkan", "GGML_VULKAN", "a Vulkan driver, its headers and glslc"),
        ),
        DeviceKind(
            *("webgpu", "WebGPU", (*_LINUX_WINDOWS, "darwin"), lambda: sys.platform != "linux" or _has_vulkan()),
            Ggml("WebGPU", "GGML_WEBGPU", "Dawn, Google's WebGPU library"),
            Onnx("WebGpuExecutionProvider", *_WEBGPU),
        ),
        DeviceKind(
            *("coreml", "Core ML", ("darwin",), _is_always),
            # It takes one node in two thousand of a text graph, whose sizes are open (docs/devices.md).
            onnx=Onnx("CoreMLExecutionProvider", "pip install onnxruntime", runs=_PORTABLE, is_tried=False),
            is_numbered=False,
        ),
        DeviceKind(
            *("directml", "DirectML", ("win32",), _is_always),
            onnx=Onnx("DmlExecutionProvider", "pip uninstall onnxruntime; pip install onnxruntime-directml"),
        ),
        DeviceKind(
            *("openvino:cpu", "OpenVINO's CPU", _LINUX_WINDOWS, _is_always),
            onnx=Onnx(
                "OpenVINOExecutionProvider", *_OPENVINO, "CPU", _PORTABLE, options=_OPENVINO_OPTIONS, compiles=True
            ),
            is_numbered=False,
        ),
        DeviceKind(
            *("openvino:gpu", "OpenVINO's GPU", _LINUX_WINDOWS, _has_intel),
            onnx=Onnx(
                "OpenVINOExecutionProvider", *_OPENVINO, "GPU", _PORTABLE, options=_OPENVINO_OPTIONS, compiles=True
            ),
            is_numbered=False,
        ),
        DeviceKind(
            *("npu:openvino", "Intel's NPU", _LINUX_WINDOWS, _has_intel_npu),
            onnx=Onnx(
                "OpenVINOExecutionProvider", *_OPENVINO, "NPU", _INTEGERS, options=_OPENVINO_OPTIONS, compiles=True
            ),
            is_numbered=False,
        ),
        DeviceKind(
            *("npu:qnn", "Qualcomm's NPU", (*_LINUX_WINDOWS, "android"), _has_hexagon),
            onnx=Onnx("QNNExecutionProvider", *_QNN, runs=_INTEGERS, options=_QNN_OPTIONS, compiles=True),
            is_numbered=False,
        ),
    )
}
"""Every kind of device, by the name that people write; of two that do for a group the first is taken."""
GROUPS = {
    "gpu": ("metal", "cuda", "rocm", "sycl", "vulkan", "webgpu", "coreml", "directml", "openvino:gpu"),
    "npu": ("npu:qnn", "npu:openvino"),
}
"""Names that mean the first of these that an engine has."""
ALIASES = {"qnn": "npu:qnn", "openvino": "openvino:cpu", "openvino:npu": "npu:openvino"}
EXCLUDED = {
    "HTP": "llama.cpp's Hexagon backend calls itself experimental, and takes Qualcomm's SDK and libraries signed for "
    "the device (docs/backend/snapdragon); npu:qnn runs ONNX models there",
    "OPENVINO": "llama.cpp's OpenVINO backend fails on graphs that it can't translate in place of leaving them to "
    "the CPU, and serves one sequence on an NPU (docs/backend/OPENVINO.md); openvino and npu:openvino run ONNX models",
    "OpenCL": "llama.cpp's OpenCL backend is made for Adreno (docs/backend/OPENCL.md); vulkan runs models there",
}
"""Backends of ggml that are used for nothing, by its names, and why."""
_VARIABLES = (
    *("GGML_", "CUDA_", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "HIP_", "ROCR_", "HSA_"),
    *("GPU_DEVICE_ORDINAL", "ONEAPI_", "SYCL_", "ZE_", "NEOReadDebugKeys"),
    *("VK_", "MESA_", "LP_", "DRI_PRIME", "OPENVINO_", "OV_", "QNN_"),
)
_LISTED = "edge-llama devices lists those that are here"
_NAMES = ("auto", "gpu", "npu", *KINDS)


@dataclass(frozen=True, slots=True)
class DeviceName:
    """A device as it was asked for: ``kind`` is auto, a group or a key of :data:`KINDS`; which ``numbers`` of it.

    No number: whichever the engine takes.
    """

    kind: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return ",".join(f"{self.kind}:{number}" for number in self.numbers) or self.kind

    @property
    def kinds(self) -> tuple[DeviceKind, ...]:
        """The kinds that it may be, the first that an engine has is meant; none for auto."""
        return tuple(KINDS[name] for name in GROUPS.get(self.kind, (self.kind,)) if name in KINDS)


def parse(text: str) -> DeviceName:
    """The device that ``text`` names: see this module's grammar. OptionError with the known names if it names none."""
    named = [_one(each, text) for each in text.split(",")]
    if len(named) == 1:
        return named[0]
    if twice := [name for name in named if named.count(name) > 1]:
        raise OptionError(f"device {text:.100}: {twice[0]} is named twice", remedy="name each device once")
    if len({name.kind for name in named}) > 1 or not all(name.numbers for name in named):
        raise OptionError(
            f"device {text:.100}: these don't go together",
            remedy="name one, or several of one kind by their numbers: cuda:0,cuda:1",
        )
    return DeviceName(named[0].kind, tuple(number for name in named for number in name.numbers))


def _one(text: str, whole: str) -> DeviceName:
    """``KIND[:N]`` of the ``whole`` text."""
    text = ALIASES.get(text, text)
    if text in _NAMES:
        return DeviceName(text)
    kind, _, number = text.rpartition(":")
    if kind in KINDS and KINDS[kind].is_numbered and number.isascii() and number.isdigit():
        if len(number) > len(str(_MOST)) or int(number) > _MOST:
            raise OptionError(f"device {whole:.100}: there is no {kind}:{number:.9}", remedy=_LISTED)
        return DeviceName(kind, (int(number),))
    numbered = ", ".join(name for name, each in KINDS.items() if each.is_numbered)
    raise OptionError(
        f"device {whole:.100}: unknown" if text == whole else f"device {whole:.100}: {text!r:.100} is unknown",
        remedy=f"known: {', '.join((*_NAMES, *ALIASES))}; with a number ({numbered}): cuda:0, or several cuda:0,cuda:1",
    )


def provider_keys(device: str) -> tuple[str, ...]:
    """What people may tell the provider of ``device``: keys of ``KEY=VALUE`` texts."""
    return tuple(key for kind in parse(device).kinds if kind.onnx for key in kind.onnx.options)


def check_provider_options(texts: Sequence[str], *devices: str) -> None:
    """OptionError for what is no ``KEY=VALUE``, and for a key that the provider of none of these devices takes."""
    for text in texts:
        key, is_there, value = text.partition("=")
        if not is_there or not key or not value:
            raise OptionError(
                f"provider option {text:.100}: expected KEY=VALUE", remedy="for example htp_performance_mode=burst"
            )
        known = dict.fromkeys(key for device in devices for key in provider_keys(device))
        if key not in known:
            raise OptionError(
                f"provider option {key:.100}: device {' or '.join(dict.fromkeys(devices))} takes no such",
                remedy=f"known: {', '.join(known)}" if known else "npu:qnn and openvino have some: name the device",
            )


def environment() -> dict[str, str]:
    """Variables by which drivers and engines choose among devices and ways: what is found out depends on them.

    Of their values only the beginnings of their SHA-256: this is written to files, and anything may be in a variable.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    found.pop("GGML_NO_BACKTRACE", None)  # ours, for children
    return {name: hashlib.sha256(os.fsencode(value)).hexdigest()[:16] for name, value in sorted(found.items())}


def impossible(name: DeviceName) -> OptionError | None:
    """What to say of a device that this system can't have, as Metal on Linux; None for others."""
    if not name.kinds or any(kind.is_possible for kind in name.kinds):
        return None
    labels = " or ".join(kind.label for kind in name.kinds)
    return OptionError(f"device {name}: {sys.platform} has no {labels}", remedy="take another device (--device cpu)")

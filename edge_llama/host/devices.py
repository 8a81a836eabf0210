"""What this machine has, and what is chosen. One entry per device."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from edge_llama.errors import OptionError

WANTED = ("auto", "cpu", "gpu")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor: what an engine's build and a measurement depend on."""

    name: str
    machine: str
    """As ``uname -m``: x86_64, arm64."""
    features: tuple[str, ...]
    """Instruction set extensions, as the system names them; empty where it doesn't say."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that an engine's build can use. ``kind``: cpu, gpu or accelerator."""

    name: str
    kind: str
    description: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A kind of GPU: ``flag`` builds llama.cpp for it; ``is_here`` looks for its driver without loading it."""

    name: str
    flag: str
    needs: str
    systems: tuple[str, ...]
    """Values of ``sys.platform`` where there are such."""
    is_here: Callable[[], bool]

    @property
    def remedy(self) -> str:
        """How to get an engine that uses it."""
        return (
            f'for {self.name} ({self.needs}): CMAKE_ARGS="-D{self.flag}=on" pip install --force-reinstall '
            "--no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
        )


ACCELERATORS = (
    Accelerator("Metal", "GGML_METAL", "a Mac; on by default there", ("darwin",), lambda: True),
    Accelerator(
        "CUDA",
        "GGML_CUDA",
        "an NVIDIA GPU and the CUDA toolkit",
        ("linux", "win32"),
        lambda: Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
    ),
    Accelerator(
        "Vulkan",
        "GGML_VULKAN",
        "a Vulkan driver, its headers and glslc",
        ("linux", "win32"),
        lambda: any(Path("/dev/dri").glob("renderD*")) or Path(r"C:\Windows\System32\vulkan-1.dll").exists(),
    ),
)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's layers go: ``gpu_layers`` of them to GPUs, the others to the CPU."""

    gpu_layers: int
    reason: str
    device: str = "cpu"
    """For an engine that runs the whole model on one device, which."""

    def __str__(self) -> str:
        alone = "CPU" if self.device == "cpu" else self.device
        where = f"{self.gpu_layers:,} layers on the GPU" if self.gpu_layers else alone
        return f"{where} ({self.reason})"


def place(wanted: str, found: Sequence[Device], *, n_layer: int, weight_bytes: int, cache_bytes: int) -> Placement:
    """Where to put a model of these sizes, by what was ``wanted`` (auto, cpu, gpu).

    ``auto`` takes a GPU if the whole model fits there; ``gpu`` puts as many layers there as fit, and is an OptionError
    with the remedy where the engine's build has no GPU or not one layer fits.
    """
    if wanted not in WANTED:
        raise OptionError(f"the device is {wanted!r}", remedy=f"known: {', '.join(WANTED)}")
    gpus = [device for device in found if device.kind == "gpu"]
    if wanted == "cpu":
        return Placement(0, "as asked")
    if not gpus:
        if wanted == "gpu":
            raise OptionError(
                "the installed llama.cpp has no GPU that it can use",
                remedy="build it for yours (edge-llama devices tells how), or leave the choice to it (auto)",
            )
        return Placement(0, "the engine's build has no GPU")
    free = sum(gpu.free_bytes for gpu in gpus) * 9 // 10  # the rest is for compute buffers and the screen
    layers = min(n_layer + 1, free * (n_layer + 1) // max(weight_bytes + cache_bytes, 1))  # the output counts as one
    room = f"{weight_bytes + cache_bytes:,} bytes, {free:,} usable on {', '.join(gpu.name for gpu in gpus)}"
    if layers > n_layer:
        return Placement(layers, f"all fit: {room}")
    if wanted == "auto":
        return Placement(0, f"the whole does not fit the GPU: {room}")
    if not layers:
        raise OptionError(f"not one layer fits the GPU: {room}", remedy="take --device cpu, or a smaller --n-ctx")
    return Placement(layers, f"as many as fit: {room}")


@cache
def cpu() -> Cpu:
    """The processor of this machine, as far as the system tells."""
    name, features = _linux_cpu() if sys.platform == "linux" else ("", ())
    return Cpu(name or platform.processor() or "unknown", platform.machine(), features)


def _linux_cpu() -> tuple[str, tuple[str, ...]]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return "", ()
    first: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    features = first.get("flags") or first.get("Features") or ""  # x86, ARM
    return first.get("model name", ""), tuple(sorted(features.split()))


def cpu_threads() -> int:
    """Physical cores that this process may use: more threads than those only wait for each other."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def free_threads() -> int:
    """:func:`cpu_threads` less the cores that others keep busy at this moment, at least 1.

    llama.cpp's threads spin while they wait for each other: on two cores with two other busy processes, generation
    with two threads falls from 92 tokens/s to 1, with one thread to 36.
    """
    others = _lasting() - 1  # this thread itself is running while it asks
    return max(1, cpu_threads() - max(0, others))


def free_now() -> int:
    """:func:`free_threads` by one look, which takes 20 microseconds and counts what is about to sleep too."""
    return max(1, cpu_threads() - max(0, _runnable() - 1))


def _lasting() -> int:
    """The least of 4 samples of :func:`_runnable`, 1 ms apart.

    One sample counts what is about to sleep, such as our own threads after the last answer: on an idle machine half
    of the answers got one thread of two. The least of 4 was right 80 of 80 times.
    """
    least = _runnable()
    for _ in range(3):
        if least <= 1:  # this thread alone
            break
        time.sleep(0.001)
        least = min(least, _runnable())
    return least


def _runnable() -> int:
    """Threads that are running or ready to, machine-wide, now (Linux); elsewhere the load of the last minute."""
    try:
        return int(Path("/proc/loadavg").read_text("ascii").split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return round(psutil.getloadavg()[0]) + 1


def available_memory() -> int:
    """Bytes that can be had without swapping; a container's limit counts."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text("ascii"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))

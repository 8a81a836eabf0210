"""GPUs for llama.cpp: the kinds that it can be built for, and how many of a model's layers go there."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_llama.backends.base import Placement
from edge_llama.errors import OptionError
from edge_llama.host.devices import Device

WANTED = ("auto", "cpu", "gpu")


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


def missing(found: Sequence[Device]) -> tuple[str, ...]:
    """How to get the kinds of GPU that a build with the devices ``found`` can't use; those whose driver is here first.

    Empty where it can use one.
    """
    if any(device.kind == "gpu" for device in found):
        return ()
    possible = [kind for kind in ACCELERATORS if sys.platform in kind.systems]
    return tuple(
        f"{'its driver is here: ' if kind.is_here() else ''}{kind.remedy}"
        for kind in sorted(possible, key=lambda kind: not kind.is_here())
    )


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

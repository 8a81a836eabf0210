"""Machines to plan for: this one, one of a kind that people have, or one of given sizes.

What a kind has is what its makers publish, less what the system keeps for itself; speeds there are bounds that nothing
can be faster than. The figures: dual-channel DDR5-5600 (89.6 GB/s), LPDDR5X-8533 on 64 bits (68 GB/s), Apple's M4 Pro
(273 GB/s; Metal recommends three quarters of the memory as working set), NVIDIA's H100 SXM (3,350 GB/s, 989 TFLOP/s in
bf16) and RTX 4090 (1,008 GB/s, 165 TFLOP/s).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import psutil

from edge_llama.backends.registry import own_engines
from edge_llama.errors import OptionError
from edge_llama.host import devices

_APART = ("cuda", "rocm", "vulkan", "sycl", "gpu")
HERE = "here"
_GB = 10**9


@dataclass(frozen=True, slots=True)
class Machine:
    """What a model gets: ``memory`` bytes, read with ``bandwidth`` bytes/s, multiplied with ``flops`` operations/s.

    0 where it is not known. ``device`` is where the model runs there: what people call it.

    Examples:
        >>> from edge_llama.fit import Machine, fit
        >>> board = Machine("a board", memory=2 * 10**9, total=4 * 10**9, bandwidth=10e9, flops=50e9)
        >>> fit(machine=board).speed.is_measured
        False
    """

    name: str
    memory: int
    total: int
    device: str = "cpu"
    bandwidth: float = 0.0
    flops: float = 0.0

    @property
    def is_apart(self) -> bool:
        """Whether the device's memory is not the host's."""
        return self.device in _APART

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, whose speed can be measured."""
        return self.name == HERE


KINDS: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine("phone-12gb", 7 * _GB, 12 * _GB, bandwidth=68e9, flops=1e12),
        Machine("laptop-16gb", 12 * _GB, 16 * _GB, bandwidth=89.6e9, flops=1.5e12),
        Machine("mac-64gb", 48 * _GB, 64 * _GB, "metal", 273e9, 17e12),
        Machine("gpu-24gb", 22 * _GB, 24 * _GB, "cuda", 1008e9, 165e12),
        Machine("gpu-80gb", 76 * _GB, 80 * _GB, "cuda", 3350e9, 989e12),
    )
}


def machine(name: str = HERE, *, memory: int | None = None, bandwidth: float | None = None) -> Machine:
    """The machine of this name, with another memory (bytes) or bandwidth (bytes/s) if they are given.

    OptionError for a name that nobody knows.
    """
    found = this() if name == HERE else KINDS.get(name)
    if found is None:
        raise OptionError(
            f"machine {name!r:.100}: unknown",
            remedy=f"known: {HERE}, {', '.join(KINDS)}; or give the size (--memory 12G)",
        )
    if memory is not None:
        found = replace(found, name=HERE if found.is_here else f"{found.name}, {memory / _GB:g} GB", memory=memory)
    return found if bandwidth is None else replace(found, bandwidth=bandwidth)


def this() -> Machine:
    """The machine that this runs on, with the memory that is free now."""
    return Machine(HERE, devices.available_memory(), int(psutil.virtual_memory().total))


def on_device(found: Machine, kind: str, memory: int | None) -> Machine:
    """``found`` with a model on a device of this ``kind``, of whose memory it gets so much (None: what is free there).

    A device that is not here is planned for by its kind. OptionError where its memory is not known then.
    """
    placed = replace(found, device=kind)
    if memory is not None or not found.is_here or not placed.is_apart:
        return placed
    there = [
        device.free_bytes
        for engine in own_engines()
        for device in engine.state(again=False).devices
        if device.kind == "gpu" and kind in (device.option.partition(":")[0], "gpu")
    ]
    if not there:
        raise OptionError(
            f"device {kind}: is not here, and what memory it has is not known",
            remedy=f"say how much it is (--memory 24G), or take a machine that has one (--on {'|'.join(KINDS)})",
        )
    return replace(placed, memory=max(there))

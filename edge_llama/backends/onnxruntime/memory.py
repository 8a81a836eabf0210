"""Where a session's keys and values lie: in the memory of the device that computes with them, so none is copied."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.onnxruntime.providers import CPU, runtime, why
from edge_llama.errors import EngineError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Place:
    """Memory as ONNX Runtime names it: of the ``device`` (cpu or gpu) of a PCI ``vendor``, by its number."""

    device: str = "cpu"
    number: int = 0
    vendor: int = -1

    @property
    def is_cpu(self) -> bool:
        """Whether numpy's arrays lie there."""
        return self.device == "cpu"


def place_of(session: Any, names: Collection[str]) -> Place:
    """Where ``session`` takes and gives the inputs and outputs of these ``names``.

    The CPU, if that is not one place for all: a provider that left some of their nodes to the CPU copies in any case.
    """
    nodes = (*session.get_inputs(), *session.get_outputs())
    infos = (*session.get_input_memory_infos(), *session.get_output_memory_infos())
    places = {place(info) for node, info in zip(nodes, infos, strict=True) if node.name in names}
    return places.pop() if len(places) == 1 else Place()


def place(info: Any) -> Place:
    """The place of an ``OrtMemoryInfo``, which is as the provider described it.

    The CPU's own memory is called Cpu by all (OpenVINO, Core ML, QNN and MLX take and give there), and what a device
    and the CPU both reach is no other.
    """
    shared = runtime().OrtDeviceMemoryType.HOST_ACCESSIBLE
    if info.name == "Cpu" or info.device_mem_type == shared:
        return Place()
    return Place("gpu", info.device_id, info.device_vendor_id)


class DeviceMemory:
    """Tensors of float32 in ``place``, from the allocator of ``session``."""

    def __init__(self, session: Any, place: Place) -> None:
        self._session, self._place = session, place
        # Who lists its devices copies for everyone; the others are known to tensors themselves.
        self._copies = any(device and device.ep_name != CPU for device in session.get_input_epdevices())

    def empty(self, shape: tuple[int, ...]) -> Any:
        """An OrtValue of ``shape``, with anything in it. EngineError if the memory does not suffice."""
        where = (self._place.device, self._place.number, self._place.vendor)
        try:
            return self._session.create_ortvalue_from_shape_and_type(shape, np.float32, *where)
        except Exception as error:  # its errors share no class but this
            nbytes, name = 4 * np.prod(shape, dtype=np.int64), f"{self._place.device} {self._place.number}"
            raise EngineError(
                f"{nbytes:,} bytes of KV cache can't be had in the memory of {name}: {why(error)}",
                remedy="give a smaller n_ctx, or take another device (--device cpu)",
            ) from error

    def filled(self, values: Floats) -> Any:
        """An OrtValue that holds ``values``."""
        value = self.empty(values.shape)
        self.write(value, values)
        return value

    def write(self, value: Any, values: Floats) -> None:
        """Have ``values``, of the same shape and contiguous, in ``value``."""
        if not values.size:
            return
        if self._copies:
            runtime().copy_tensors([runtime().OrtValue.ortvalue_from_numpy(values)], [value])
        else:
            value.update_inplace(values)

    def read(self, value: Any) -> Floats:
        """A copy."""
        values = np.empty(tuple(value.shape()), np.float32)
        if not values.size:
            return values
        if self._copies:
            runtime().copy_tensors([value], [runtime().OrtValue.ortvalue_from_numpy(values)])
        else:
            values[:] = value.numpy()
        return values

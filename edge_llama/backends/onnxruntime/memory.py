"""Where a session's keys and values lie: in the memory of the device that computes with them, so none is copied.

ONNX Runtime copies what is bound from other memory: an input when it is bound, an output after the run.
"""

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
    """Memory by ONNX Runtime's ``name`` for it, of the device ``number`` of a PCI ``vendor``."""

    name: str
    number: int = 0
    vendor: int = 0
    is_shared: bool = False
    """Whether the CPU reaches it too."""

    @classmethod
    def of(cls, info: Any) -> "Place":
        """What an ``OrtMemoryInfo`` says."""
        is_shared = info.device_mem_type == runtime().OrtDeviceMemoryType.HOST_ACCESSIBLE
        return cls(info.name, info.device_id, info.device_vendor_id, is_shared)


class DeviceMemory:
    """Tensors of float32 where a provider computes."""

    def __init__(self, info: Any, *, is_listed: bool) -> None:
        """In the memory that ``info`` describes; ``is_listed``: its provider lists its devices, with allocators."""
        self.place = Place.of(info)
        # The others' allocators are those of ONNX Runtime's own tensors, by the name and vendor of a device.
        self._where: dict[str, Any] = {"device_type": "gpu", "device_id": self.place.number}
        self._where["vendor_id"] = self.place.vendor
        if is_listed:
            self._where = {"memory_info": info}
        self._is_numpy = self.place.is_shared or not is_listed

    def empty(self, shape: tuple[int, ...]) -> Any:
        """An OrtValue of ``shape``, with anything in it. EngineError if the memory does not suffice."""
        try:
            return runtime().OrtValue.ortvalue_from_shape_and_type(shape, np.float32, **self._where)
        except Exception as error:  # its errors share no class but this
            nbytes = 4 * np.prod(shape, dtype=np.int64)
            raise EngineError(
                f"{nbytes:,} bytes of KV cache can't be had in {self.place.name}: {why(error)}",
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
        if self._is_numpy:
            value.update_inplace(values)
        else:
            runtime().copy_tensors([runtime().OrtValue.ortvalue_from_numpy(values)], [value])

    def read(self, value: Any) -> Floats:
        """What is in ``value``, or a view of it."""
        if self._is_numpy:
            found: Floats = value.numpy()
            return found
        values = np.empty(tuple(value.shape()), np.float32)
        if values.size:
            runtime().copy_tensors([value], [runtime().OrtValue.ortvalue_from_numpy(values)])
        return values


def memory_of(session: Any, names: Collection[str]) -> DeviceMemory | None:
    """The memory in which ``session`` takes and gives the inputs and outputs of these ``names``; None: numpy's.

    None also if that is not one for all: a provider that left some of their nodes to the CPU copies in any case.
    """
    nodes = (*session.get_inputs(), *session.get_outputs())
    infos = (*session.get_input_memory_infos(), *session.get_output_memory_infos())
    wanted = {Place.of(info): info for node, info in zip(nodes, infos, strict=True) if node.name in names}
    if len(wanted) != 1:
        return None
    (info,) = wanted.values()
    is_listed = any(device and device.ep_name != CPU for device in session.get_input_epdevices())
    return DeviceMemory(info, is_listed=is_listed) if is_apart(Place.of(info), is_listed=is_listed) else None


def copies_inputs(session: Any) -> bool:
    """Whether what is bound as an input is copied then: what is written into it later is not seen."""
    return any(Place.of(info).name != "Cpu" for info in session.get_input_memory_infos())


def is_apart(place: Place, *, is_listed: bool) -> bool:
    """Whether what lies in ``place`` must be made there: numpy's arrays would be copied.

    Cpu is what providers take that have no memory of their own: QNN, Core ML, MLX.
    """
    return place.name != "Cpu" and (is_listed or not place.is_shared)

"""The devices that llama.cpp's build can use, as ggml lists them."""

import ctypes
from typing import Any

from edge_llama.host.devices import Device

_KINDS = {0: "cpu", 1: "gpu", 2: "gpu", 3: "accelerator"}  # ggml_backend_dev_type; 2 is a GPU that shares the memory


def engine_devices() -> list[Device]:
    """Every device of the engine, in its own order; a meta device that only groups others is left out."""
    from llama_cpp._ggml import libggml as lib  # noqa: PLC0415 - loads native code

    get = lib.ggml_backend_dev_get
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    pointers = (get(index) for index in range(lib.ggml_backend_dev_count()))
    return [device for pointer in pointers if (device := _device(lib, pointer))]


def _device(lib: Any, pointer: int) -> Device | None:
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    kind = _KINDS.get(lib.ggml_backend_dev_type(pointer))
    if kind is None:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    memory = lib.ggml_backend_dev_memory
    memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]
    memory(pointer, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name=_text(lib.ggml_backend_dev_name, pointer),
        kind=kind,
        description=_text(lib.ggml_backend_dev_description, pointer),
        free_bytes=free.value,
        total_bytes=total.value,
    )


def _text(function: Any, pointer: int) -> str:
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    return (function(pointer) or b"").decode("utf-8", "replace")

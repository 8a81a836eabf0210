"""The devices that llama.cpp's build can use, as ggml lists them.

``python -m edge_llama.backends.llama_cpp.devices`` is what a child process does.
"""

import ctypes
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

from edge_llama.backends import crash_probe
from edge_llama.host.devices import Device

_KINDS = {0: "cpu", 1: "gpu", 2: "gpu", 3: "accelerator"}  # ggml_backend_dev_type
_INTEGRATED = 2
"""A GPU that shares the processor's memory."""


def engine_devices() -> list[Device]:
    """Every device of the engine, in its own order; a meta device that only groups others is left out."""
    return [device for pointer in _pointers() if (device := _device(pointer))]


def pointer_of(name: str) -> int | None:
    """The address of ggml's device ``name``; None if there is none."""
    return next((pointer for pointer in _pointers() if ggml_text("ggml_backend_dev_name", pointer) == name), None)


def ggml_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml, which returns ``result``. Windows looks for it in the very library that has it."""
    for library in _libraries():
        if function := getattr(library, name, None):
            function.restype, function.argtypes = result, arguments
            return function
    raise AttributeError(name)


def ggml_text(name: str, pointer: int) -> str:
    """What a function of ggml says of the object at ``pointer``."""
    return (ggml_function(name, ctypes.c_char_p, ctypes.c_void_p)(pointer) or b"").decode("utf-8", "replace")


@cache
def _libraries() -> tuple[Any, ...]:
    from llama_cpp import _ctypes_extensions, _ggml  # noqa: PLC0415 - loads native code

    return _ggml.libggml, _ctypes_extensions.load_shared_library("ggml-base", _ggml.libggml_base_path)


def _pointers() -> Iterator[int]:
    get = ggml_function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    for index in range(ggml_function("ggml_backend_dev_count", ctypes.c_size_t)()):
        yield get(index)


def _device(pointer: int) -> Device | None:
    type_ = ggml_function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)(pointer)
    if type_ not in _KINDS:
        return None
    size = ctypes.POINTER(ctypes.c_size_t)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml_function("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)(
        pointer, ctypes.byref(free), ctypes.byref(total)
    )
    backend = ggml_function("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)(pointer)
    return Device(
        name=ggml_text("ggml_backend_dev_name", pointer),
        kind=_KINDS[type_],
        description=ggml_text("ggml_backend_dev_description", pointer),
        free_bytes=free.value,
        total_bytes=total.value,
        backend=ggml_text("ggml_backend_reg_name", backend),
        is_integrated=type_ == _INTEGRATED,
    )


def main() -> None:
    """The child: tell the devices that there are now."""
    crash_probe.begin()
    crash_probe.end(json.dumps({"devices": [asdict(device) for device in engine_devices()]}))


if __name__ == "__main__":
    main()

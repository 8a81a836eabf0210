"""What a compiled context says of itself, read by Qualcomm's own library: for which chip, and how many graphs.

The layouts are those of QnnSystemInterface.h and QnnSystemContext.h (QNN 2.51: version 3 of a binary's description).
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

_u32, _u64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p


class _Version(ctypes.Structure):
    _fields_ = (("major", _u32), ("minor", _u32), ("patch", _u32))


class _Interface(ctypes.Structure):
    _fields_ = (
        *(("system", _u32), ("name", ctypes.c_char_p), ("version", _Version)),
        *(("create", _pointer), ("get_binary_info", _pointer)),
    )


class _Info(ctypes.Structure):
    _fields_ = (
        *(("version", _u32), ("padding", _u32), ("backend", _u32), ("build", ctypes.c_char_p), ("core", _Version)),
        *(("backend_version", _Version), ("soc_version", ctypes.c_char_p), ("blob_version", _Version)),
        *(("blob_bytes", _u64), ("n_tensors", _u32), ("tensors", _pointer), ("n_graphs", _u32), ("graphs", _pointer)),
        *(("metadata", _pointer), ("n_details", _u32), ("details", _pointer), ("soc_model", _u32)),
    )


@dataclass(frozen=True)
class Binary:
    soc_model: int
    graphs: int


def read_binary(path: Path) -> Binary:
    """What the binary at ``path`` says."""
    import onnxruntime_qnn  # noqa: PLC0415 - not everywhere

    library = ctypes.CDLL(str(Path(onnxruntime_qnn.__file__).parent / "libQnnSystem.so"))
    found, count = ctypes.POINTER(ctypes.POINTER(_Interface))(), _u32()
    assert library.QnnSystemInterface_getProviders(ctypes.byref(found), ctypes.byref(count)) == 0
    interface, context = found[0].contents, _pointer()
    create = ctypes.CFUNCTYPE(_u64, ctypes.POINTER(_pointer))(interface.create)
    assert create(ctypes.byref(context)) == 0
    get = ctypes.CFUNCTYPE(_u64, _pointer, _pointer, _u64, ctypes.POINTER(_pointer), ctypes.POINTER(_u64))(
        interface.get_binary_info
    )
    raw, info, size = path.read_bytes(), _pointer(), _u64()
    buffer = ctypes.create_string_buffer(raw, len(raw))
    assert get(context, buffer, len(raw), ctypes.byref(info), ctypes.byref(size)) == 0
    told = ctypes.cast(info, ctypes.POINTER(_Info)).contents
    assert told.version == 3
    return Binary(told.soc_model, told.n_graphs)

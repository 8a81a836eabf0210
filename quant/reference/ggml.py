"""ggml's own kernels, reached by ctypes: what llama.cpp's quantizer writes, these write.

Only ``libggml-base`` of the installed llama-cpp-python is loaded. Calls release the GIL, so threads scale. Without
llama-cpp-python the functions raise EngineError: ask :func:`is_installed` first.
"""

import ctypes
import sys
from functools import cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import EngineError
from edge_llama.files.formats import F32, Format
from edge_llama.host.llama_library import library_folder

_LIBRARIES = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h (ggml 0.25)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
    )


CODEBOOKS = frozenset(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"))
"""Formats whose values are points of a codebook, which ggml searches: that takes long.

Where sums overflow it finds no point, and ends the process (``GGML_ASSERT`` in ``ggml-quants.c``).
"""
_REQUIRED = frozenset(("iq1_s", "iq2_xxs", "iq2_xs"))
"""``ggml_quantize_requires_imatrix``: without importance it ends the process."""
_LARGEST, LARGEST_IMPORTANCE = 2.0**25, 2.0**60
"""Up to these no sum of a codebook's search overflows: of 32 products of importance, two weights and a level."""


def requires_importance(format_: Format) -> bool:
    """Whether ggml's kernel of ``format_`` can't do without importance."""
    return format_.name in _REQUIRED


def is_installed() -> bool:
    """Whether llama-cpp-python is here; nothing is loaded."""
    return find_spec("llama_cpp") is not None


def require(need: str) -> None:
    """EngineError unless llama-cpp-python is here; ``need`` says in a sentence what takes it."""
    if not is_installed():
        raise EngineError(f"{need}, and llama-cpp-python is not installed", remedy="pip install llama-cpp-python")


@cache
def _library() -> ctypes.CDLL:
    folder = library_folder()
    if folder is None:
        raise EngineError("llama-cpp-python is not installed", remedy="pip install llama-cpp-python")
    path = folder / _LIBRARIES.get(sys.platform, "libggml-base.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"{path}: cannot be loaded: {error}", remedy="reinstall llama-cpp-python") from error
    pointer, int64 = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, int64, int64, int64, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    return library


def quantize(
    rows: NDArray[np.float32], format_: Format, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Rows of float32, C-contiguous ``(n_rows, columns)``, as ``(n_rows, row_bytes)`` bytes of ``format_``.

    ``importance``, ``(columns,)`` float32, weighs the columns' errors in formats that search for their scales.
    Raises ValueError for what ggml would end the process on.
    """
    if format_.name in CODEBOOKS:
        _check_searched(rows, format_, importance)
    n_rows, columns = rows.shape
    out = np.empty((n_rows, format_.row_bytes(columns)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    _library().ggml_quantize_chunk(format_.ggml_id, rows.ctypes.data, out.ctypes.data, 0, n_rows, columns, weights)
    return out


def _check_searched(rows: NDArray[np.float32], format_: Format, importance: NDArray[np.float32] | None) -> None:
    """ValueError for weights, or importance, by which no point of a codebook would be found."""
    if importance is None and requires_importance(format_):
        raise ValueError(f"{format_} can't be quantized to without importance")
    largest = float(np.abs(rows).max(initial=0.0))
    if not largest <= _LARGEST:  # or NaN
        raise ValueError(f"a weight of {largest:g} is too large for {format_}")
    if importance is not None and not (importance.min() >= 0 and importance.max() <= LARGEST_IMPORTANCE):
        raise ValueError(f"an importance from {importance.min():g} to {importance.max():g} is none for {format_}")


def can_dequantize(format_: Format) -> bool:
    """Whether :func:`dequantize` knows ``format_``."""
    return format_ is F32 or bool(_library().ggml_get_type_traits(format_.ggml_id).contents.to_float)


def dequantize(raw: NDArray[np.uint8], format_: Format) -> NDArray[np.float32]:
    """``(n_rows, row_bytes)`` bytes of ``format_``, C-contiguous, as ``(n_rows, columns)`` float32."""
    n_rows, row_bytes = raw.shape
    columns = row_bytes // format_.block_bytes * format_.block_size
    if format_ is F32:
        return raw.view(np.float32)
    traits = _library().ggml_get_type_traits(format_.ggml_id).contents
    if not traits.to_float:
        raise ValueError(f"ggml cannot read {format_}")
    out = np.empty((n_rows, columns), np.float32)
    traits.to_float(raw.ctypes.data, out.ctypes.data, n_rows * columns)
    return out

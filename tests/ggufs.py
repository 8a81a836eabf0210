"""GGUF files in any number format, made from others with ggml's own kernels."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import FORMATS, Format
from edge_llama.files.gguf import TensorInfo, Value, encode_header, read_header
from quant.reference import ggml

READABLE = tuple(name for name, format_ in FORMATS.items() if ggml.can_dequantize(format_))
"""Names of the formats that ggml dequantizes."""


def read_tensor(path: Path, info: TensorInfo) -> NDArray[np.uint8]:
    raw = np.fromfile(path, np.uint8, info.nbytes, offset=info.offset)
    return raw.reshape(-1, info.format.row_bytes(info.shape[-1]))


def rewritten(
    source: Path,
    output: Path,
    *,
    fields: Mapping[str, Value | None] | None = None,
    formats: Callable[[TensorInfo], Format] = lambda info: info.format,
    data: Callable[[TensorInfo, NDArray[np.uint8]], NDArray[np.uint8]] = lambda _info, raw: raw,
    names: Callable[[TensorInfo], bool] = lambda _info: True,
    called: Callable[[str], str] = lambda name: name,
) -> Path:
    """``source`` with other metadata (None removes a key), number formats, bytes and names; fewer tensors."""
    header = read_header(source)
    merged = {**header.fields, **(fields or {})}
    kept = {key: value for key, value in merged.items() if value is not None}
    infos = [info for info in header.tensors if names(info)]
    blocks = [quantized(data(info, read_tensor(source, info)), info.format, formats(info)) for info in infos]
    head, _ = encode_header(kept, [(called(info.name), info.shape, formats(info)) for info in infos])
    with output.open("wb") as file:
        file.write(head)
        for block in blocks:
            file.write(block.tobytes() + bytes(-block.nbytes % 32))
    return output


def quantized(raw: NDArray[np.uint8], old: Format, new: Format) -> NDArray[np.uint8]:
    """Rows in another format, with an importance matrix of ones for the formats that ask for one."""
    if old is new:
        return raw
    rows = np.ascontiguousarray(ggml.dequantize(np.ascontiguousarray(raw), old))
    out = np.empty((rows.shape[0], new.row_bytes(rows.shape[1])), np.uint8)
    ones = np.ones(rows.shape[1], np.float32)
    ggml._library().ggml_quantize_chunk(
        new.ggml_id, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, ones.ctypes.data
    )
    return out


def all_in(source: Path, output: Path, name: str) -> Path:
    """``source`` with every matrix in the format ``name``."""
    return rewritten(source, output, formats=lambda info: FORMATS[name] if len(info.shape) > 1 else info.format)


def weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor's numbers, dequantized."""
    return {
        info.name: ggml.dequantize(read_tensor(path, info), info.format).reshape(info.shape)
        for info in read_header(path).tensors
    }

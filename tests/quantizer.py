"""llama.cpp's own quantizer, in this process: the reference for whole files."""

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path

import llama_cpp
import numpy as np

from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import Header, Value

_STRICT = ("architecture", "type", "file_type", "quantization_version", "alignment", "sampling.")


def quantized_by_llama_cpp(
    source: Path, output: Path, ftype: int, tensor_types: Mapping[str, str] | None = None
) -> Path:
    """What ``llama-quantize`` makes of ``source``; ``tensor_types`` (role -> format) are its ``--tensor-type``."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = ftype, True
    overrides = [(pattern(role).encode(), FORMATS[name].ggml_id) for role, name in (tensor_types or {}).items()]
    table = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))(*overrides, (None, 0))
    params.tt_overrides = table if overrides else None
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(params)) == 0
    return output


def pattern(role: str) -> str:
    """Names of that role's tensors, experts included: ``output`` is not ``blk.0.attn_output``."""
    return rf"(^|\.){role}(_exps|_shexp)?\.weight$"


def differences(ours: Header, theirs: Header) -> Iterator[str]:
    """What differs between two files, in words: metadata but for the model's names and our own keys, tables, bytes."""
    yield from differing_fields(ours, theirs)
    if table(ours) != table(theirs):
        yield "tensor tables"
    elif data(ours) != data(theirs):
        yield "bytes"


def differing_fields(ours: Header, theirs: Header) -> Iterator[str]:
    for key in sorted(ours.fields.keys() | theirs.fields.keys()):
        if not is_free(key) and not same(ours.fields.get(key), theirs.fields.get(key)):
            yield f"{key} is {ours.fields.get(key)!s:.60}, theirs {theirs.fields.get(key)!s:.60}"


def is_free(key: str) -> bool:
    """Keys that may differ: the model's names, and our own."""
    space, _, rest = key.partition(".")
    return space == "edge_llama" or (space == "general" and not rest.startswith(_STRICT))


def same(ours: Value | None, theirs: Value | None) -> bool:
    if ours is None or theirs is None or ours.type != theirs.type or ours.item != theirs.item:
        return False
    return np.array_equal(ours.data, theirs.data) if ours.item is not None else bool(ours.data == theirs.data)


def table(header: Header) -> list[tuple[object, ...]]:
    return [(t.name, t.shape, t.format.name, t.offset - header.data_offset) for t in header.tensors]


def data(header: Header) -> bytes:
    return header.path.read_bytes()[header.data_offset :]

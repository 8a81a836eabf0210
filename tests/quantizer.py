"""llama.cpp's own quantizer, in this process: the reference for whole files."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import llama_cpp

from edge_llama.formats import FORMATS


def quantized_by_llama_cpp(
    source: Path, output: Path, ftype: int, tensor_types: Mapping[str, str] | None = None
) -> Path:
    """What ``llama-quantize`` makes of ``source``; ``tensor_types`` (role -> format) are its ``--tensor-type``."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    overrides = [(pattern(role).encode(), FORMATS[name].ggml_id) for role, name in (tensor_types or {}).items()]
    table = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))(*overrides, (None, 0))
    params.tt_overrides = table if overrides else None
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(params)) == 0
    return output


def pattern(role: str) -> str:
    """Names of that role's tensors, experts included: ``output`` is not ``blk.0.attn_output``."""
    return rf"(^|\.){role}(_exps|_shexp)?\.weight$"

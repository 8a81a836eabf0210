"""llama.cpp's own quantizer, in this process: the reference for whole files."""

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import Header, Value
from quant.importance import Importance, Sums
from quant.recipe import RECIPES, WRITTEN, needs_importance

_STRICT = ("architecture", "type", "file_type", "quantization_version", "alignment", "sampling.")
WITHOUT_IMPORTANCE = [name for name, recipe in RECIPES.items() if not recipe.needs_importance]
"""Recipes that need no importance matrix."""
FORMATS_WITHOUT_IMPORTANCE = [
    name for name in WRITTEN if not needs_importance(RECIPES["q8_0"], "attn_q", FORMATS[name])
]


def quantized_by_llama_cpp(
    source: Path,
    output: Path,
    ftype: int,
    tensor_types: Mapping[str, str] | None = None,
    importance: Importance | None = None,
    patterns: Mapping[str, str] | None = None,
) -> Path:
    """What ``llama-quantize`` makes of ``source``; ``tensor_types`` (role -> format) are its ``--tensor-type``.

    ``patterns`` are the same as it takes them, ``importance`` its ``--imatrix``. AssertionError where it refuses.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = ftype, True
    asked = {pattern(role): name for role, name in (tensor_types or {}).items()} | dict(patterns or {})
    overrides = [(expression.encode(), FORMATS[name].ggml_id) for expression, name in asked.items()]
    table = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))(*overrides, (None, 0))
    params.tt_overrides = table if overrides else None
    if importance is not None:
        values = {name: np.ascontiguousarray(importance.weights(name)) for name in importance.entries}
        weights, keys = _matrix(values), _keys(importance)
        params.imatrix, params.kv_overrides = weights, keys
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(params)) == 0
    return output


def _matrix(values: Mapping[str, NDArray[np.float32]]) -> Any:
    """``llama_model_imatrix_data[]``; ``values`` must outlive it."""
    pointer = ctypes.POINTER(ctypes.c_float)
    rows = [(name.encode(), each.ctypes.data_as(pointer), each.size) for name, each in values.items()]
    return (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows, (None, None, 0))


def _keys(importance: Importance) -> Any:
    """What the program ``llama-quantize`` adds to a file's metadata: ``tools/quantize/quantize.cpp``."""
    texts = {"file": str(importance.path), **({"dataset": importance.datasets[0]} if importance.datasets else {})}
    numbers = {"entries_count": len(importance.entries)}
    numbers |= {"chunks_count": importance.n_chunks} if importance.n_chunks else {}
    table = (llama_cpp.llama_model_kv_override * (len(texts) + len(numbers) + 1))()
    for row, (key, value) in zip(table, (texts | numbers).items(), strict=False):  # type: ignore[attr-defined]
        row.key = f"quantize.imatrix.{key}".encode()
        if isinstance(value, str):
            row.tag, row.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()[:127]
        else:
            row.tag, row.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
    return table


def drawn_importance(
    shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator, *, but: tuple[str, ...] = ("token_embd.weight",)
) -> Importance:
    """Values for every matrix, as activations have them: few columns of much, experts of few tokens or none."""
    entries = {}
    for name, shape in shapes.items():
        if len(shape) > 1 and name not in but and not name.endswith(("norm.weight", "ffn_gate_inp.weight")):
            n_experts = int(np.prod(shape[:-2]))
            counts = rng.integers(1, 4096, n_experts) if n_experts > 1 else np.array([4096])
            counts[1:][rng.random(n_experts - 1) < 0.1] = 0
            means = rng.lognormal(-2, 2, (n_experts, shape[-1])) * (rng.random(shape[-1]) > 0.02)
            entries[name] = Sums((means * counts[:, None]).astype(np.float32), counts.astype(np.int64))
    return Importance(entries, 8, 512, ("calibration.txt",))


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

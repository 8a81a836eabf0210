"""A Hugging Face folder: config.json, model.safetensors, tokenizer files, generation_config.json."""

import json
from typing import Any

from converters.architectures import for_config
from converters.checkpoint import Checkpoint
from converters.targets.layout import Entry, Layout
from converters.tokenizer_files import write_files
from edge_llama.formats import FORMATS, Format

QUANTS = ("f32", "f16", "bf16")
DEFAULT_QUANT = "bf16"
_DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


def lay_out(checkpoint: Checkpoint, quant: str) -> Layout:
    """The folder of ``checkpoint`` with weights in ``quant``, which transformers loads."""
    for_config(checkpoint).check_for_folder(checkpoint)
    format_ = FORMATS[quant]
    entries = tuple(Entry(tensor, format_) for _, tensor in sorted(checkpoint.tensors.items()))
    special = checkpoint.vocabulary.special
    ids = {f"{kind}_token_id": special[kind] for kind in ("bos", "eos", "pad") if kind in special}
    config = {**checkpoint.config, **ids, "dtype": _DTYPES[quant][1], "torch_dtype": _DTYPES[quant][1]}
    files = {
        "config.json": config,
        "generation_config.json": {**checkpoint.generation, **ids},
        **write_files(checkpoint.vocabulary, checkpoint.path),
    }
    return Layout(
        header=_header(entries, format_),
        entries=entries,
        stream="model.safetensors",
        files={name: _json(content) for name, content in files.items()},
    )


def _header(entries: tuple[Entry, ...], format_: Format) -> bytes:
    """The length, then JSON padded with spaces to a multiple of 8 bytes, as the reference writes it."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        table[entry.tensor.name] = {
            "dtype": _DTYPES[format_.name][0],
            "shape": list(entry.tensor.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode()

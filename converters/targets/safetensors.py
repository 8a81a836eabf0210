"""A Hugging Face folder: config.json, model.safetensors, tokenizer files, generation_config.json."""

import json
from typing import Any

from converters.architectures import for_config
from converters.checkpoint import Checkpoint
from converters.options import Options
from converters.targets.files import encoded, generation, special_ids
from converters.targets.layout import Entry, Layout, Part
from converters.tokenizers.writer import write_files
from edge_llama.errors import OptionError
from edge_llama.files.formats import FORMATS, Format

QUANTS = ("f32", "f16", "bf16")
DEFAULT_QUANT = "bf16"
_DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


def lay_out(checkpoint: Checkpoint, _name: str, options: Options) -> Layout:
    """The folder of ``checkpoint``, which transformers loads."""
    _check(options)
    tensors = for_config(checkpoint).folder_tensors(checkpoint)
    quant = options.quant or DEFAULT_QUANT
    format_ = FORMATS[quant]
    entries = tuple(Entry(tensor, format_) for _, tensor in sorted(tensors.items()))
    files = {
        "config.json": _config(checkpoint, _DTYPES[quant][1]),
        "generation_config.json": generation(checkpoint),
        **write_files(checkpoint.vocabulary, checkpoint.path),
        **checkpoint.provenance.notices,
    }
    part = Part("model.safetensors", _header(entries, format_), entries)
    small = {name: encoded(content, name, checkpoint) for name, content in files.items()}
    return Layout((part,), small, is_folder=True)


def _check(options: Options) -> None:
    for role, format_name in options.tensor_types.items():
        raise OptionError(
            f"--tensor-type {role}={format_name}: not for safetensors, whose weights have one format",
            remedy="leave it out, or write a .gguf file",
        )
    if options.max_shard_bytes is not None:
        raise OptionError("--max-shard-size: not for safetensors", remedy="leave it out, or write a .gguf file")


def _config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """config.json: the source's, with the ids of special tokens where it has none, and the dtype of this folder."""
    return {**special_ids(checkpoint.vocabulary), **checkpoint.config, "dtype": dtype, "torch_dtype": dtype}


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

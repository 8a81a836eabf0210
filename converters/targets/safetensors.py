"""A Hugging Face folder: config.json, model.safetensors, tokenizer files, generation_config.json."""

import json
from typing import Any

from converters.architectures import for_config
from converters.architectures.llama import hyperparameters
from converters.checkpoint import Checkpoint
from converters.options import Options
from converters.targets.layout import Entry, Layout, Part
from converters.tokenizer_files import write_files
from edge_llama.errors import OptionError
from edge_llama.formats import FORMATS, Format

QUANTS = ("f32", "f16", "bf16")
DEFAULT_QUANT = "bf16"
_DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


def lay_out(checkpoint: Checkpoint, quant: str, _name: str, options: Options) -> Layout:
    """The folder of ``checkpoint`` with weights in ``quant``, which transformers loads."""
    for role, format_name in options.tensor_types.items():
        raise OptionError(
            f"--tensor-type {role}={format_name}: not for safetensors, whose weights have one format",
            remedy="leave it out, or write a .gguf file",
        )
    if options.max_shard_bytes is not None:
        raise OptionError("--max-shard-size: not for safetensors", remedy="leave it out, or write a .gguf file")
    for_config(checkpoint)
    hyperparameters(checkpoint.config, checkpoint.path)
    format_ = FORMATS[quant]
    entries = tuple(Entry(tensor, format_) for _, tensor in sorted(checkpoint.tensors.items()))
    special = checkpoint.vocabulary.special
    ids = {f"{kind}_token_id": special[kind] for kind in ("bos", "eos", "pad") if kind in special}
    ends = list(dict.fromkeys(special[kind] for kind in ("eos", "eom", "eot") if kind in special))
    config = {**checkpoint.config, **ids, "dtype": _DTYPES[quant][1], "torch_dtype": _DTYPES[quant][1]}
    files = {
        "config.json": config,
        "generation_config.json": {**checkpoint.generation, **ids} | ({"eos_token_id": ends} if len(ends) > 1 else {}),
        **write_files(checkpoint.vocabulary, checkpoint.path),
    }
    part = Part("model.safetensors", _header(entries, format_), entries)
    return Layout((part,), {name: _json(content) for name, content in files.items()}, is_folder=True)


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

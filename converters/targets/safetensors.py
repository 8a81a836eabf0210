"""A Hugging Face folder: config.json, model.safetensors, tokenizer files, generation_config.json, and SHA256SUMS."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from converters.architectures import for_config
from converters.checkpoint import Checkpoint
from converters.folder_files import encoded, generation, special_ids
from converters.layout import Entry, Layout, Part
from converters.options import Options
from converters.targets.writers import check_heeded, with_quant
from converters.tokenizers.writer import write_files
from edge_llama.errors import OptionError
from edge_llama.files import checksums
from edge_llama.files.formats import FORMATS, Format
from edge_llama.files.manifest import StoredFile

_DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}
_DEFAULT_QUANT = "bf16"
_HEEDED = ("quant", "tensor_types", "max_shard_bytes", "chat_template", "lora")
"""Some of them only to say what is for GGUF instead."""


class Safetensors:
    """A folder that transformers loads, with all that the checkpoint has."""

    def chosen(self, options: Options, _towers: Collection[str]) -> Options:
        """With a format."""
        if options.tower not in (None, "all"):
            raise OptionError(
                f"--tower {options.tower}: not for safetensors", remedy="leave it out: the folder is whole"
            )
        check_heeded(options, _HEEDED, has_vision=False)
        options = with_quant(options, "safetensors", tuple(_DTYPES), _DEFAULT_QUANT)
        for role, format_name in options.tensor_types.items():
            raise OptionError(
                f"--tensor-type {role}={format_name}: not for safetensors, whose weights have one format",
                remedy="leave it out, or write a .gguf file",
            )
        if options.max_shard_bytes is not None:
            raise OptionError("--max-shard-size: not for safetensors", remedy="leave it out, or write a .gguf file")
        return options

    def lay_out(self, checkpoint: Checkpoint, _name: str, options: Options) -> Layout:
        """The folder of ``checkpoint``."""
        tensors = for_config(checkpoint).folder_tensors(checkpoint)
        quant = options.quant or _DEFAULT_QUANT
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
        return Layout((part,), small, is_folder=True, closing=_closing)

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """The folder in each format."""
        return {quant: self.lay_out(checkpoint, "", Options(quant=quant)).output_bytes for quant in _DTYPES}


SAFETENSORS = Safetensors()


def _closing(files: Mapping[str, StoredFile]) -> dict[str, bytes]:
    return {checksums.NAME: checksums.encode(files)}


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

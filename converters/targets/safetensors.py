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
        return _laid_out(checkpoint, options.quant or _DEFAULT_QUANT, _tokenizer(checkpoint))

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """The folder in each format."""
        tokenizer = _tokenizer(checkpoint)
        return {quant: _laid_out(checkpoint, quant, tokenizer).output_bytes for quant in _DTYPES}


SAFETENSORS = Safetensors()


def _laid_out(checkpoint: Checkpoint, quant: str, tokenizer: Mapping[str, bytes]) -> Layout:
    tensors = for_config(checkpoint).folder_tensors(checkpoint)
    entries = tuple(Entry(tensor, FORMATS[quant]) for _, tensor in sorted(tensors.items()))
    generated = generation(checkpoint)
    configs = {"config.json": _config(checkpoint, generated, _DTYPES[quant][1]), "generation_config.json": generated}
    files = {
        **{name: encoded(content, name, checkpoint) for name, content in configs.items()},
        **tokenizer,
        **checkpoint.provenance.notices,
    }
    part = Part("model.safetensors", _header(entries, FORMATS[quant]), entries)
    return Layout((part,), files, is_folder=True, closing=_closing)


def _tokenizer(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The tokenizer's files, which take most of the time of a plan."""
    files = write_files(checkpoint.vocabulary, checkpoint.path)
    return {name: encoded(content, name, checkpoint) for name, content in files.items()}


def _closing(files: Mapping[str, StoredFile]) -> dict[str, bytes]:
    return {checksums.NAME: checksums.encode(files)}


def _config(checkpoint: Checkpoint, generated: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json: the source's, with the ids of special tokens where it has none, and the dtype of this folder.

    The ids are those of ``generated``, generation_config.json: files that differ are told when the folder is read.
    """
    ids = {key: generated[key] for key in special_ids(checkpoint.vocabulary)}
    return {**ids, **checkpoint.config, "dtype": dtype, "torch_dtype": dtype}


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

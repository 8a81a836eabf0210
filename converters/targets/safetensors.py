"""A Hugging Face folder: config.json, model.safetensors, tokenizer files, generation_config.json."""

import json
from typing import Any

from converters.architectures import for_config
from converters.checkpoint import Checkpoint
from converters.options import Options
from converters.targets.layout import Entry, Layout, Part
from converters.tokenizers.writer import write_files
from converters.vocabulary import TokenType, Vocabulary
from edge_llama.errors import CheckpointError, OptionError
from edge_llama.formats import FORMATS, Format

QUANTS = ("f32", "f16", "bf16")
DEFAULT_QUANT = "bf16"
_END_TEXTS = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"}
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
        "generation_config.json": _generation(checkpoint),
        **write_files(checkpoint.vocabulary, checkpoint.path),
        **checkpoint.provenance.notices,
    }
    part = Part("model.safetensors", _header(entries, format_), entries)
    small = {
        name: content if isinstance(content, bytes) else _json(content, name, checkpoint)
        for name, content in files.items()
    }
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
    return {**_ids(checkpoint.vocabulary), **checkpoint.config, "dtype": dtype, "torch_dtype": dtype}


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """generation_config.json: the source's; a GGUF source's sampling settings are for sampling."""
    ids: dict[str, Any] = dict(_ids(checkpoint.vocabulary))
    if "eos_token_id" in ids:
        ends = _ends(checkpoint.vocabulary)
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    samples = {"do_sample": True} if checkpoint.metadata and checkpoint.generation else {}
    return {**ids, **samples, **checkpoint.generation}


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    kinds = ("bos", "eos", "pad")
    return {f"{kind}_token_id": vocabulary.special[kind] for kind in kinds if kind in vocabulary.special}


def _ends(vocabulary: Vocabulary) -> list[int]:
    """Tokens that end an answer: EOS first, then those that llama.cpp ends at too."""
    named = [vocabulary.special[kind] for kind in ("eos", "eot", "eom") if kind in vocabulary.special]
    texts = [
        index
        for index, text in enumerate(vocabulary.tokens)
        if text in _END_TEXTS and vocabulary.types[index] == TokenType.CONTROL
    ]
    return list(dict.fromkeys(named + texts))


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


def _json(content: Any, name: str, checkpoint: Checkpoint) -> bytes:
    try:
        return json.dumps(content, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        damaged = error.object[error.start : error.end]
        raise CheckpointError(
            f"{checkpoint.path}: {name} holds {damaged!r}, which is not valid Unicode", remedy="download it again"
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{checkpoint.path}: {name} is nested too deeply", remedy="download it again") from error

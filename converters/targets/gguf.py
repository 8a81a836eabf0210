"""GGUF v3, as llama.cpp's converter followed by its quantizer writes it: tables, bytes and metadata are equal.

Only ``general.*`` naming keys and ``edge_llama.*`` differ.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from converters.architectures import for_config
from converters.checkpoint import Checkpoint
from converters.targets.layout import Entry, Layout
from converters.vocabulary import to_gguf
from edge_llama.errors import CheckpointError
from edge_llama.gguf import ALIGNMENT, Value, ValueType, encode_header, f32, string, u32
from quant import recipe

QUANTS = tuple(recipe.RECIPES)
DEFAULT_QUANT = "q4_k_m"
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_SAMPLING = {
    "top_k": ("top_k", ValueType.INT32),
    "top_p": ("top_p", ValueType.FLOAT32),
    "min_p": ("min_p", ValueType.FLOAT32),
    "temperature": ("temp", ValueType.FLOAT32),
    "repetition_penalty": ("penalty_repeat", ValueType.FLOAT32),
}


def lay_out(checkpoint: Checkpoint, quant: str, tensor_types: Mapping[str, str]) -> Layout:
    """The GGUF file of ``checkpoint`` by recipe ``quant``, but with ``tensor_types`` (role -> format).

    CheckpointError if the checkpoint is not whole, OptionError if ``tensor_types`` does not fit it.
    """
    architecture = for_config(checkpoint)
    chosen = recipe.RECIPES[quant]
    weights = architecture.weights(checkpoint)
    slots = [
        recipe.Slot(weight.role, weight.layer, weight.tensor.columns, len(weight.tensor.shape), weight.tensor.format)
        for weight in weights
    ]
    choices = recipe.assign(chosen, slots, architecture.recipe_model(checkpoint), tensor_types)
    entries = tuple(Entry(weight.tensor, *choice) for weight, choice in zip(weights, choices, strict=True))
    fields = {
        "general.architecture": string(architecture.gguf_name),
        "general.type": string("model"),
        "general.name": string(checkpoint.name),
        **_generation_defaults(checkpoint),
        **architecture.metadata(checkpoint),
        **to_gguf(checkpoint.vocabulary),
        "edge_llama.version": string(version("edge-llama")),
        "general.quantization_version": u32(_QUANTIZATION_VERSION),
        "general.file_type": u32(chosen.ftype),
    }
    header, _ = encode_header(fields, [(entry.tensor.name, entry.tensor.shape, entry.format) for entry in entries])
    return Layout(header, entries, ALIGNMENT)


def _generation_defaults(checkpoint: Checkpoint) -> dict[str, Value]:
    """generation_config.json's sampling settings, under llama.cpp's keys."""
    return {
        f"general.sampling.{name}": _number(checkpoint, key, kind)
        for key, (name, kind) in _SAMPLING.items()
        if checkpoint.generation.get(key) is not None
    }


def _number(checkpoint: Checkpoint, key: str, kind: ValueType) -> Value:
    number: Any = checkpoint.generation[key]
    if isinstance(number, bool) or not isinstance(number, int if kind is ValueType.INT32 else int | float):
        raise CheckpointError(f"{checkpoint.path}: generation_config.json: {key} is {number!r}, expected a number")
    return f32(number) if kind is ValueType.FLOAT32 else Value(kind, number)

"""GGUF v3, as llama.cpp's converter followed by its quantizer writes it: tables, bytes and metadata are equal.

Only ``general.*`` naming keys and ``edge_llama.*`` differ. A GGUF source keeps its metadata, as in that quantizer.
"""

from importlib.metadata import version

from converters import sampling
from converters.architectures import Architecture, for_config
from converters.checkpoint import Checkpoint
from converters.targets.layout import Entry, Layout
from converters.vocabulary import to_gguf
from edge_llama.gguf import ALIGNMENT, Value, encode_header, string, u32
from quant import recipe

QUANTS = tuple(recipe.RECIPES)
DEFAULT_QUANT = "q4_k_m"
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_NOT_KEPT = ("general.file_type", "general.quantization_version", "general.alignment", "split.", "edge_llama.")
"""What describes a source file, and not the model in it."""


def lay_out(checkpoint: Checkpoint, quant: str) -> Layout:
    """The GGUF file of ``checkpoint`` by recipe ``quant``; CheckpointError if the checkpoint is not whole."""
    architecture = for_config(checkpoint)
    chosen = recipe.RECIPES[quant]
    weights = architecture.weights(checkpoint)
    slots = [
        recipe.Slot(weight.role, weight.layer, weight.tensor.columns, len(weight.tensor.shape), weight.tensor.format)
        for weight in weights
    ]
    choices = recipe.assign(chosen, slots, architecture.recipe_model(checkpoint))
    entries = tuple(Entry(weight.tensor, *choice) for weight, choice in zip(weights, choices, strict=True))
    fields = {
        **(_kept(checkpoint) if checkpoint.metadata else _derived(checkpoint, architecture)),
        "edge_llama.version": string(version("edge-llama")),
        "general.quantization_version": u32(_QUANTIZATION_VERSION),
        "general.file_type": u32(chosen.ftype),
    }
    header, _ = encode_header(fields, [(entry.tensor.name, entry.tensor.shape, entry.format) for entry in entries])
    return Layout(header, entries, ALIGNMENT)


def _kept(checkpoint: Checkpoint) -> dict[str, Value]:
    """A GGUF source's own metadata: licence, base model and whatever else its author wrote stay with the model."""
    return {key: value for key, value in checkpoint.metadata.items() if not key.startswith(_NOT_KEPT)}


def _derived(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Value]:
    """Metadata from config.json, generation_config.json and the tokenizer's files, as llama.cpp's converter has it."""
    return {
        "general.architecture": string(architecture.gguf_name),
        "general.type": string("model"),
        "general.name": string(checkpoint.name),
        **sampling.to_gguf(checkpoint.generation, checkpoint.path),
        **architecture.metadata(checkpoint),
        **to_gguf(checkpoint.vocabulary),
    }

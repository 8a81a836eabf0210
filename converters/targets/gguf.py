"""GGUF v3, as llama.cpp's converter followed by its quantizer writes it: tables, bytes and metadata are equal.

Only ``general.*`` naming keys and ``edge_llama.*`` differ. A GGUF source keeps its metadata, as in that quantizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from converters.architectures import Architecture, Weight, for_config
from converters.checkpoint import Checkpoint
from converters.layout import Entry, Part
from converters.metadata import generation_config
from converters.metadata.vocabulary import to_gguf
from converters.options import Options
from converters.target import TowerFiles
from edge_llama.errors import CheckpointError
from edge_llama.files import text_rules
from edge_llama.files.gguf import ALIGNMENT, SUFFIX, Value, ValueType, is_named_gguf, string, u32
from edge_llama.files.integrity import header_with_room, seal
from quant import recipe

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_NOT_KEPT = ("general.file_type", "general.quantization_version", "general.alignment", "split.", "edge_llama.")
"""What describes a source file, and not the model in it."""


class GGUFWriter:
    """A text tower for llama.cpp."""

    label, engine = "GGUF", "llama.cpp"
    quants, default_quant = tuple(recipe.RECIPES), "q4_k_m"
    options = ("quant", "tensor_types", "max_shard_bytes", "chat_template", "lora")

    def check(self, options: Options) -> None:
        """They all go together."""

    def files(self, checkpoint: Checkpoint, options: Options) -> TowerFiles:
        """text.gguf, or several files."""
        return TowerFiles(parts(checkpoint, "text.gguf", options))

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """One header is laid out, since all recipes' are equally long: a vocabulary takes long to write."""
        (whole,) = parts(checkpoint, "text.gguf", Options())
        architecture = for_config(checkpoint)
        weights = architecture.weights(checkpoint)
        stored = {
            name: sum(entry.stored_bytes(ALIGNMENT) for entry in _entries(checkpoint, architecture, weights, chosen))
            for name, chosen in recipe.RECIPES.items()
        }
        return {name: len(whole.header) + nbytes for name, nbytes in stored.items()}


GGUF = GGUFWriter()


def parts(checkpoint: Checkpoint, name: str, options: Options) -> tuple[Part, ...]:
    """The GGUF file ``name`` of ``checkpoint``, its text tower if it has two; several if it shall be cut.

    CheckpointError if the checkpoint is not whole, OptionError if ``options`` don't fit it.
    """
    architecture = for_config(checkpoint)
    chosen = recipe.RECIPES[options.quant or GGUF.default_quant]
    weights = architecture.weights(checkpoint)
    entries = _entries(checkpoint, architecture, weights, chosen, options.tensor_types)
    fields = {
        **(_kept(checkpoint) if checkpoint.metadata else _derived(checkpoint, architecture)),
        **text_rules.to_gguf(checkpoint.vocabulary.rules),
        **generation_config.ends_to_gguf(checkpoint.generation),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "general.file_type": u32(chosen.ftype),
    }
    groups = _grouped(entries, options.max_shard_bytes)
    return tuple(
        part(_part_name(name, number, len(groups)), _part_fields(fields, number, groups), group, checkpoint.path)
        for number, group in enumerate(groups)
    )


def planned_entries(checkpoint: Checkpoint, quant: str) -> tuple[Entry, ...]:
    """The tensors of a GGUF file by the recipe ``quant``, without its metadata. CheckpointError as above."""
    architecture = for_config(checkpoint)
    return _entries(checkpoint, architecture, architecture.weights(checkpoint), recipe.RECIPES[quant])


def _entries(
    checkpoint: Checkpoint,
    architecture: Architecture,
    weights: Sequence[Weight],
    chosen: recipe.Recipe,
    tensor_types: Mapping[str, str] | None = None,
) -> tuple[Entry, ...]:
    """Each tensor in the format that the recipe gives it."""
    slots = [
        recipe.Slot(weight.role, weight.layer, weight.tensor.columns, len(weight.tensor.shape), weight.tensor.format)
        for weight in weights
    ]
    choices = recipe.assign(chosen, slots, architecture.recipe_model(checkpoint), tensor_types)
    return tuple(Entry(weight.tensor, *choice) for weight, choice in zip(weights, choices, strict=True))


def _grouped(entries: tuple[Entry, ...], max_bytes: int | None) -> list[tuple[Entry, ...]]:
    """Entries in parts of at most ``max_bytes``; one that is larger has a part of its own."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        stored = entry.stored_bytes(ALIGNMENT)
        if groups[-1] and max_bytes is not None and size + stored > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += stored
    return [tuple(group) for group in groups]


def _part_name(name: str, number: int, count: int) -> str:
    """llama.cpp's naming: it finds the other parts by it."""
    stem = name[: -len(SUFFIX)] if is_named_gguf(name) else name
    return name if count == 1 else f"{stem}-{number + 1:05}-of-{count:05}{SUFFIX}"


def _part_fields(fields: Mapping[str, Value], number: int, groups: Sequence[tuple[Entry, ...]]) -> dict[str, Value]:
    """All metadata is in the first part; the others say only which they are."""
    own = dict(fields) if number == 0 else {}
    if len(groups) > 1:
        own["split.no"] = Value(ValueType.UINT16, number)
        own["split.tensors.count"] = Value(ValueType.INT32, sum(map(len, groups)))
        own["split.count"] = Value(ValueType.UINT16, len(groups))
    return own


def part(name: str, fields: dict[str, Value], entries: tuple[Entry, ...], source: Path) -> Part:
    """A file with this metadata and these tensors, sealed when it is complete. CheckpointError names what can't be."""
    table = [(entry.tensor.name, entry.tensor.shape, entry.format) for entry in entries]
    try:
        header = header_with_room(fields | {"edge_llama.version": string(version("edge-llama"))}, table, ALIGNMENT)
    except ValueError as error:
        raise CheckpointError(
            f"{source}: metadata that GGUF cannot hold: {error}", remedy="download it again"
        ) from error
    return Part(name, header, entries, ALIGNMENT, seal)


def _kept(checkpoint: Checkpoint) -> dict[str, Value]:
    """A GGUF source's own metadata: licence, base model and whatever else its author wrote stay with the model."""
    return {key: value for key, value in checkpoint.metadata.items() if not key.startswith(_NOT_KEPT)}


def _derived(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Value]:
    """Metadata from config.json, generation_config.json and the tokenizer's files, as llama.cpp's converter has it."""
    vocabulary = checkpoint.vocabulary
    if vocabulary.merges is not None and not architecture.tells_space_prefix:
        vocabulary = replace(vocabulary, add_space_prefix=None)
    return {
        "general.architecture": string(architecture.gguf_name),
        "general.type": string("model"),
        "general.name": string(checkpoint.name),
        **checkpoint.provenance.fields,
        **generation_config.to_gguf(checkpoint.generation, checkpoint.path),
        **architecture.metadata(checkpoint),
        **to_gguf(vocabulary),
    }

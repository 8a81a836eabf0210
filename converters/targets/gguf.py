"""GGUF v3, as llama.cpp's converter followed by its quantizer writes it: tables, bytes and metadata are equal.

Only ``general.*`` naming keys and ``edge_llama.*`` differ. A GGUF source keeps its metadata, as in that quantizer.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.architectures import Architecture, Weight, for_config
from converters.checkpoint import Checkpoint
from converters.evidence.given import importance_for
from converters.layout import Entry, Part
from converters.metadata import generation_config
from converters.metadata.vocabulary import to_gguf
from converters.options import Options
from converters.target import TowerFiles
from edge_llama.errors import CheckpointError, OptionError
from edge_llama.files import text_rules
from edge_llama.files.formats import Format
from edge_llama.files.gguf import ALIGNMENT, SUFFIX, Value, ValueType, is_named_gguf, string, u32
from edge_llama.files.integrity import header_with_room, seal
from quant import recipe, tensor_types
from quant.importance import HASHES, TEXTS, Importance
from quant.reference.ggml import LARGEST_IMPORTANCE

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_NOT_KEPT = ("general.file_type", "general.quantization_version", "general.alignment", "split.", "edge_llama.")
"""What describes a source file, and not the model in it."""
_IMATRIX = "quantize.imatrix."
_LONGEST_TEXT = 127
"""Bytes of a text that llama-quantize writes under these keys: ``val_str`` of ``llama_model_kv_override``."""


class GGUFWriter:
    """A text tower for llama.cpp."""

    label, engine = "GGUF", "llama.cpp"
    quants, default_quant = tuple(recipe.RECIPES), "q4_k_m"
    options = ("quant", "tensor_types", "tensor_type_file", "calibration", "max_shard_bytes", "chat_template", "lora")

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
            name: sum(entry.stored_bytes(ALIGNMENT) for entry in _entries(checkpoint, architecture, weights, asked))
            for name, asked in ((name, _Asked(chosen)) for name, chosen in recipe.RECIPES.items())
        }
        return {name: len(whole.header) + nbytes for name, nbytes in stored.items()}


GGUF = GGUFWriter()


@dataclass(frozen=True, slots=True)
class _Asked:
    """What decides about formats: a recipe, other formats for roles and for tensors, and importance.

    ``is_planned``: for sizes alone, as if there were importance where the recipe needs it.
    """

    mixture: recipe.Recipe
    by_role: Mapping[str, str] | None = None
    by_name: Sequence[tensor_types.TensorType] = ()
    importance: Importance | None = None
    is_planned: bool = True

    @classmethod
    def of(cls, options: Options) -> "_Asked":
        """OptionError and ArtifactError for files that can't be read, or don't go with the rest."""
        chosen = recipe.RECIPES[options.quant or GGUF.default_quant]
        by_name: Sequence[tensor_types.TensorType] = ()
        if options.tensor_type_file is not None:
            if not chosen.default.is_quantized:
                raise OptionError(
                    f"--tensor-type-file: not with --quant {chosen.name}, where llama-quantize ignores it",
                    remedy="name a recipe that quantizes, or roles: --tensor-type ROLE=FORMAT",
                )
            by_name = tensor_types.read_tensor_types(Path(options.tensor_type_file), recipe.WRITTEN)
        return cls(chosen, options.tensor_types, by_name, importance_for(options), is_planned=False)

    @property
    def has_importance(self) -> bool:
        """Whether the recipe's rules go by importance."""
        return self.importance is not None or (self.is_planned and self.mixture.needs_importance)


def parts(checkpoint: Checkpoint, name: str, options: Options) -> tuple[Part, ...]:
    """The GGUF file ``name`` of ``checkpoint``, its text tower if it has two; several if it shall be cut.

    CheckpointError if the checkpoint is not whole, OptionError if ``options`` don't fit it.
    """
    architecture = for_config(checkpoint)
    asked = _Asked.of(options)
    entries = _entries(checkpoint, architecture, architecture.weights(checkpoint), asked)
    fields = {
        **(_kept(checkpoint) if checkpoint.metadata else _derived(checkpoint, architecture)),
        **text_rules.to_gguf(checkpoint.vocabulary.rules),
        **generation_config.ends_to_gguf(checkpoint.generation),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "general.file_type": u32(asked.mixture.ftype),
    }
    if asked.importance is not None:
        fields = _weighed_by(fields, asked.importance, options.evidence)
    groups = _grouped(entries, options.max_shard_bytes)
    return tuple(
        part(_part_name(name, number, len(groups)), _part_fields(fields, number, groups), group, checkpoint.path)
        for number, group in enumerate(groups)
    )


def planned_entries(checkpoint: Checkpoint, quant: str) -> tuple[Entry, ...]:
    """The tensors of a GGUF file by the recipe ``quant``, without its metadata. CheckpointError as above."""
    architecture = for_config(checkpoint)
    asked = _Asked(recipe.RECIPES[quant])
    return _entries(checkpoint, architecture, architecture.weights(checkpoint), asked)


def tensor_type_lines(checkpoint: Checkpoint, options: Options) -> str:
    """The formats of all matrices whose format can be chosen, as a file for ``--tensor-type-file``.

    OptionError for a recipe of floats, in which llama-quantize ignores such a file.
    """
    architecture, asked = for_config(checkpoint), _Asked.of(options)
    if not asked.mixture.default.is_quantized:
        raise OptionError(
            f"--write-tensor-types: not with --quant {asked.mixture.name}, where llama-quantize ignores such a file",
            remedy="name a recipe that quantizes",
        )
    weights = architecture.weights(checkpoint)
    entries = _entries(checkpoint, architecture, weights, asked)
    chosen = ((weight, entry) for weight, entry in zip(weights, entries, strict=True) if weight.role in recipe.ROLES)
    return tensor_types.encoded((entry.tensor.name, entry.format) for _, entry in chosen)


def _entries(
    checkpoint: Checkpoint, architecture: Architecture, weights: Sequence[Weight], asked: _Asked
) -> tuple[Entry, ...]:
    """Each tensor in the format that was asked for, or that the recipe gives it."""
    slots = [
        recipe.Slot(
            *(weight.role, weight.layer, weight.tensor.columns, len(weight.tensor.shape), weight.tensor.format),
            asked=tensor_types.asked_for(weight.tensor.name, asked.by_name),
        )
        for weight in weights
    ]
    model = replace(architecture.recipe_model(checkpoint), has_importance=asked.has_importance)
    choices = recipe.assign(asked.mixture, slots, model, asked.by_role)
    entries = [Entry(weight.tensor, *choice) for weight, choice in zip(weights, choices, strict=True)]
    if asked.is_planned:
        return tuple(entries)
    if asked.importance is not None:
        asked.importance.check({weight.tensor.name: weight.tensor.shape for weight in weights})
    return tuple(_weighed(weight, entry, asked) for weight, entry in zip(weights, entries, strict=True))


def _weighed(weight: Weight, entry: Entry, asked: _Asked) -> Entry:
    """The entry with its importance, if it is quantized; OptionError where that is not known and can't be missed."""
    if not entry.format.is_quantized or entry.format is entry.tensor.format:
        return entry
    name, shape = entry.tensor.name, entry.tensor.shape
    known = None if asked.importance is None else asked.importance.for_tensor(name, shape)
    if asked.importance is not None and known is not None:
        if known.max() > LARGEST_IMPORTANCE:
            raise OptionError(
                f"{asked.importance.label}: {name}: an importance of {known.max():g} is too large",
                remedy="calibrate again: edge-llama calibrate --for importance",
            )
        return replace(entry, importance=partial(_weights, asked.importance, name, shape))
    if recipe.needs_importance(asked.mixture, weight.role, entry.format):
        raise _missing(name, entry.format, asked)
    return entry


def _weights(importance: Importance, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What is there, as was checked."""
    found = importance.for_tensor(name, shape)
    assert found is not None  # noqa: S101 - see above
    return np.ascontiguousarray(found, np.float32)


def _missing(name: str, format_: Format, asked: _Asked) -> OptionError:
    """Of a tensor that can't be quantized to ``format_`` without importance."""
    said = f"--quant {asked.mixture.name}: {name} would be {format_}, which takes an importance matrix"
    if asked.importance is None:
        again = "edge-llama calibrate --for importance CHECKPOINT TEXT.txt importance.gguf"
        return OptionError(said, remedy=f"{again}, then add --calibration importance.gguf")
    return OptionError(
        f"{said}: {asked.importance.label} has nothing of this tensor",
        remedy="calibrate again, or give its role another format: --tensor-type ROLE=q2_k",
    )


def _weighed_by(fields: Mapping[str, Value], importance: Importance, evidence: Sequence[Path]) -> dict[str, Value]:
    """``fields`` and what llama-quantize says of an importance matrix, in place of what was said of another.

    What tells the texts that were calibrated on goes along: ``evaluate`` warns of them.
    """
    path = importance.path or evidence[0]
    said = {
        "file": _cut(os.fsencode(path)),
        **({"dataset": _cut(os.fsencode(importance.datasets[0]))} if importance.datasets else {}),
        "entries_count": u32(len(importance.entries)),
        **({"chunks_count": u32(importance.n_chunks)} if importance.n_chunks else {}),
    }
    kept = {key: value for key, value in fields.items() if not key.startswith(_IMATRIX)}
    kept |= {key: string(importance.notes[key]) for key in (TEXTS, HASHES) if key in importance.notes}
    return kept | {_IMATRIX + key: value for key, value in said.items()}


def _cut(text: bytes) -> Value:
    """As much of a text as llama-quantize writes, in whole characters."""
    return string(text[:_LONGEST_TEXT].decode("utf-8", "ignore"))


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

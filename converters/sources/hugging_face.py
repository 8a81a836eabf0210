"""Hugging Face folders: config.json, weights in safetensors, tokenizer files, generation_config.json."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters import architectures
from converters.architectures.llama4_vision import PREPROCESSORS
from converters.checkpoint import NOT_TOGETHER, Checkpoint, Tensor, read_json, text_config
from converters.facts import DTYPE, NAME, decide, notes, value_at
from converters.folder_files import end_ids
from converters.metadata import generation_config
from converters.metadata.provenance import Provenance, provenance_files, read_provenance
from converters.sources.weight_files import INDEX, read_weights
from converters.tokenizers.reader import read_folder, tokenizer_files
from edge_llama.errors import CheckpointError

_HASH = re.compile(r"[0-9a-f]{40}")
_CACHED = re.compile(r"models--(?:.+?--)?(.+)")
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``; headers, config and tokenizer are read, weights are not."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(
            f"{folder}: config.json is missing", remedy="give the folder of a Hugging Face checkpoint"
        )
    config = read_json(config_path)
    _check_packed(folder, config)
    text = text_config(config)
    tensors, weights, of_weights = read_weights(folder, config)
    _check_vocab_size(folder, text, tensors)
    vocabulary = read_folder(folder, text)
    given = folder / generation_config.FILE
    contents = {"config.json": config} | ({given.name: read_json(given)} if given.is_file() else {})
    generation, told = generation_config.of_files(contents, len(vocabulary.tokens), end_ids(vocabulary), folder)
    told |= architectures.notes(config, tensors)
    provenance = read_provenance(folder)
    return Checkpoint(
        folder,
        _name(folder, config),
        config,
        tensors,
        vocabulary,
        generation,
        files=_files(folder, weights),
        notes=of_weights | _dtype_note(config, tensors) | dict(vocabulary.notes) | told | _card_note(provenance),
        provenance=provenance,
    )


def _check_packed(folder: Path, config: Mapping[str, Any]) -> None:
    """CheckpointError for weights that compressed-tensors quantized: what their files hold is no weight by itself."""
    told = config.get("quantization_config")
    if isinstance(told, dict) and told.get("quant_method") == "compressed-tensors":
        raise CheckpointError(
            f"{folder}: config.json: quantization_config: these weights are quantized by compressed-tensors, "
            f"as {told.get('format')!r:.100}",
            remedy="give the checkpoint that they were quantized from",
        )


def _files(folder: Path, weights: Sequence[Path]) -> tuple[Path, ...]:
    settings = [folder / name for name in ("config.json", generation_config.FILE, INDEX, *PREPROCESSORS)]
    return tuple(sorted((*settings, *weights, *tokenizer_files(folder), *provenance_files(folder))))


def _check_vocab_size(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The vocabulary is padded to this size, and a number in config.json may be anything: tensors lie in files."""
    name = "model.embed_tokens.weight"
    embedding = tensors.get(name) or tensors.get(f"language_model.{name}")
    rows = max((tensor.shape[0] for tensor in ([embedding] if embedding else tensors.values())), default=0)
    n_vocab = config.get("vocab_size")
    if type(n_vocab) is int and n_vocab > rows:
        where = "the embedding has" if embedding else "no tensor has more than"
        raise CheckpointError(
            f"{folder}: config.json: vocab_size is {n_vocab!r:.100}, {where} {rows:,} rows",
            remedy=NOT_TOGETHER,
        )


def _name(folder: Path, config: Mapping[str, Any]) -> str:
    """The model's name, which is none of the hashes by which Hugging Face's cache names snapshots."""
    own = folder.resolve()
    is_hash = bool(_HASH.fullmatch(own.name))
    cached = _CACHED.fullmatch(own.parent.parent.name) if own.parent.name == "snapshots" else None
    published = config.get("_name_or_path")
    by_folder, by_cache, by_config, by_hash = NAME.places
    found = decide(
        NAME,
        {
            by_folder: None if is_hash else own.name,
            by_cache: cached[1] if cached else None,
            by_config: published.rstrip("/").rsplit("/", 1)[-1] or None if isinstance(published, str) else None,
            by_hash: own.name,
        },
    )
    return str(found.value) if found else own.name


def _dtype_note(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Where config.json names another number format than most weights have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[_DTYPES[tensor.format.name]] += tensor.nbytes
    stored = max(sizes, key=lambda name: sizes[name], default=None)
    own, *others = DTYPE.places
    said = {place: value_at({"config.json": config}, place) for place in others}
    first = next((place for place in others if said[place] is not None), others[0])
    return notes((DTYPE, decide(DTYPE, {own: stored, first: said[first]})))


def _card_note(provenance: Provenance) -> dict[str, str]:
    return {"model card": provenance.problem} if provenance.problem else {}

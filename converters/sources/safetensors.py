"""Hugging Face folders: config.json, *.safetensors (one or sharded), tokenizer files.

Format: https://huggingface.co/docs/safetensors.
"""

import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from converters.architectures.llama4_vision import PREPROCESSORS
from converters.checkpoint import NOT_TOGETHER, UNREADABLE, Checkpoint, Tensor, read_json, text_config
from converters.folder_files import end_ids
from converters.metadata import generation_config
from converters.metadata.provenance import provenance_files, read_provenance
from converters.sources.file_rows import FileRows
from converters.tokenizers.reader import read_folder, tokenizer_files
from edge_llama.errors import CheckpointError
from edge_llama.files.formats import BF16, F16, F32, Format

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
DTYPES: dict[str, Format] = {"F32": F32, "F16": F16, "BF16": BF16}
_MAX_HEADER = 100_000_000  # the reference implementation's own limit
_DAMAGED = "the file is damaged: download it again"
_DOWNLOAD_INDEX = "download the index and all its files again"


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``; headers, config and tokenizer are read, weights are not."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(
            f"{folder}: config.json is missing", remedy="give the folder of a Hugging Face checkpoint"
        )
    config = read_json(config_path)
    text = text_config(config)
    tensors, weights = _sharded(folder) if (folder / INDEX).is_file() else _single(folder)
    _check_vocab_size(folder, text, tensors)
    vocabulary = read_folder(folder, text)
    given = folder / generation_config.FILE
    contents = {"config.json": config} | ({given.name: read_json(given)} if given.is_file() else {})
    generation, told = generation_config.of_files(contents, len(vocabulary.tokens), end_ids(vocabulary), folder)
    provenance = read_provenance(folder)
    return Checkpoint(
        folder,
        _name(folder, config),
        config,
        tensors,
        vocabulary,
        generation,
        files=_files(folder, weights),
        notes={**vocabulary.notes, **told, **({"model card": provenance.problem} if provenance.problem else {})},
        provenance=provenance,
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
    """The model's name: the folder's, unless that is a snapshot's hash."""
    name = folder.resolve().name
    published = str(config.get("_name_or_path") or "").rsplit("/", 1)[-1]
    is_hash = len(name) == 40 and all(letter in "0123456789abcdef" for letter in name)
    return published or name if is_hash else name


def _single_file(folder: Path) -> Path:
    if (folder / _SINGLE).is_file():
        return folder / _SINGLE
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{folder}: {len(files)} safetensors files but no {INDEX}", remedy="download the index too"
        )
    remedy = (
        "convert .bin or .pth weights to safetensors first" if any(folder.glob("*.bin")) else "download the weights too"
    )
    raise CheckpointError(f"{folder}: no *.safetensors file", remedy=remedy)


def _single(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of the only file of weights, and that file."""
    file = _single_file(folder)
    return read_file(file), [file]


def _sharded(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of all shards that the index names, each in the shard where the index says, and these files."""
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty", remedy=_DOWNLOAD_INDEX)
    tensors: dict[str, Tensor] = {}
    shards = sorted({str(name) for name in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or not shard.isprintable():
            raise CheckpointError(
                f"{index}: weight_map names {shard!r}, which is no file of this folder", remedy=_DOWNLOAD_INDEX
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder}: shard {shard} is missing", remedy="download it too")
        found = read_file(folder / shard)
        for name in (name for name, file in weight_map.items() if file == shard):
            if name not in found:
                raise CheckpointError(
                    f"{folder / shard}: tensor {name!r} is missing, though {INDEX} places it here",
                    remedy=_DOWNLOAD_INDEX,
                )
        if extra := sorted(found.keys() - weight_map.keys()):
            raise CheckpointError(f"{folder / shard}: tensor {extra[0]!r} is not in {INDEX}", remedy=_DOWNLOAD_INDEX)
        tensors |= found
    return tensors, [folder / shard for shard in shards]


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file by name, lazily: its header is parsed and checked, its data is not read."""
    entries, start, data_size = read_entries(path)
    tensors = {name: _tensor(path, name, entry, start) for name, entry in sorted(entries.items())}
    _check_coverage(path, {name: entry["data_offsets"] for name, entry in entries.items()}, data_size)
    return tensors


def read_entries(path: Path) -> tuple[dict[str, Any], int, int]:
    """What the header says of each tensor, unchecked, where the data begins and how many bytes it has.

    CheckpointError if there is no header.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise _not_safetensors(path, start, size)
            header = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    entries = _parse_header(path, header)
    entries.pop("__metadata__", None)
    return entries, 8 + length, size - 8 - length


def impostor(path: Path, start: bytes, size: int) -> CheckpointError | None:
    """The error for what stands in for weights when a download went wrong, known by its first bytes."""
    if size == 0:
        return CheckpointError(f"{path}: the file is empty", remedy="download it again")
    if start.startswith(b"version "):
        return CheckpointError(f"{path}: this is a Git LFS pointer, not the file itself", remedy="run `git lfs pull`")
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return CheckpointError(f"{path}: this is an HTML page", remedy="download the file itself")
    return None


def _not_safetensors(path: Path, start: bytes, size: int) -> CheckpointError:
    length = struct.unpack("<Q", start.ljust(8, b"\0"))[0]
    return impostor(path, start, size) or CheckpointError(
        f"{path}: not a safetensors file, or cut short: it announces a header of {length:,} bytes in {size:,}, at most "
        f"{_MAX_HEADER:,} are read",
        remedy="download it again",
    )


def _parse_header(path: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise CheckpointError(f"{path}: the header names {twice!r} twice", remedy=_DAMAGED)
        return found

    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a number of 5,000 digits
        raise CheckpointError(f"{path}: its header is not valid JSON: {error}", remedy="download it again") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: its header is no JSON object", remedy=_DAMAGED)
    return entries


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        well_formed = type(dtype) is str and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        # No weight is empty; [2**60, 0] would claim rows that take no bytes.
        well_formed &= 0 not in shape
    except (TypeError, KeyError, ValueError):
        well_formed = False
    if not well_formed:
        raise CheckpointError(
            f"{path}: tensor {name!r} has a malformed header entry: {str(entry)[:200]}", remedy=_DAMAGED
        )
    format_ = DTYPES.get(dtype)
    if format_ is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {dtype}, expected F32, F16 or BF16",
            remedy="give full-precision weights",
        )
    if prod(shape) * format_.block_bytes != end - begin:
        raise CheckpointError(
            f"{path}: tensor {name!r} of {shape} {dtype} can't take the {end - begin:,} bytes it claims",
            remedy=_DAMAGED,
        )
    shape = tuple(shape) or (1,)
    return Tensor(name, shape, format_, FileRows(path, data_start + begin, format_.row_bytes(shape[-1])))


def _check_coverage(path: Path, offsets: Mapping[str, list[int]], data_size: int) -> None:
    """Tensors must fill the data without holes or overlaps, as the format demands."""
    at = 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != at:
            problem = "overlaps another" if begin < at else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {name!r} at byte {begin:,} {problem}", remedy=_DAMAGED)
        at = end
    if at != data_size:
        raise CheckpointError(
            f"{path}: tensors take {at:,} bytes but the file holds {data_size:,}",
            remedy="the file is cut short or damaged",
        )

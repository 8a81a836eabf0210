"""safetensors files: a header of JSON, then the numbers. Headers are checked whole, data is read when asked.

Format: https://huggingface.co/docs/safetensors.
"""

import json
import struct
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from converters.checkpoint import Tensor
from converters.sources.file_rows import tensor_in
from edge_llama.errors import UNREADABLE, CheckpointError
from edge_llama.files.formats import BF16, F16, F32, Format
from edge_llama.host.regular_files import opened

DTYPES: dict[str, Format] = {"F32": F32, "F16": F16, "BF16": BF16}
_MAX_HEADER = 100_000_000  # the reference implementation's own limit
_DAMAGED = "the file is damaged: download it again"


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
        with opened(path) as file:
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
    except (TypeError, KeyError, ValueError):
        well_formed = False
    if not well_formed:
        raise CheckpointError(
            f"{path}: tensor {name!r} has a malformed header entry: {str(entry)[:200]}", remedy=_DAMAGED
        )
    if 0 in shape:  # [2**60, 0] would claim rows that take no bytes
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {shape} is empty, and no weight is",
            remedy="save it again: DeepSpeed ZeRO-3 and FSDP leave empty what is not gathered first",
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
    return tensor_in(path, name, shape, format_, data_start + begin)


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

"""Safetensors files as the reference writes them: one, or several of a given size with an index.

What is read of a file is mapped and seen as numbers of its dtype, which must begin at a multiple of their size; holes
are not allowed. So of tensors of several dtypes those come first after which the next ones begin where they may.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converters.layout import Entry, Part
from edge_llama.files.formats import Format
from quant.nbits import ArrayFormat

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64"}
_PER_WORD = 8
"""Numbers of 4 bits in one of 32."""

Unit = tuple[Entry, ...]
"""Entries that stay in one file: a tensor, or the arrays that a matrix becomes."""


def parts(units: Sequence[Unit], max_bytes: int | None) -> tuple[Part, ...]:
    """Files with at most ``max_bytes`` of tensors, in the order of ``units``; one that is larger has its own."""
    groups = _grouped(units, max_bytes)
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    files = [_placed(group) for group in groups]
    return tuple(
        Part(name, _header(entries), entries)
        for name, entries in zip(names if files[1:] else [SINGLE], files, strict=True)
    )


def index(parts: Sequence[Part]) -> Mapping[str, Any]:
    """The content of the index by its name, if there are several files; else nothing."""
    if len(parts) == 1:
        return {}
    places = {entry.tensor.name: part.name for part in parts for entry in part.entries}
    size = sum(entry.nbytes for part in parts for entry in part.entries)
    return {INDEX: {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}}


def _grouped(units: Sequence[Unit], max_bytes: int | None) -> list[list[Entry]]:
    groups: list[list[Entry]] = [[]]
    size = 0
    for unit in units:
        nbytes = sum(entry.nbytes for entry in unit)
        if groups[-1] and max_bytes is not None and size + nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1] += unit
        size += nbytes
    return groups


def _placed(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """In an order in which each begins where numbers of its dtype may.

    Integers of 64 bits first, which are few; then each matrix's words of 32 and its scales of 16, of which there is an
    even count, since rows are: a layer's outputs are heads of an even size, or another layer's groups.
    """

    def place(entry: Entry) -> int:
        is_wide = entry.format.block_bytes == 8 and not isinstance(entry.format, ArrayFormat)
        return 0 if is_wide else 1 if isinstance(entry.format, ArrayFormat) else 2

    return tuple(sorted(entries, key=place))


def _header(entries: Sequence[Entry]) -> bytes:
    """The length, then JSON padded with spaces to a multiple of 8 bytes, as the reference writes it."""
    table = {"__metadata__": {"format": "pt"}, **dict(_described(entries))}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _described(entries: Sequence[Entry]) -> Iterator[tuple[str, dict[str, Any]]]:
    at = 0
    for entry in entries:
        dtype, shape = _stored_as(entry)
        yield entry.tensor.name, {"dtype": dtype, "shape": shape, "data_offsets": [at, at + entry.nbytes]}
        at += entry.nbytes


def _stored_as(entry: Entry) -> tuple[str, list[int]]:
    """The dtype and the shape of what is stored."""
    if not isinstance(entry.format, ArrayFormat):
        return dtype(entry.format), list(entry.tensor.shape)
    rows, columns = entry.tensor.shape
    if entry.format.part == "numbers":
        return "I32", [rows, columns // _PER_WORD]
    return dtype(entry.format.grid.scales), [rows, columns // entry.format.grid.block]


def dtype(format_: Format) -> str:
    """As safetensors calls it."""
    return _DTYPES[format_.name]

"""A GGUF header's fields, for people and for programs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_llama.files.artifact import Row
from edge_llama.files.gguf import Header, Value, ValueType, is_gguf, read_header

IMPORTANCE = "imatrix"
"""What an importance matrix says that it is, and how its keys begin."""
_SHOWN_ITEMS = 6


def type_of(path: Path) -> str:
    """What a GGUF file says that it is (``general.type``), "" if it is no GGUF file or doesn't say so.

    ArtifactError if its header is damaged.
    """
    if not path.is_file() or not is_gguf(path):
        return ""
    kind = read_header(path).fields.get("general.type")
    return str(kind.data) if kind is not None and kind.type is ValueType.STRING else ""


def as_json(header: Header) -> dict[str, Any]:
    """Every field's value as JSON has it: no NaN and no infinities there."""
    return {key: _plain(value) for key, value in header.fields.items()}


def as_rows(header: Header) -> Sequence[Row]:
    """Every field's name, type and value; of arrays the first items."""
    return [(key, _type(value), _short(value)) for key, value in header.fields.items()]


def _plain(value: Value) -> Any:
    if value.item is not None:
        return list(value.data) if value.item is ValueType.STRING else value.data.tolist()
    return str(value.data) if isinstance(value.data, float) and not math.isfinite(value.data) else value.data


def _type(value: Value) -> str:
    return f"{value.item.name.lower()} x {len(value.data):,}" if value.item is not None else value.type.name.lower()


def _short(value: Value) -> str:
    data = list(value.data[:_SHOWN_ITEMS]) if value.item is not None else value.data
    return ", ".join(map(str, data)) if isinstance(data, list) else str(data)

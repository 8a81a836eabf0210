"""generation_config.json's sampling settings, and their form in GGUF metadata (``general.sampling.*``)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import shortest
from edge_llama.errors import CheckpointError
from edge_llama.gguf import Header, Value, ValueType, f32

_PREFIX = "general.sampling."
_KEYS = {
    "top_k": ("top_k", ValueType.INT32),
    "top_p": ("top_p", ValueType.FLOAT32),
    "min_p": ("min_p", ValueType.FLOAT32),
    "temperature": ("temp", ValueType.FLOAT32),
    "repetition_penalty": ("penalty_repeat", ValueType.FLOAT32),
}


def to_gguf(generation: Mapping[str, Any], path: Path) -> dict[str, Value]:
    """The settings under llama.cpp's keys; CheckpointError names one that is no number."""
    return {
        _PREFIX + name: _number(generation[key], key, kind, path)
        for key, (name, kind) in _KEYS.items()
        if generation.get(key) is not None
    }


def _number(number: Any, key: str, kind: ValueType, path: Path) -> Value:
    if isinstance(number, bool) or not isinstance(number, int if kind is ValueType.INT32 else int | float):
        raise CheckpointError(f"{path}: generation_config.json: {key} is {number!r}, expected a number")
    return f32(number) if kind is ValueType.FLOAT32 else Value(kind, number)


def from_gguf(header: Header) -> dict[str, Any]:
    """The settings that a GGUF header holds, as generation_config.json writes them."""
    found: dict[str, Any] = {}
    for key, (name, kind) in _KEYS.items():
        if _PREFIX + name not in header.fields:
            continue
        if kind is ValueType.INT32:
            found[key] = header.get(_PREFIX + name, int, 0)
        else:
            found[key] = shortest(header.get(_PREFIX + name, float, 0.0))
    return found

"""generation_config.json's settings for sampling and its end tokens, and their form in GGUF metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import Header, Value, ValueType, array, f32, shortest
from edge_llama.files.gguf_text import END_TOKENS

_CORRECT = "correct it, or remove it"
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
        raise CheckpointError(
            f"{path}: generation_config.json: {key} is {number!r:.100}, expected a number", remedy=_CORRECT
        )
    limit = 3e38 if kind is ValueType.FLOAT32 else 1 << 31
    if not -limit < number < limit:  # nor NaN
        raise CheckpointError(
            f"{path}: generation_config.json: {key} is {number!r:.100}, which GGUF cannot hold", remedy=_CORRECT
        )
    return f32(number) if kind is ValueType.FLOAT32 else Value(kind, number)


def ends_to_gguf(generation: Mapping[str, Any], n_vocab: int, path: Path) -> dict[str, Value]:
    """All tokens that end an answer: llama.cpp's own keys hold one. CheckpointError for what is no token."""
    ids = end_ids(generation, n_vocab, path)
    return {END_TOKENS: array(ValueType.UINT32, ids)} if ids else {}


def end_ids(generation: Mapping[str, Any], n_vocab: int, path: Path) -> list[int]:
    """All tokens that end an answer, none if the file names none; CheckpointError for what is no token."""
    given = generation.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    for index in ids:
        if type(index) is not int or not 0 <= index < n_vocab:
            raise CheckpointError(
                f"{path}: generation_config.json: eos_token_id has {index!r:.100}, expected ids from 0 to "
                f"{n_vocab - 1:,}",
                remedy=_CORRECT,
            )
    return ids


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
    ends = header.fields.get(END_TOKENS)
    if ends is not None:
        found["eos_token_id"] = [int(index) for index in ends.data]
    return found

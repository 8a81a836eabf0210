"""generation_config.json's settings for sampling and its end tokens, and their form in GGUF metadata.

A folder without that file has them in config.json, as transformers' ``GenerationConfig.from_model_config`` reads it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.facts import END_TOKENS as ENDS
from converters.facts import SAMPLING, Found, decide, notes, value_at
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
_TYPES = [
    (key, (int,), "a whole number") if kind is ValueType.INT32 else (key, (int, float), "a number")
    for key, (_, kind) in _KEYS.items()
]
FILE, _CONFIG = "generation_config.json", "config.json"


def of_files(
    contents: Mapping[str, Any], n_vocab: int, known: Sequence[int], path: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """A folder's settings as transformers takes them, in generation_config.json's form, and notes for the report.

    ``contents`` are config.json's and generation_config.json's by these names; the second may be missing. ``known`` are
    the ends that the vocabulary names: config.json's are added to them, which is written where it says more.
    CheckpointError for an end token that is no id of ``n_vocab``, and for a setting of a wrong type.
    """
    place = FILE if contents.get(FILE) is not None else _CONFIG
    generation = dict(contents[FILE]) if place == FILE else _of_config(contents)
    odd = _as_count(generation)
    _check_types(generation, f"{path}: {place}")
    said = {}
    for where in ENDS.places:
        said[where], dropped = _ends(value_at(contents, where), where, n_vocab, path)
        odd += dropped
    found = decide(ENDS, said, same=_are_same)
    ends = _written(found, known)
    generation = {**generation, "eos_token_id": ends}
    if ends is None:
        del generation["eos_token_id"]
    return generation, notes((ENDS, found)) | ({SAMPLING.topic: "; ".join(odd)} if odd else {})


def _written(found: Found | None, known: Sequence[int]) -> Any:
    """What generation_config.json shall say; None where it needn't."""
    if found is None or found.place.startswith(FILE):
        return None if found is None else found.value
    more = [index for index in _listed(found.value) if index not in known]
    return [*known, *more] if more else None


def _of_config(contents: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of sampling, or its text part."""
    parts = [part for place in reversed(SAMPLING.places[1:]) if isinstance(part := value_at(contents, place), Mapping)]
    return {key: part[key] for part in parts for key in (*_KEYS, "do_sample") if part.get(key) is not None}


def _check_types(generation: Mapping[str, Any], where: str) -> None:
    for key, kinds, expected in (*_TYPES, ("do_sample", (bool,), "true or false")):
        value = generation.get(key)
        if value is not None and type(value) not in kinds:
            raise CheckpointError(f"{where}: {key} is {value!r:.100}, expected {expected}", remedy=_CORRECT)


def _as_count(generation: dict[str, Any]) -> list[str]:
    """A count written as 50.0 becomes 50; said so."""
    value = generation.get("top_k")
    if not isinstance(value, float) or not value.is_integer():
        return []
    generation["top_k"] = int(value)
    return [f"top_k {value} is taken as {int(value)}"]


def _ends(given: Any, where: str, n_vocab: int, path: Path) -> tuple[Any, list[str]]:
    """End tokens as a number or a list, as they were given; None for none. And what was changed in them.

    Negative ones are none to transformers. One past the vocabulary never comes: config.json has defaults that nobody
    looked at, in generation_config.json it is a mistake.
    """
    kept: list[int] = []
    odd: list[str] = []
    for item in _listed(given):
        index = int(item) if isinstance(item, float) and item.is_integer() else item
        if type(index) is not int or (index >= n_vocab and where.startswith(FILE)):
            raise CheckpointError(
                f"{path}: {where} has {item!r:.100}, expected ids from 0 to {n_vocab - 1:,}", remedy=_CORRECT
            )
        if 0 <= index < n_vocab:
            kept.append(index)
        else:
            odd.append(f"{where} {item!r:.100} is taken as none")
    if not kept:
        return None, odd
    return (kept if isinstance(given, list) else kept[0]), odd


def _are_same(one: Any, other: Any) -> bool:
    return set(_listed(one)) == set(_listed(other))


def _listed(given: Any) -> list[Any]:
    """What may be a list, one item or none, as a list."""
    return list(given) if isinstance(given, list) else [] if given is None else [given]


def to_gguf(generation: Mapping[str, Any], path: Path) -> dict[str, Value]:
    """The settings under llama.cpp's keys; CheckpointError names one that they can't hold."""
    return {
        _PREFIX + name: _number(generation[key], key, kind, path)
        for key, (name, kind) in _KEYS.items()
        if generation.get(key) is not None
    }


def _number(number: Any, key: str, kind: ValueType, path: Path) -> Value:
    limit = 3e38 if kind is ValueType.FLOAT32 else 1 << 31
    if not -limit < number < limit:  # nor NaN
        raise CheckpointError(
            f"{path}: generation_config.json: {key} is {number!r:.100}, which GGUF cannot hold", remedy=_CORRECT
        )
    return f32(number) if kind is ValueType.FLOAT32 else Value(kind, number)


def ends_to_gguf(generation: Mapping[str, Any]) -> dict[str, Value]:
    """All tokens that end an answer: llama.cpp's own keys hold one."""
    ids = end_ids(generation)
    return {END_TOKENS: array(ValueType.UINT32, ids)} if ids else {}


def end_ids(generation: Mapping[str, Any]) -> list[int]:
    """All tokens that end an answer, as a checkpoint's ``generation`` has them; none if it names none."""
    return _listed(generation.get("eos_token_id"))


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

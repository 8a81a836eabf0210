"""JSON files that come from anywhere: an object, read field by field, where every error names file, field and value.

``where`` is always the file as errors shall name it, ``error`` the type of these errors, ``remedy`` what they advise.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_llama.errors import ArtifactError, InputError
from edge_llama.host.regular_files import opened

_KINDS: Mapping[type, str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def read_bytes(path: Path, most: int, remedy: str) -> bytes:
    """A file's content, of at most ``most`` bytes. ArtifactError if it can't be read or is larger."""
    try:
        with opened(path) as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", remedy=remedy) from error
    if len(raw) > most:
        raise ArtifactError(f"{path}: is larger than the {most:,} bytes that it may have", remedy=remedy)
    return raw


def parse(where: Path | str, raw: bytes, remedy: str, *, error: type[InputError] = ArtifactError) -> Any:
    """The JSON value in ``raw``, as lenient as Python is: the last of equal keys counts, NaN is a number."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not valid JSON: {problem}", remedy=remedy) from problem


def parse_object(
    where: Path | str, raw: bytes, remedy: str, *, error: type[InputError] = ArtifactError, is_strict: bool = True
) -> dict[str, Any]:
    """The JSON object in ``raw``; an error for anything else.

    ``is_strict``: also for a key that is given twice, for NaN and infinity, and for another encoding than UTF-8.
    """
    content = _strictly(where, raw, remedy, error) if is_strict else parse(where, raw, remedy, error=error)
    if not isinstance(content, dict):
        raise error(f"{where}: expected a JSON object, found {type(content).__name__}", remedy=remedy)
    return content


def _strictly(where: Path | str, raw: bytes, remedy: str, error: type[InputError]) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{twice[:100]!r} appears twice")
        return found

    def number(text: str) -> Any:
        raise ValueError(f"{text} is no number")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=number)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not valid JSON: {problem}", remedy=remedy) from problem


@dataclass(frozen=True, slots=True, eq=False)
class Fields:
    """An object in a JSON file; ``called`` is its place there, as errors put it before a field's name."""

    where: Path | str
    content: Mapping[str, Any]
    remedy: str
    called: str = ""
    error: type[InputError] = ArtifactError

    @classmethod
    def read(cls, path: Path, most: int, remedy: str) -> "Fields":
        """The object that a file of at most ``most`` bytes holds. ArtifactError for anything else."""
        return cls(path, parse_object(path, read_bytes(path, most, remedy), remedy), remedy)

    def fail(self, key: str, problem: str, remedy: str = "") -> InputError:
        """The error about the field ``key``."""
        return self.error(f"{self.where}: {self.called}{key} {problem}", remedy=remedy or self.remedy)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value under ``key``, of ``kind``; ``default`` if it is not there or null, an error if that is None."""
        value = self.content.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.fail(key, "is missing")
        if type(value) is not kind:
            raise self.fail(key, f"is {value!r:.100}, expected {_KINDS[kind]}")
        return value

    def within(self, key: str) -> "Fields":
        """The object under ``key``; an empty one if it is not there."""
        return replace(self, content=self.get(key, dict, {}), called=f"{self.called}{key}.")

    def count(self, key: str, most: int) -> int:
        """A whole number from 1 to ``most``."""
        value: int = self.get(key, int)
        if not 1 <= value <= most:
            raise self.fail(key, f"is {value:,}, expected 1 to {most:,}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer that GGUF can hold."""
        value = self.content.get(key)
        value = default if value is None else value
        if value is None:
            raise self.fail(key, "is missing")
        if type(value) is not int or not 1 <= value < 1 << 32:
            raise self.fail(key, f"is {value!r:.100}, expected a positive integer below 2**32")
        return value

    def real(self, key: str, default: float) -> float:
        """A positive number that float32 can hold."""
        value = self.content.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-38 < value < 3e38:
            raise self.fail(key, f"is {value!r:.100}, expected a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false if it is not there."""
        value = self.content.get(key) or False
        if not isinstance(value, bool):
            raise self.fail(key, f"is {value!r:.100}, expected true or false")
        return value

    def ids(self, key: str, n_vocab: int) -> Sequence[int]:
        """Token ids below ``n_vocab``, given as a list, as one number, or not at all."""
        value = self.content.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token in ids:
            if type(token) is not int or not 0 <= token < n_vocab:
                raise self.fail(key, f"has {token!r:.100}, expected token ids from 0 to {n_vocab - 1:,}")
        return ids

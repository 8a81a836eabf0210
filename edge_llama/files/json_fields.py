"""JSON files that come from anywhere: an object, read field by field, where every error names file and field."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_llama.errors import ArtifactError

KINDS: Mapping[type, str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}
"""What a field's type is called in an error."""


def read_bytes(path: Path, most: int, remedy: str) -> bytes:
    """A file's content, of at most ``most`` bytes. ArtifactError if it can't be read or is larger."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", remedy=remedy) from error
    if len(raw) > most:
        raise ArtifactError(f"{path}: is larger than the {most:,} bytes that it may have", remedy=remedy)
    return raw


def parse_object(path: Path, raw: bytes, remedy: str) -> dict[str, Any]:
    """The JSON object in ``raw``, ``path``'s content; ArtifactError for anything else, and for a key given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{twice[:100]!r} appears twice")
        return found

    def number(text: str) -> Any:
        raise ValueError(f"{text} is no number")

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=number)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON: {error}", remedy=remedy) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: expected a JSON object, found {type(content).__name__}", remedy=remedy)
    return content


class Fields:
    """An object in a JSON file; ``called`` is its place there, for errors."""

    def __init__(self, path: Path, content: Mapping[str, Any], remedy: str, called: str = "") -> None:
        self.path = path
        self.content = content
        self._remedy = remedy
        self._called = called

    @classmethod
    def read(cls, path: Path, most: int, remedy: str) -> "Fields":
        """The object that a file of at most ``most`` bytes holds. ArtifactError for anything else."""
        return cls(path, parse_object(path, read_bytes(path, most, remedy), remedy), remedy)

    def fail(self, key: str, problem: str) -> ArtifactError:
        """The error about the field ``key``."""
        return ArtifactError(f"{self.path}: {self._called}{key} {problem}", remedy=self._remedy)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value under ``key``, of ``kind``; ``default`` if it is not there or null, an error if that is None."""
        value = self.content.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.fail(key, "is missing")
        if type(value) is not kind:
            raise self.fail(key, f"is {value!r:.100}, expected {KINDS[kind]}")
        return value

    def within(self, key: str) -> "Fields":
        """The object under ``key``; an empty one if it is not there."""
        return Fields(self.path, self.get(key, dict, {}), self._remedy, f"{self._called}{key}.")

    def count(self, key: str, most: int) -> int:
        """A whole number from 1 to ``most``."""
        value: int = self.get(key, int)
        if not 1 <= value <= most:
            raise self.fail(key, f"is {value:,}, expected 1 to {most:,}")
        return value

    def ids(self, key: str, n_vocab: int) -> Sequence[int]:
        """Token ids below ``n_vocab``, given as a list, as one number, or not at all."""
        value = self.content.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token in ids:
            if type(token) is not int or not 0 <= token < n_vocab:
                raise self.fail(key, f"has {token!r:.100}, expected token ids from 0 to {n_vocab - 1:,}")
        return ids

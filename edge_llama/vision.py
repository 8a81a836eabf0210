"""What is to be known of a vision tower to use it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """``tile``: a tile's side in pixels; ``n_embd``: the embeddings' width, which is the text tower's.

    ``mean`` and ``std`` normalise the channels red, green and blue, which are seen as 0 to 1.
    """

    tile: int
    max_tiles: int
    tokens_per_tile: int
    n_embd: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_json(self) -> dict[str, Any]:
        """The form in which a manifest holds it."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "VisionSpec":
        """The inverse of :meth:`to_json`; ValueError names the field that is missing or can't be."""
        tile, max_tiles, tokens, n_embd = (
            _size(data, key) for key in ("tile", "max_tiles", "tokens_per_tile", "n_embd")
        )
        mean, std = (_channels(data, key) for key in ("mean", "std"))
        if min(std) <= 0:
            raise ValueError(f"std is {list(std)}, expected positive numbers")
        return cls(tile, max_tiles, tokens, n_embd, mean, std)


def _size(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    if type(value) is not int or not 0 < value < 1 << 20:
        raise ValueError(f"{key} is {value!r:.100}, expected a positive whole number")
    return value


def _channels(data: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    values = data.get(key)
    is_row = isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values)
    if values is None or not is_row or not all(map(isfinite, values)):
        raise ValueError(f"{key} is {values!r:.100}, expected three numbers")
    red, green, blue = map(float, values)
    return red, green, blue

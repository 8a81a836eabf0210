"""What must be known of a vision tower to prepare images for it: the manifest's ``images``."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from edge_llama.errors import ArtifactError

_REMEDY = "convert the checkpoint again"


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """What must be known of a vision tower to prepare images for it.

    ``tile`` is a tile's side in pixels, ``max_tiles`` the most that an image is cut into (the global one not counted),
    ``tokens_per_tile`` the embeddings that one becomes, ``n_embd`` their width, which is the text tower's.
    Pixels of 0 to 1 are normalised by ``mean`` and ``std``, a number each for red, green and blue.
    """

    tile: int
    max_tiles: int
    tokens_per_tile: int
    n_embd: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name, most in (("tile", 4096), ("max_tiles", 256), ("tokens_per_tile", 1 << 16), ("n_embd", 1 << 20)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ArtifactError(f"images: {name} is {value!r}, expected 1 to {most:,}", remedy=_REMEDY)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not _are_three_numbers(values) or (name == "std" and min(values) <= 0):
                raise ArtifactError(
                    f"images: {name} is {values!r}, expected three numbers (std above 0)", remedy=_REMEDY
                )
            object.__setattr__(self, name, tuple(map(float, values)))

    def to_json(self) -> dict[str, Any]:
        """The manifest's ``images``."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: object) -> "VisionSpec":
        """The inverse of :meth:`to_json`; ArtifactError names the field that is missing, unknown or out of range."""
        names = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            raise ArtifactError(f"images: expected the fields {', '.join(sorted(names))}", remedy=_REMEDY)
        return cls(**data)


def _are_three_numbers(values: object) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )

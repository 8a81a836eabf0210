"""Ranges of a graph's values, and the 16-bit numbers that stand for them: a file of JSON between two commands."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import OptionError
from edge_llama.files.json_fields import parse

_SCHEMA = "edge-llama ranges 1"
_MIDDLE, _MOST = 1 << 15, (1 << 16) - 1
LEAST, _FAR = 1e-30, 1e30
"""Magnitudes that float32 can still divide by, and multiply with."""
_MAX_BYTES = 1 << 26
IDENTIFYING = tuple(f"vision.norm_{at}.{part}" for at in ("pre", "post") for part in ("weight", "bias"))
"""Of a vision tower's graph what :func:`fingerprint` is made of."""
_AGAIN = "calibrate again: edge-llama calibrate"


class Code(NamedTuple):
    """A uint16 number ``n`` stands for ``(n - zero_point) * scale``."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, low: float, high: float) -> "Code":
        """The one for values from ``low`` to ``high``, and for 0 exactly.

        With values below 0, the zero point lies in the middle, even if it wastes half of the numbers: OpenVINO 1.8
        multiplies values around any other ten times less exactly.
        """
        zero_point = 0 if low >= 0 else _MIDDLE
        scale = float(np.float32(max(-low, high) / (_MOST - zero_point)))
        return cls(scale if scale > LEAST else 1.0, zero_point)

    def numbers(self, values: "NDArray[Any]") -> NDArray[np.uint16]:
        """``values`` in it, rounded."""
        numbers: NDArray[Any] = np.rint(values / self.scale) + self.zero_point
        return numbers.clip(0, _MOST).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class Ranges:
    """The least and the greatest that each value of a graph was, in float, over ``tiles`` tiles of sample images.

    ``tower`` is the :func:`fingerprint` of the weights.
    """

    tower: str
    tiles: int
    values: Mapping[str, tuple[float, float]]
    path: Path | None = field(default=None, compare=False)
    """The file that they were read from."""

    def encode(self) -> bytes:
        """The file's bytes."""
        values = {name: list(ends) for name, ends in self.values.items()}
        content = {"schema": _SCHEMA, "tower": self.tower, "tiles": self.tiles, "values": values}
        return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"

    def code(self, name: str) -> Code:
        """How the value ``name`` is stored; OptionError if it was not measured."""
        if name not in self.values:
            raise OptionError(f"--ranges {self.path}: {name!r} is missing", remedy=_AGAIN)
        return Code.of(*self.values[name])


def fingerprint(vectors: Iterable[NDArray[np.float32]]) -> str:
    """What tells a tower from every other: its first and its last norm, which training moves with all the rest.

    They are float32 in whatever form the matrices are. 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for vector in vectors:
        digest.update(np.ascontiguousarray(vector, np.float32).tobytes())
    return digest.hexdigest()


def read_ranges(path: Path) -> Ranges:
    """The ranges in the file ``path``; OptionError names what is malformed, or not finite."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES)
    except OSError as error:
        raise OptionError(f"--ranges {path}: cannot be read: {error.strerror}", remedy=_AGAIN) from error
    content = parse(f"--ranges {path}", raw, _AGAIN, error=OptionError)
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise OptionError(f"--ranges {path}: is no {_SCHEMA!r} file", remedy=_AGAIN)
    tower, tiles, values = (content.get(key) for key in ("tower", "tiles", "values"))
    if not (isinstance(tower, str) and type(tiles) is int and isinstance(values, dict)):
        raise OptionError(f"--ranges {path}: tower, tiles or values are missing", remedy=_AGAIN)
    for name, ends in values.items():
        if not _is_range(ends):
            raise OptionError(
                f"--ranges {path}: {name!r:.100} is {ends!r:.100}, expected two finite numbers, the lower first",
                remedy=_AGAIN,
            )
    return Ranges(tower, tiles, {name: (float(low), float(high)) for name, (low, high) in values.items()}, path)


def _is_range(ends: object) -> bool:
    return (
        isinstance(ends, list)
        and len(ends) == 2
        and all(type(end) in (int, float) and abs(end) < _FAR for end in ends)
        and ends[0] <= ends[1]
    )

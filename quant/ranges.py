"""Ranges of a graph's values, and the 16-bit numbers that stand for them: a file of JSON between two commands."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import OptionError
from edge_llama.files.json_fields import parse
from edge_llama.host.regular_files import opened

Kind = Literal["vision", "text"]
_SCHEMAS: Mapping[str, Kind] = {"edge-llama ranges 1": "vision", "edge-llama text ranges 2": "text"}
_COUNTS: Mapping[Kind, str] = {"vision": "tiles", "text": "positions"}
"""What the samples are called that were looked at."""
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


@dataclass(frozen=True, slots=True, eq=False)
class FirstPosition:
    """What the ``token`` with which every text begins says to the others: float32 (layers, KV heads, head_dim)."""

    token: int
    keys: NDArray[np.float32]
    values: NDArray[np.float32]

    def column(self, layer: int, part: str) -> NDArray[np.float32]:
        """As a cache has it, for ``keys`` (KV heads, 1, head_dim, 1), for ``values`` (KV heads, 1, 1, head_dim)."""
        found: NDArray[np.float32] = self.keys[layer] if part == "keys" else self.values[layer]
        return found[:, None, :, None] if part == "keys" else found[:, None, None, :]

    def largest(self, layer: int, part: str) -> float:
        """The largest magnitude in there."""
        return float(np.abs(self.column(layer, part)).max())

    def to_json(self) -> dict[str, Any]:
        """Its numbers in base64."""
        arrays = {"keys": self.keys, "values": self.values}
        numbers = {
            name: base64.b64encode(np.ascontiguousarray(each, "<f4").tobytes()).decode()
            for name, each in arrays.items()
        }
        return {"token": self.token, "shape": list(self.keys.shape), **numbers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FirstPosition":
        """ValueError or KeyError for what :meth:`to_json` never gave."""
        shape = tuple(data["shape"])
        if len(shape) != 3 or any(type(size) is not int or size < 1 for size in (*shape, data["token"] + 1)):
            raise ValueError(f"of the shape {shape}")
        keys, values = (
            np.frombuffer(base64.b64decode(data[name], validate=True), "<f4").reshape(shape)
            for name in ("keys", "values")
        )
        if not (np.isfinite(keys).all() and np.isfinite(values).all()):
            raise ValueError("it is NaN or infinite")
        return cls(data["token"], keys, values)


@dataclass(frozen=True, slots=True)
class Ranges:
    """The least and the greatest that each value of a graph was, in float, over ``count`` tiles of pictures or tokens.

    ``tower`` is the :func:`fingerprint` of the weights.
    """

    tower: str
    count: int
    values: Mapping[str, tuple[float, float]]
    kind: Kind = "vision"
    first: FirstPosition | None = None
    """What is known of position 0 of a text, whose values ``values`` don't hold; None: they do."""
    path: Path | None = field(default=None, compare=False)
    """The file that they were read from."""

    def encode(self) -> bytes:
        """The file's bytes."""
        schema = next(schema for schema, kind in _SCHEMAS.items() if kind == self.kind)
        content: dict[str, Any] = {"schema": schema, "tower": self.tower, _COUNTS[self.kind]: self.count}
        if self.kind == "text":
            content["first"] = self.first and self.first.to_json()
        content["values"] = {name: list(ends) for name, ends in self.values.items()}
        return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"

    def ends(self, name: str) -> tuple[float, float]:
        """The least and the greatest of the value ``name``; OptionError if it was not measured."""
        if name not in self.values:
            raise OptionError(f"--calibration {self.path}: {name!r} is missing", remedy=_AGAIN)
        return self.values[name]

    def code(self, name: str) -> Code:
        """How the value ``name`` is stored; OptionError if it was not measured."""
        return Code.of(*self.ends(name))


def fingerprint(vectors: Iterable[NDArray[np.float32]]) -> str:
    """What tells a tower from every other: 64 hexadecimal digits of ``vectors`` that training moves.

    Of a vision tower they are its first and its last norm, which are float32 in whatever form its matrices are.
    """
    digest = hashlib.sha256()
    for vector in vectors:
        digest.update(np.ascontiguousarray(vector, np.float32).tobytes())
    return digest.hexdigest()


def read_ranges(path: Path) -> Ranges:
    """The ranges in the file ``path``; OptionError names what is malformed, or not finite."""
    try:
        with opened(path) as file:
            raw = file.read(_MAX_BYTES)
    except OSError as error:
        raise OptionError(f"--calibration {path}: cannot be read: {error.strerror}", remedy=_AGAIN) from error
    content = parse(f"--calibration {path}", raw, _AGAIN, error=OptionError)
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, str) or schema not in _SCHEMAS:
        known = " and no ".join(map(repr, _SCHEMAS))
        raise OptionError(f"--calibration {path}: is no {known} file", remedy=_AGAIN)
    kind = _SCHEMAS[schema]
    tower, count, values = (content.get(key) for key in ("tower", _COUNTS[kind], "values"))
    if not (isinstance(tower, str) and type(count) is int and isinstance(values, dict)):
        raise OptionError(f"--calibration {path}: tower, {_COUNTS[kind]} or values are missing", remedy=_AGAIN)
    for name, ends in values.items():
        if not _is_range(ends):
            raise OptionError(
                f"--calibration {path}: {name!r:.100} is {ends!r:.100}, expected two finite numbers, the lower first",
                remedy=_AGAIN,
            )
    try:
        first = FirstPosition.from_json(content["first"]) if content.get("first") else None
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise OptionError(f"--calibration {path}: 'first' is damaged: {error}", remedy=_AGAIN) from error
    return Ranges(
        tower, count, {name: (float(low), float(high)) for name, (low, high) in values.items()}, kind, first, path
    )


def _is_range(ends: object) -> bool:
    return (
        isinstance(ends, list)
        and len(ends) == 2
        and all(type(end) in (int, float) and abs(end) < _FAR for end in ends)
        and ends[0] <= ends[1]
    )

"""The form of a family's tables: a row for each tensor, and a row for each field of its config.json.

Weights, shapes, what is left over, both directions between Hugging Face and GGUF, and the metadata follow from them
(:mod:`converters.architectures.family`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from converters.architectures.hyperparameters import Hyperparameters
from converters.tensors.views import PLAIN, View
from edge_llama.files.gguf import Header, Value, boolean, f32, shortest, string, u32
from edge_llama.files.json_fields import Fields

Values = Mapping[str, Any]
"""Fields of :class:`Hyperparameters` that are known so far."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a field is read from JSON (with what it is if absent), and put into and taken out of GGUF metadata."""

    read: Callable[[Fields, str, Any], Any]
    pack: Callable[[Any], Value]
    unpack: Callable[[Header, str], Any]


def _flag(fields: Fields, key: str, default: Any) -> bool:
    return fields.flag(key) if fields.content.get(key) is not None else bool(default)


def _optional(fields: Fields, key: str, default: Any) -> int | None:
    return default if fields.content.get(key) is None else fields.size(key)


def _text(fields: Fields, key: str, default: Any) -> str:
    value: str = fields.get(key, str, default)
    return value


SIZE = Kind(Fields.size, u32, lambda header, key: header.get(key, int, 0))
REAL = Kind(Fields.real, f32, lambda header, key: shortest(header.get(key, float, 0.0)))
FLAG = Kind(_flag, boolean, lambda header, key: header.get(key, bool, False))
TEXT = Kind(_text, string, lambda header, key: header.get(key, str, ""))
OPTIONAL = Kind(_optional, u32, lambda header, key: header.get(key, int, 0) or None)
"""A size, or null."""


@dataclass(frozen=True, slots=True)
class HParam:
    """A field of a config.json.

    ``field`` of :class:`Hyperparameters` is what config.json says under ``key``; ``default`` if that is absent
    (``null`` if it is null, and that means something else): a value, or a function of the fields before it; None: it
    must be there. ``gguf`` are its keys in GGUF, after the architecture's name; ``given``: llama.cpp's converter writes
    them only where config.json has the field. ``tensor``: one whose presence in GGUF tells a flag. ``check`` says what
    is wrong with its value, or nothing, from the fields so far and config.json.
    """

    field: str
    key: str
    gguf: tuple[str, ...] = ()
    kind: Kind = SIZE
    default: Any = None
    check: Callable[[Values, Mapping[str, Any]], str] | None = None
    given: bool = False
    tensor: str = ""
    null: Any = None

    def fallback(self, values: Values, *, is_null: bool = False) -> Any:
        """Its value where none is given."""
        default = self.default if self.null is None or not is_null else self.null
        return default(values) if callable(default) else default


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a layer, or outside the layers.

    ``gguf`` and ``hf`` are its names after ``blk.N.`` and ``model.layers.N.``; ``role`` is what recipes ask; ``shape``
    are sizes of :class:`Hyperparameters`, rows first; ``when`` says which models and layers have it; ``view`` how it
    lies elsewhere than in the tower.
    """

    gguf: str
    hf: str
    role: str
    shape: tuple[str, ...]
    when: Callable[[Hyperparameters, int], bool] = lambda _hp, _layer: True
    view: View = PLAIN

    def sizes(self, hp: Hyperparameters) -> tuple[int, ...]:
        """The shape in numbers."""
        return tuple(getattr(hp, name) for name in self.shape)


@dataclass(frozen=True, slots=True)
class Limit:
    """What a target can express of a field: ``holds`` if a model is within it; ``only`` says what can be, in words.

    ``keys``: where config.json may say it; the first that says something is named.
    """

    keys: tuple[str, ...]
    holds: Callable[[Hyperparameters], bool]
    only: str


def same(field: str) -> Callable[[Values], Any]:
    """A default: the value of another field."""
    return lambda values: values[field]


def one_of(field: str, *known: str) -> Callable[[Values, Mapping[str, Any]], str]:
    """A check: the text is one of these."""

    def check(values: Values, _config: Mapping[str, Any]) -> str:
        return "" if values[field] in known else f"is {values[field]!r}, expected {known[0]!r}"

    return check

"""The parity certificate: what was measured of a model beside the checkpoint that it was converted from, as JSON.

It says of which file it is (``subject``), of which weights (``source_sha256``), by which texts, and every number that
was found. It does not say who measured: whoever can write the file can write another certificate into it, so numbers
are measured again (``verify --reference``), and who vouches for a file signs it with tools of their own.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edge_llama.errors import OutputError
from edge_llama.fidelity.comparison import Summary
from edge_llama.files.json_fields import Fields, parse_object

SCHEMA = "edge-llama parity certificate"
VERSION = 1
_AGAIN = "convert the checkpoint again with --certify"
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Part:
    """How far a part of the model is from the checkpoint's: 0 is equal, 1 as far as if it were not there.

    ``expected`` is what its formats' rounding alone gives.
    """

    name: str
    """``layer 3``, ``embedding``, ``head``."""
    error: float
    expected: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """What was measured on texts; divergences in nats, ``top1`` from 0 to 1."""

    n_ctx: int
    """Tokens of a chunk."""
    n_tokens: int
    """Tokens that were scored."""
    kl: float
    kl_median: float
    kl_99: float
    kl_max: float
    top1: float
    perplexity: float
    perplexity_reference: float
    ratio: float
    """The one divided by the other."""

    @classmethod
    def of(cls, summary: Summary, n_ctx: int) -> "Numbers":
        """Of a summary that has a reference."""
        found = (summary.kl, summary.top1, summary.perplexity_reference, summary.ratio)
        quantiles = (summary.kl_median, summary.kl_99, summary.kl_max)
        if None in found or None in quantiles:
            raise ValueError("a summary without a reference")
        kl, top1, reference, ratio = (each.value for each in found if each)
        median, high, most = (each for each in quantiles if each is not None)
        return cls(*(n_ctx, summary.n_tokens, kl, median, high, most, top1, summary.perplexity.value, reference, ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """All of it. Hashes are SHA-256 in 64 hexadecimal digits."""

    subject: str
    """Of the file or bundle as it is without a certificate."""
    source: str
    """What the checkpoint was called."""
    source_sha256: str
    """Of the weights that were compared, by name, shape and content, however they lie in files."""
    recipe: str
    calibration: tuple[str, ...] = ()
    """Of the files that the conversion was given as evidence."""
    evaluation: str
    """Of the texts."""
    engine: str
    """What computed the model's logits."""
    numbers: Numbers
    engine_kl: float | None = None
    """How far the engine's logits are, in nats, from those that the file's own weights give in float32.

    On the first chunk. None where the weights can't be read back.
    """
    layers: tuple[Part, ...] = ()
    """Of each layer, on the input that the checkpoint's has."""
    components: tuple[Part, ...] = ()
    """What is outside the layers."""
    vision: tuple[float, ...] = ()
    """The relative error of the vision tower's features for each of some tiles; empty where there is no such tower."""
    not_located: str = ""
    """Why there are neither; empty where there are."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """By package."""

    def to_json(self) -> dict[str, Any]:
        """Its content, beginning with schema and version."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "subject": self.subject,
            "source": {"name": self.source, "weights_sha256": self.source_sha256},
            "recipe": self.recipe,
            "calibration": list(self.calibration),
            "evaluation": self.evaluation,
            "engine": self.engine,
            "numbers": {each.name: getattr(self.numbers, each.name) for each in fields(Numbers)},
            "engine_kl": self.engine_kl,
            "layers": [_described(part) for part in self.layers],
            "components": [_described(part) for part in self.components],
            "vision": list(self.vision),
            "not_located": self.not_located,
            "versions": dict(self.versions),
        }

    def encode(self, most: int) -> bytes:
        """UTF-8 of at most ``most`` bytes; OutputError if it needs more, or a number is none."""
        try:
            raw = json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except ValueError as error:
            raise OutputError(f"a certificate of {self.source}: {error}", remedy="verify the checkpoint") from error
        if len(raw) > most:
            raise OutputError(
                f"a certificate of {self.source} takes {len(raw):,} bytes, there is room for {most:,}",
                remedy="give the checkpoint's folder a shorter name, or convert without --certify",
            )
        return raw


def _described(part: Part) -> dict[str, Any]:
    return {"name": part.name, "error": part.error, "expected": part.expected}


def decode(where: Path | str, raw: bytes) -> Certificate:
    """The certificate in ``raw``; ArtifactError names what is malformed, unknown, or of a later version."""
    return from_json(where, parse_object(f"{where}: certificate", raw, _AGAIN))


def from_json(where: Path | str, content: Mapping[str, Any]) -> Certificate:
    """The same of parsed JSON."""
    reader = Fields(f"{where}: certificate", content, _AGAIN)
    if reader.get("schema", str) != SCHEMA:
        raise reader.fail("schema", f"is {content['schema']!r:.100}, expected {SCHEMA!r}")
    version = reader.get("version", int)
    if version != VERSION:
        later = "it is newer: update edge-llama" if version > VERSION else ""
        raise reader.fail("version", f"is {version}, this version of edge-llama reads {VERSION}", later)
    empty = Certificate(subject="", source="", source_sha256="", recipe="", evaluation="", engine="", numbers=_NOTHING)
    _check_known(reader, empty.to_json())
    source = _only(reader, "source", ("name", "weights_sha256"))
    return Certificate(
        subject=_sha256(reader, "subject"),
        source=source.get("name", str),
        source_sha256=_sha256(source, "weights_sha256"),
        recipe=reader.get("recipe", str),
        calibration=tuple(_texts(reader, "calibration")),
        evaluation=_sha256(reader, "evaluation"),
        engine=reader.get("engine", str),
        numbers=_numbers(_only(reader, "numbers", tuple(each.name for each in fields(Numbers)))),
        engine_kl=None if content.get("engine_kl") is None else _real(reader, "engine_kl"),
        layers=_parts(reader, "layers"),
        components=_parts(reader, "components"),
        vision=_errors(reader, "vision"),
        not_located=reader.get("not_located", str),
        versions=_versions(reader),
    )


_NOTHING = Numbers(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def _check_known(reader: Fields, known: Mapping[str, Any] | tuple[str, ...]) -> None:
    """What isn't known may be what decides: nothing is read past."""
    if unknown := sorted(set(reader.content) - set(known)):
        raise reader.fail(f"{unknown[0][:100]!r}", "is no field that this version knows", "update edge-llama")


def _only(reader: Fields, key: str, names: tuple[str, ...]) -> Fields:
    inner = replace(reader, content=reader.get(key, dict), called=f"{reader.called}{key}.")
    _check_known(inner, names)
    return inner


def _sha256(reader: Fields, key: str) -> str:
    value: str = reader.get(key, str)
    if len(value) != 64 or set(value) - _HEX:
        raise reader.fail(key, f"is {value!r:.100}, expected 64 hexadecimal digits")
    return value


def _texts(reader: Fields, key: str) -> list[str]:
    values: list[str] = reader.get(key, list)
    if wrong := next((value for value in values if not isinstance(value, str)), None):
        raise reader.fail(key, f"has {wrong!r:.100}, expected texts")
    return values


def _errors(reader: Fields, key: str) -> tuple[float, ...]:
    values = enumerate(reader.get(key, list))
    inner = replace(reader, content={str(number): value for number, value in values}, called=f"{reader.called}{key}.")
    return tuple(_real(inner, number) for number in inner.content)


def _versions(reader: Fields) -> dict[str, str]:
    found: dict[str, str] = reader.get("versions", dict)
    for name, value in found.items():
        if not isinstance(value, str):
            raise reader.fail(f"versions.{name[:100]}", f"is {value!r:.100}, expected a text")
    return found


def _numbers(reader: Fields) -> Numbers:
    n_ctx, n_tokens = reader.count("n_ctx", 1 << 32), reader.count("n_tokens", 1 << 62)
    return Numbers(n_ctx, n_tokens, *(_real(reader, each.name) for each in fields(Numbers)[2:]))


def _real(reader: Fields, key: str) -> float:
    value = reader.content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise reader.fail(key, f"is {value!r:.100}, expected a number")
    return float(value)


def _parts(reader: Fields, key: str) -> tuple[Part, ...]:
    found = []
    for number, entry in enumerate(reader.get(key, list)):
        if not isinstance(entry, dict):
            raise reader.fail(f"{key}[{number}]", f"is {entry!r:.100}, expected an object")
        inner = replace(reader, content=entry, called=f"{key}[{number}].")
        _check_known(inner, ("name", "error", "expected"))
        found.append(Part(inner.get("name", str), _real(inner, "error"), _real(inner, "expected")))
    return tuple(found)

"""Sampling settings as text: what ``/set`` reads and shows. Any field of SamplingParams is one."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from edge_llama.cli import options
from edge_llama.errors import OptionError
from edge_llama.sampling.params import SamplingParams

NAMES = tuple(field.name for field in fields(SamplingParams))
FILES = ("json_schema", "grammar")
"""Settings that are read from a file."""
_REALS = {field.name for field in fields(SamplingParams) if field.type is float}
_SHOWN = 60


def check_name(name: str) -> None:
    """OptionError if there is no such setting."""
    if name not in NAMES:
        raise OptionError(f"/set {name}: unknown", remedy=f"known: {', '.join(NAMES)}")


def parse(name: str, text: str) -> Any:
    """What ``text`` means for the setting; OptionError if it can't be read."""
    where = f"/set {name}"
    if name == "logit_bias":
        return options.biases(text.replace(",", " ").split(), where)
    if name == "stop":
        return _stops(text, where)
    if name == "json_schema":
        is_json = text.startswith("{") or text in ("true", "false")
        return options.parse_schema(text, where) if is_json else options.read_schema(_path(text), where)
    if name == "grammar":
        return options.read_text(_path(text), where)
    return text if name == "regex" else _number(name, text, where)


def _number(name: str, text: str, where: str) -> int | float:
    try:
        return float(text) if name in _REALS else int(text)
    except ValueError as error:
        kind = "a number" if name in _REALS else "a whole number"
        raise OptionError(f"{where} {text}: expected {kind}", remedy="- takes the default") from error


def _stops(text: str, where: str) -> tuple[str, ...]:
    """One string as it is, or JSON: ``"a"``, ``["a", "b"]``."""
    value = options.parse_schema(text, where) if text.startswith(("[", '"')) else text
    return tuple(value) if isinstance(value, list) else (value,)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~nobody
        return Path(text)


def table(sampling: SamplingParams, given: Mapping[str, Any]) -> str:
    """All settings, one a line; those that the user gave are marked."""
    return "\n".join(f"{'*' if name in given else ' '} {name:20}{shown(getattr(sampling, name))}" for name in NAMES)


def shown(value: Any) -> str:
    """A value in few characters; ``-`` where there is none."""
    if value is None or value == ():
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

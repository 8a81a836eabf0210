"""Sampling settings as text: what ``/set`` reads and shows. Any option that people may write is one."""

import json
from collections.abc import Mapping
from typing import Any

from edge_llama.errors import OptionError
from edge_llama.sampling.params import OPTION_TEXTS, SamplingParams

NAMES = tuple(OPTION_TEXTS)
FILES = tuple(name for name, text in OPTION_TEXTS.items() if text.is_file)
"""Settings that are read from a file."""
_SHOWN = 60


def check_name(name: str) -> None:
    """OptionError if there is no such setting."""
    if name not in NAMES:
        raise OptionError(f"/set {name}: unknown", remedy=f"known: {', '.join(NAMES)}")


def parse(name: str, line: str) -> Any:
    """What ``line`` means for the setting; OptionError if it can't be read."""
    return OPTION_TEXTS[name].from_line(line, f"/set {name}")


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

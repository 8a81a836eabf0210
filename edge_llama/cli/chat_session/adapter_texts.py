"""How a person writes adapters: ``--adapter [NAME=]FILE[@WEIGHT]`` and ``/adapter NAME[@WEIGHT]``."""

import re
from collections.abc import Sequence
from pathlib import Path

from edge_llama.errors import OptionError

_OF_PATHS = r"\/.:"
"""What no name holds, so that a path with = in it is told from one with a name before it."""


def parse(texts: Sequence[str] | None) -> tuple[dict[str, str], dict[str, float]]:
    """Files and weights by name, of ``[NAME=]FILE[@WEIGHT]`` each. OptionError for two of a name.

    What is before = is a name if nothing in it could belong to a path, and what is after the last @ a weight if it is a
    number. Without a name it is the file's, without its ending.
    """
    files: dict[str, str] = {}
    weights: dict[str, float] = {}
    for text in texts or ():
        name, given, path = text.partition("=")
        if not given or not name or any(each in name for each in _OF_PATHS):
            name, path = "", text
        path, weight = weighted(path)
        name = name or Path(re.split(r"[\\/]", path)[-1]).stem
        if not path or not name or name in files:
            problem = f"two are called {name!r}" if name in files else "expected [NAME=]FILE[@WEIGHT]"
            raise OptionError(f"--adapter {text}: {problem}", remedy="for example --adapter legal=legal.gguf@0.5")
        files[name], weights[name] = path, weight
    return files, weights


def weighted(text: str) -> tuple[str, float]:
    """``NAME@0.5`` as its two parts; without a number there the weight is 1."""
    before, _, number = text.rpartition("@")
    try:
        return (before, float(number)) if before else (text, 1.0)
    except ValueError:
        return text, 1.0

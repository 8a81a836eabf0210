"""Text about this machine that may be shown to others: without whose it is, and where on it things lie."""

import getpass
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

_VARIABLES = (
    "EDGE_LLAMA_CACHE",
    "EDGE_LLAMA_HISTORY",
    "EDGE_LLAMA_MODEL",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "LOCALAPPDATA",
    "APPDATA",
)
"""Whose values are places of the user's own choice: their names stand for them."""
_NO_NAMES = ("localhost", "")


def anonymous(text: str) -> str:
    """``text`` with the home folder as ``~``, Python's as ``PREFIX``, places that variables name as ``$NAME``.

    The user's name becomes USER and the machine's HOST wherever they stand alone: as a word, or a part of a path.
    """
    for place, name in _places(tuple(os.environ.get(variable, "") for variable in _VARIABLES)).items():
        text = re.sub(rf"{re.escape(place)}(?![\w.-])", lambda _, name=name: name, text)  # type: ignore[misc] # as re.sub wants
    for own, name in _names():
        text = re.sub(rf"(?<![\w.-]){re.escape(own)}(?![\w.-])", name, text, flags=re.IGNORECASE)
    return text


@cache
def _places(values: tuple[str, ...]) -> Mapping[str, str]:
    """What each of them is called, the longest first: what lies within another has its own name."""
    named = {value: f"${name}" for value, name in zip(values, _VARIABLES, strict=True) if Path(value).is_absolute()}
    found = {**dict(_homes()), sys.prefix: "PREFIX", **named}
    both = {form: name for place, name in found.items() for form in (place, _real(place))}
    return {place: both[place] for place in sorted(both, key=len, reverse=True) if len(place) > len("C:\\")}


def _homes() -> Iterator[tuple[str, str]]:
    try:
        yield str(Path.home()), "~"
    except RuntimeError:  # nobody's home is known
        return


def _real(place: str) -> str:
    return os.path.realpath(place) if place else ""


@cache
def _names() -> tuple[tuple[str, str], ...]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a number that nobody has
        user = ""
    host = platform.node()
    found = ((user, "USER"), (host, "HOST"), (host.partition(".")[0], "HOST"))
    return tuple((own, name) for own, name in found if own.lower() not in _NO_NAMES)

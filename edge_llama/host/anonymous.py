"""Text about this machine that may be shown to others: without whose it is, and where on it things lie."""

import getpass
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

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
_USER = "USER"
_END = r"(?![\w-]|\.\w)"
"""After a place or a name: not in the middle of another, nor before a suffix; a full stop may follow."""
_END_OF_HOST = r"(?![\w-])"
"""A domain may follow."""


def anonymous(text: str) -> str:
    """``text`` with the home folder as ``~``, Python's as ``PREFIX``, places that variables name as ``$NAME``.

    Other folders that Python imports from are ``SITE``.

    The user's name becomes USER and the machine's HOST wherever they stand alone: as a word, or a part of a path.
    """
    for place, name in _places(tuple(os.environ.get(variable, "") for variable in _VARIABLES)).items():
        text = re.sub(f"{re.escape(place)}{_END}", name, text)
    for own, name in _names():
        text = re.sub(rf"(?<![\w.-]){re.escape(own)}{_END if name == _USER else _END_OF_HOST}", name, text, flags=re.I)
    return text


@cache
def _places(values: tuple[str, ...]) -> Mapping[str, str]:
    """What each place is called, the longest first: what lies within another has its own name."""
    named = {value: f"${name}" for value, name in zip(values, _VARIABLES, strict=True) if Path(value).is_absolute()}
    found = {**dict.fromkeys(filter(os.path.isabs, sys.path), "SITE"), **dict(_homes()), sys.prefix: "PREFIX", **named}
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
    host = platform.node()
    found = [(name, _USER) for name in _users()] + [(host, "HOST"), (host.partition(".")[0], "HOST")]
    return tuple((own, name) for own, name in dict.fromkeys(found) if own.lower() not in _NO_NAMES)


def _users() -> Iterator[str]:
    """What this person is called: by the environment, by the system, and before sudo."""
    with suppress(OSError, KeyError, ImportError):  # a number that nobody has
        yield getpass.getuser()
    with suppress(psutil.Error, KeyError):
        yield psutil.Process().username().rpartition("\\")[2]  # behind a domain
    yield os.environ.get("SUDO_USER", "")

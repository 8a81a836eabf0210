"""What Tab offers in a chat: names of commands, what may follow them, and paths, also in quotes or with spaces."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edge_llama.cli.chat_session.commands import PATH, Command

_ESCAPED = re.compile(r"\\(.)")
_TO_ESCAPE = re.compile(r"""([\s\\'"])""")


@dataclass(frozen=True, slots=True)
class Candidate:
    """``text`` goes in place of the last ``replaced`` characters; where there are several, ``shown`` is listed."""

    text: str
    replaced: int
    shown: str


def candidates(line: str, commands: Mapping[str, Command]) -> Iterator[Candidate]:
    """What may stand at the end of ``line``, where that belongs to a command."""
    name, space, rest = line.partition(" ")
    if not name.startswith("/"):
        return
    if not space:
        yield from _beginning_with(name, commands)
    elif command := commands.get(name):
        values = list(command.values(""))
        first, space, last = rest.partition(" ")
        word = rest
        if space and PATH not in values:  # a path may have spaces itself
            values, word = list(command.values(first)), last
        yield from _beginning_with(word, [value for value in values if value != PATH])
        if PATH in values:
            yield from _paths(word)


def _beginning_with(word: str, values: Iterable[str]) -> Iterator[Candidate]:
    return (Candidate(value, len(word), value) for value in values if value.startswith(word))


def _paths(word: str) -> Iterator[Candidate]:
    """Files and folders: after a quote up to the next one, with backslashes where there is one, else as they are."""
    quote = word[:1] if word.startswith(("'", '"')) else ""
    typed = word[len(quote) :]
    is_escaped = not quote and os.sep != "\\" and "\\" in typed
    folder, prefix = os.path.split(_at_home(_ESCAPED.sub(r"\1", typed) if is_escaped else typed))
    for name, is_folder in _entries(folder or os.curdir):
        is_hidden = name.startswith(".") and not prefix
        if is_hidden or (quote and quote in name) or not os.path.normcase(name).startswith(os.path.normcase(prefix)):
            continue
        rest = name[len(prefix) :]
        ending = os.sep if is_folder else quote
        yield Candidate((_TO_ESCAPE.sub(r"\\\1", rest) if is_escaped else rest) + ending, 0, name + os.sep * is_folder)


def _at_home(text: str) -> str:
    return os.path.expanduser(text)  # noqa: PTH111 - a Path has no slash at its end


def _entries(folder: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as found:
            return sorted((entry.name, entry.is_dir()) for entry in found)
    except (OSError, ValueError):  # no folder, or no name for one
        return []

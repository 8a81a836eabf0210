"""How a person writes an option: on the command line, and in a chat by ``/set``.

Each field of :class:`edge_llama.sampling.params.SamplingParams` that people may set carries an :class:`OptionText`, and
so do the options of :func:`edge_llama.open`; the command line's options and their help follow from it.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_llama.errors import OptionError
from edge_llama.host.regular_files import text_of

_SCHEMA_WORDS = ("true", "false")


def _as_given(given: Any, _where: str) -> Any:
    return given


def _one(line: str, _where: str) -> Sequence[str]:
    return (line,)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionText:
    """How one option is written. ``help`` is for people; ``metavar`` names the value where its kind doesn't say it."""

    help: str
    kind: type[int] | type[float] | type[str] | type[Path] | type[bool] = str
    """What one text stands for; bool: the option stands alone."""
    metavar: str | None = None
    is_repeated: bool = False
    """On the command line it may be given several times; :attr:`parse` takes all of them."""
    is_file: bool = False
    """The text is a file's, which is given by its path."""
    parse: Callable[[Any, str], Any] = _as_given
    """``parse(given, where)``: the option's value; OptionError, which names ``where``."""
    split: Callable[[str, str], Sequence[Any]] = _one
    """``split(line, where)``: what one line gives to an option that may be repeated."""
    is_inline: Callable[[str], bool] = lambda _line: False
    """Whether a line is the text itself and not the path of a file with it."""

    def from_command_line(self, given: Any, where: str) -> Any:
        """The value of what the command line's parser gave: a path, a list if it may be repeated, or one of its kind.

        OptionError if a file or its text can't be read.
        """
        if self.is_file and not self.is_inline(str(given)):
            return self.parse(read_text(given, where), f"{where} {given}")
        return self.parse(str(given) if self.is_file else given, where)

    def from_line(self, line: str, where: str) -> Any:
        """The value that ``line`` means; OptionError if it means none."""
        if self.is_repeated:
            return self.parse(self.split(line, where), where)
        if self.is_file and not self.is_inline(line):
            return self.from_command_line(_expanded(line), where)
        return self.parse(self._of_kind(line, where), where)

    def _of_kind(self, line: str, where: str) -> int | float | str | Path:
        try:
            return self.kind(line)
        except ValueError as error:
            kind = "a number" if self.kind is float else "a whole number"
            raise OptionError(f"{where} {line}: expected {kind}", remedy="- takes the default") from error


def read_text(path: Path, where: str) -> str:
    """The text of a file, UTF-8 with or without a byte order mark; OptionError if it can't be read."""
    try:
        return text_of(path, "utf-8-sig", may_be_piped=True)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{where} {path}: cannot be read: {error}") from error


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~nobody
        return Path(text)


def parse_json(text: str, where: str) -> Any:
    """JSON; OptionError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{where}: not JSON: {error}") from error


def is_schema(line: str) -> bool:
    """Whether a line is a JSON schema itself."""
    return line.startswith("{") or line in _SCHEMA_WORDS


def is_name(line: str) -> bool:
    """Whether a line is a plain word, and no file is called so."""
    return line.isidentifier() and not Path(line).exists()


def parse_biases(given: Iterable[str], where: str) -> dict[int, float]:
    """What ``ID=VALUE`` texts say; OptionError for others."""
    found: dict[int, float] = {}
    for text in given:
        token, _, value = text.partition("=")
        try:
            found[int(token)] = float(value)
        except ValueError as error:
            raise OptionError(f"{where} {text}: expected ID=VALUE", remedy="for example 42=-3.5") from error
    return found


def split_biases(line: str, _where: str) -> list[str]:
    """``42=-3.5, 7=1`` as two texts; blanks separate too."""
    return line.replace(",", " ").split()


def split_stops(line: str, where: str) -> tuple[Any, ...]:
    """One stop string as it is, or JSON: ``"a"``, ``["a", "b"]``."""
    value = parse_json(line, where) if line.startswith(("[", '"')) else line
    return tuple(value) if isinstance(value, list) else (value,)


def parse_on_or_off(word: str, where: str) -> bool:
    """What ``on`` and ``off`` say; OptionError for another word."""
    if word not in ("on", "off"):
        raise OptionError(f"{where} {word}: unknown", remedy="on or off")
    return word == "on"

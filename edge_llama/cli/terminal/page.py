"""Lines of a terminal, wrapped between words: text is only ever appended, so nothing on the screen can be damaged.

What moves the cursor back to draw again (a live display) loses count when the window is resized, and then erases or
repeats what is above it. Here each word is written once.
"""

import os
import sys
from collections.abc import Iterator

from rich.cells import cell_len, get_character_cell_size, split_graphemes
from rich.console import Console
from rich.text import Text

_JOINER = "\u200d"
_CLOSING = frozenset("、。，．！？：；）」』】〉》・ー…”’)]}.,!?:;")
"""Never at the beginning of a line."""


def width_of(console: Console) -> int:
    """Columns of the window at this moment; 80 if it does not say. Never less than 10."""
    try:
        return max(10, os.get_terminal_size(console.file.fileno()).columns or 80)
    except (OSError, ValueError):
        return 80


def terminal_console() -> Console:
    """A console that writes to stdout what it is given, as it is."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def may_break(before: str, after: str) -> bool:
    """Whether a line may end between these two characters."""
    if after.isspace() or not get_character_cell_size(after) or before == _JOINER:
        return False
    if before.isspace():
        return True
    return after not in _CLOSING and 2 in (get_character_cell_size(before), get_character_cell_size(after))


class Page:
    """Writes styled text, and wraps it at the width that the window has at that moment."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0
        self._space = ""
        self._indent = 0

    def begin(self, prefix: Text, *, hanging: bool) -> None:
        """Begin a line; ``hanging``: those that it is wrapped into are indented by as much."""
        limit = width_of(self._console) // 2
        cells = cell_len(prefix.plain)
        self._put(prefix, cells)
        self._indent = min(cells, limit) if hanging else 0

    def words(self, text: Text) -> None:
        """Go on with text that has no line breaks."""
        for start, end in _units(text.plain):
            unit = text.plain[start:end]
            if unit.isspace():
                self._space += unit.expandtabs(4)
            else:
                self._word(text[start:end], cell_len(unit))

    def raw(self, text: Text) -> None:
        """A line as it is, which the terminal itself folds: what is copied from there has no breaks of ours."""
        self._put(text, cell_len(text.plain))
        self.end()

    def end(self) -> None:
        """End the line."""
        self._console.file.write("\n")
        self._console.file.flush()
        self._column, self._space, self._indent = 0, "", 0

    def _word(self, word: Text, cells: int) -> None:
        width = width_of(self._console)
        if self._column > self._indent and self._column + len(self._space) + cells > width:
            indent = self._indent
            self.end()
            self._put(Text(" " * indent), indent)
            self._indent = indent
        elif self._space:
            self._put(Text(self._space), len(self._space))
        self._space = ""
        self._put(word, cells)

    def _put(self, text: Text, cells: int) -> None:
        if not text.plain:
            return
        self._console.print(text, end="", soft_wrap=True)
        # A word longer than a line is folded by the terminal; after its last column the cursor waits there.
        width = width_of(self._console)
        self._column = (self._column + cells - 1) % width + 1


def _units(text: str) -> Iterator[tuple[int, int]]:
    """Where words, spaces, and characters that need no space between them begin and end."""
    start = 0
    for begin, _end, _cells in split_graphemes(text)[0]:
        before = text[begin - 1 : begin]
        if before and (may_break(before, text[begin]) or (text[begin].isspace() and not before.isspace())):
            yield start, begin
            start = begin
    if start < len(text):
        yield start, len(text)

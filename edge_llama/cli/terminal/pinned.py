"""Columns that stand below each other in every terminal, also where it and we disagree on how wide an emoji is.

By Unicode's letter a heart with a variation selector, a family that is joined, a hand with a skin tone take two cells;
tmux 3.3 gives them one, two and four, terminals that join nothing a family six. So a table keeps room for the most
that any takes, and after such letters the cursor is told its column (CHA): it goes forwards alone, and nothing is
overwritten.
"""

import re
from collections.abc import Iterator

from rich.cells import cell_len, get_character_cell_size, split_graphemes
from rich.text import Span, Text

_UNSURE = re.compile("[\u200d\ufe0f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")
"""Joiner, emoji variant, letters of flags, skin tones: what decides on the width of what stands before or after."""
_TONES = range(0x1F3FB, 0x1F400)
_ROOM = "\ufdd0"
"""Stands for a cell that some terminals need; it is never shown: a noncharacter, which no text has."""
_APART = re.compile(rf"(\x1b\[[\d;]*m|{_ROOM})")
"""What is no letter: a style, or room."""


def with_room(text: Text) -> Text:
    """``text`` with as many cells after each letter as any terminal might take for it; for :func:`pinned`."""
    if not _UNSURE.search(text.plain):
        return text
    roomy, needed = Text(style=text.style), 0
    for start, end, cells in split_graphemes(text.plain)[0]:
        most = max(cells, sum(map(_cells, text.plain[start:end])))
        letter = text[start:end]
        # One style for all of it: parts of what is joined would be measured each by itself.
        letter.spans = [Span(0, end - start, span.style) for span in letter.spans if span.start == 0]
        roomy.append_text(letter)
        roomy.append(_ROOM * (most - cells))
        needed += most
    roomy.append(_ROOM * (needed - cell_len(roomy.plain)))  # rich counts no letter after a joiner that joins nothing
    return roomy


def _cells(char: str) -> int:
    return 2 if ord(char) in _TONES else get_character_cell_size(char)


def pinned(text: str, width: int) -> str:
    """Lines for a terminal of ``width`` columns, which have no escapes but styles, with columns where they matter."""
    return "\n".join(_pinned(line, width) if _UNSURE.search(line) else line for line in text.split("\n"))


def _pinned(line: str, width: int) -> str:
    out, column, is_sure = "", 0, True
    for part, cells in _parts(line):
        is_unsure = bool(_UNSURE.search(part))
        if not is_sure and not is_unsure and part != _ROOM and column < width:
            out += f"\x1b[{column + 1}G"
            is_sure = True
        out += "" if part == _ROOM else part
        column += cells
        is_sure = is_sure and not is_unsure
    return out


def _parts(line: str) -> Iterator[tuple[str, int]]:
    """Styles, which take no cells, room, which takes one, and letters as they are seen."""
    for at, text in enumerate(_APART.split(line)):
        if at % 2:
            yield text, int(text == _ROOM)
        else:
            yield from ((text[start:end], cell_len(text[start:end])) for start, end, _ in split_graphemes(text)[0])

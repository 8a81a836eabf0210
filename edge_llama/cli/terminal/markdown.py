"""Markdown as it is written: each word is shown, once and for good, as soon as its style is settled.

Lines are the unit: a line break in an answer stays one. Held back until they are complete are only what is between
two marks (``**bold``), the beginning of a line that may become several things (``-``), a line of code, and a table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from edge_llama.cli.terminal.escapes import harmless
from edge_llama.cli.terminal.page import Page, may_break, width_of
from edge_llama.cli.terminal.pinned import pinned, with_room

_UNDECIDED = re.compile(r"[\s>]*(?:[-*_=+#`~\s]*|\d{1,9}[.)]?\s*)")
"""Beginnings of lines that may become several things."""
_WHOLE = re.compile(r"\s*(?:```|~~~|\|)")
"""Fences and rows of tables: taken a line at a time."""
_INDENTED = re.compile(r" {4}|\t")
"""Code without fences, unless it is in a list."""
_FENCE = re.compile(r"(?P<indent>\s*)(?P<mark>`{3,}(?=[^`]*$)|~{3,})\s*(?P<language>[\w+#.-]*).*")
_RULE = re.compile(r"\s{0,3}([-*_=])(?:\s*\1){2,}\s*")
_PREFIX = re.compile(
    r"(?P<quote>(?:\s{0,3}>\s?)*)(?P<indent>\s*)(?:(?P<bullet>[-*+])\s+|(?P<number>\d{1,9}[.)])\s+|(?P<heading>#{1,6})\s+)?"
)
_OPEN = re.compile(r"`|~~(?=\S|$)|\*+(?=\S|$)|(?<!\w)_+(?=\S|$)|\[[^\]]*\]?$|<[^>\s]*$|\\$|&#?\w*$")
"""In text without the marks that have their partner: a mark that may still get it."""
_TIMES = re.compile(r"(?P<code>(`+).*?\2)|(?<=[\w)])\*(?=[\w(])", re.ASCII)
"""The stars of ``2*3*4``, which are emphasis by the letter of the standard."""
_LONGEST_WAIT = 300
"""Characters that are held back for the second mark of a pair."""
_CODE_CONTEXT = 200
"""Lines before one of code that are read to colour it."""
_LEAST_COLUMN = 6
"""Cells that a table's column needs with its margins; with less the rows are shown as they were written."""
_STYLES = {"em": "italic", "strong": "bold", "s": "strike", "link": "underline"}
_CODE = "bold cyan"


class Markdown:
    """Renders an answer that comes in pieces; how it is cut makes no difference."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._page = Page(console)
        self._line = ""
        """What came of the present line and is not shown yet."""
        self._style: str | None = None
        """The style of the line whose beginning was shown; None before that."""
        self._fence: _Fence | None = None
        self._table: list[str] = []
        self._is_in_list = False

    def feed(self, text: str) -> None:
        """Go on with the answer."""
        for char in harmless(text):
            if char == "\n":
                self._end_line()
            else:
                self._line += char
                self._advance()

    def line(self, text: str) -> None:
        """A line of its own that is no Markdown."""
        self.finish()
        self._page.raw(Text(harmless(text)))

    def finish(self) -> None:
        """Show all that was held back."""
        if self._line or self._style is not None:
            self._end_line()
        self._end_table()
        self._fence = None

    def _advance(self) -> None:
        """Show what is settled of a line that goes on."""
        line = self._line
        if self._fence or (self._style is None and (_UNDECIDED.fullmatch(line) or self._is_whole(line))):
            return
        if self._style is None:
            self._begin_line()
        elif len(line) > 1 and may_break(line[-2], line[-1]):
            text = _inline(line[:-1])
            if text is not None or len(line) > _LONGEST_WAIT:
                self._show(text or _inline(line[:-1], is_whole=True))
                self._line = line[-1]

    def _is_whole(self, line: str) -> bool:
        """Whether the line is taken when it is complete."""
        return bool(_WHOLE.match(line) or (_INDENTED.match(line) and not self._is_in_list))

    def _begin_line(self) -> None:
        """Show the marks at the beginning of the line; the rest is text."""
        self._end_table()
        match = _PREFIX.match(self._line)
        assert match  # noqa: S101 - all of it is optional
        indent = match["indent"].expandtabs(4)
        is_item = bool(match["bullet"] or match["number"])
        self._is_in_list = is_item or (self._is_in_list and bool(indent))
        prefix = Text().append("▌ " * match["quote"].count(">"), "dim").append(indent)
        prefix.append(f"{'•' if match['bullet'] else match['number']} " if is_item else "", "bold")
        self._style = "bold underline" if match["heading"] in ("#", "##") else "bold" if match["heading"] else ""
        self._page.begin(prefix, hanging=True)
        self._line = self._line[match.end() :]

    def _end_line(self) -> None:
        if self._style is None and self._whole_line(self._line):
            self._line = ""
            return
        if self._style is None:
            self._begin_line()
        self._show(_inline(self._line, is_whole=True))
        self._page.end()
        self._line, self._style = "", None

    def _whole_line(self, line: str) -> bool:
        """Take a line that is no text; False if it is."""
        if self._fence:
            self._code(self._fence, line)
        elif line.lstrip().startswith("|"):
            self._table.append(line)
        elif fence := _FENCE.fullmatch(line):
            self._end_table()
            self._fence = _Fence(fence["mark"], fence["indent"], fence["language"], [])
            self._page.raw(Text(f"{fence['indent']}── {fence['language']}".rstrip(), "dim"))
        elif _RULE.fullmatch(line):
            self._end_table()
            self._page.raw(Text("─" * min(width_of(self._console), 40), "dim"))
        elif not line.strip():
            self._end_table()
            self._page.end()
        elif _INDENTED.match(line) and not self._is_in_list:
            self._end_table()
            self._page.raw(Text(line, _CODE))
        else:
            return False
        return True

    def _show(self, text: Text | None) -> None:
        if text is not None:
            text.stylize_before(self._style or "")
            self._page.words(text)

    def _code(self, fence: "_Fence", line: str) -> None:
        if fence.is_closed_by(line):
            self._page.raw(Text(f"{fence.indent}──", "dim"))
            self._fence = None
        else:
            fence.lines.append(line.removeprefix(fence.indent))
            self._page.raw(Text(fence.indent).append_text(fence.last_line()))

    def _end_table(self) -> None:
        rows, self._table = self._table, []
        if not rows:
            return
        width = width_of(self._console)
        table = _table(rows)
        if table and len(table.columns) * _LEAST_COLUMN <= width:
            with self._console.capture() as drawn:
                self._console.print(table, width=width)
            self._console.file.write(pinned(drawn.get(), width))
            self._console.file.flush()
        else:
            for row in rows:
                self._page.raw(Text(row))


@dataclass(slots=True)
class _Fence:
    """A block of code that is open."""

    mark: str
    indent: str
    language: str
    lines: list[str]

    def is_closed_by(self, line: str) -> bool:
        mark = line.strip()
        return len(mark) >= len(self.mark) and not mark.strip(self.mark[0])

    def last_line(self) -> Text:
        """The last line, in colours that depend on those before it."""
        del self.lines[:-_CODE_CONTEXT]
        code = "\n".join(self.lines)
        if not self.language:
            return Text(self.lines[-1])
        syntax = Syntax(code, self.language, theme="ansi_dark", background_color="default")
        lines = syntax.highlight(code).split("\n", allow_blank=True)
        shown = lines[len(self.lines) - 1] if len(lines) >= len(self.lines) else Text()
        return shown if shown.plain == self.lines[-1] else Text(self.lines[-1])


_parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("html_inline")


def _inline(source: str, *, is_whole: bool = False) -> Text | None:
    """``source`` with its styles; None if it goes on (is not whole) and has a mark that may still get its partner."""
    escaped = _TIMES.sub(lambda match: match["code"] or r"\*", source)
    tokens = _parser.parseInline(escaped)[0].children or []
    plain = "".join(token.content for token in tokens if token.type == "text")
    if not is_whole and _OPEN.search(plain):
        return None
    shown = _styled(tokens)
    space = source[len(source.rstrip()) :]  # the parser leaves out what is at the end
    return shown if not space or shown.plain.endswith(space) else shown.append(space)


def _styled(tokens: Sequence[Token]) -> Text:
    text = Text()
    styles: list[Style] = []
    links: list[tuple[str, int]] = []
    for token in tokens:
        style = Style.combine((Style.null(), *styles))
        if token.type.endswith("_open"):
            styles.append(Style.parse(_STYLES.get(token.tag, _STYLES["link"])))
            links.append((str(token.attrs.get("href", "")), len(text)))
        elif token.type.endswith("_close"):
            styles.pop()
            href, start = links.pop()
            text.append(_target(href, text.plain[start:]))
        elif token.type == "code_inline":
            text.append(harmless(token.content), style + Style.parse(_CODE))
        elif token.type == "image":
            text.append(harmless(token.content), style).append(_target(str(token.attrs["src"]), token.content))
        elif token.type.endswith("break"):
            text.append(" ")
        else:
            text.append(harmless(token.content), style)
    return text


def _target(href: str, label: str) -> str:
    """Where a link leads is shown, never hidden behind its words."""
    return f" ({harmless(href)})" if href and href not in (label, f"mailto:{label}") else ""


def _table(rows: Sequence[str]) -> Table | None:
    """The rows as a table; None if they are none, or it would lose cells."""
    tokens = _parser.parse("\n".join(row.strip() for row in rows))
    heads = [token for token in tokens if token.type == "th_open"]
    bodies = [token for token in tokens if token.type == "tr_open"]
    if not heads or len(bodies) != len(rows) - 1 or any(_count(row) > len(heads) for row in rows):
        return None
    cells = [with_room(_styled(token.children or [])) for token in tokens if token.type == "inline"]
    columns = [
        Column(header=cell, justify=_alignment(head), overflow="fold") for cell, head in zip(cells, heads, strict=False)
    ]
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at in range(len(heads), len(cells), len(heads)):
        table.add_row(*cells[at : at + len(heads)])
    return table


def _count(row: str) -> int:
    """Cells of a row."""
    return len(re.findall(r"(?<!\\)\|", row.strip().removeprefix("|").rstrip("|"))) + 1


def _alignment(head: Token) -> JustifyMethod:
    style = str(head.attrs.get("style", ""))
    return "right" if "right" in style else "center" if "center" in style else "left"

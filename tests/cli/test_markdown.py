"""Answers rendered as they come: nothing is lost, drawn twice or obeyed, however they are cut."""

import io
import re
from collections.abc import Iterable
from functools import cache

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from edge_llama.cli.terminal import markdown, page
from edge_llama.cli.terminal.markdown import Markdown

DOCUMENT = """# Heading with `code`

A paragraph with **bold text**, *emphasis*, `code here`, ~~gone~~ and a [link](https://example.com/x) that goes on.
5 * 3 = 15, 2*3*4, snake_case_name and an **unclosed mark.

- one item that is long enough to be wrapped in a narrow window
  - nested **bold** item
1. first

> a quote that is long enough to be wrapped in a narrow window

```python
def f(x: int) -> str:
    '''Doc.'''
    return f"{x}"  # comment
```

| name | value |
|:-----|------:|
| a **b** | 1 |
| averyveryverylongwordthatneedsfolding | 22 |

---
日本語の文章は空白がありませんから、一行に入らないときはどこかで折り返します。👨‍👩‍👧 family 🦙
"""
MARKS = st.text(st.sampled_from("ab1 \n*_`~#>|-.:[]()\\<&;!日🦙\t"), max_size=60)


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """The window's columns: 40, or what the test is parametrized with."""
    columns: int = getattr(request, "param", 40)
    for module in (page, markdown):
        monkeypatch.setattr(module, "width_of", lambda _console: columns)
    return columns


def rendered(pieces: Iterable[str]) -> str:
    written = io.StringIO()
    console = Console(
        file=written, force_terminal=True, color_system="standard", highlight=False, markup=False, emoji=False
    )
    shown = Markdown(console)
    for piece in pieces:
        shown.feed(piece)
    shown.finish()
    return written.getvalue()


@cache
def whole(text: str) -> str:
    """At once, in a window of 40 columns."""
    return rendered([text])


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def lines(text: str) -> list[str]:
    return plain(rendered([text])).splitlines()


@given(st.one_of(st.just(DOCUMENT), MARKS), st.lists(st.integers(1, 30), min_size=1))
@settings(max_examples=300, deadline=None)
def test_how_an_answer_is_cut_makes_no_difference(text: str, sizes: list[int]) -> None:
    pieces, at = [], 0
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    assert rendered(pieces) == whole(text)


@given(MARKS)
@settings(max_examples=500, deadline=None)
def test_no_letter_is_lost_and_nothing_but_styles_is_written(text: str) -> None:
    written = rendered([text])
    shown = plain(written)
    assert "\x1b" not in shown
    assert shown.endswith("\n") or not text
    for char in "ab日🦙":
        assert shown.count(char) == text.count(char)


@pytest.mark.parametrize("width", [20, 40, 100], indirect=True)
def test_on_a_screen_no_line_is_longer_than_the_window_and_no_word_is_cut(width: int) -> None:
    screen = pyte.Screen(width, 200)
    pyte.Stream(screen).feed(rendered([DOCUMENT]).replace("\n", "\r\n"))
    seen = [line.rstrip() for line in screen.display]
    prose = [line for line in seen[:8] if line]
    assert all(len(line) <= width for line in seen)
    words = re.findall(r"\w+", " ".join(prose))
    assert words[:9] == ["Heading", "with", "code", "A", "paragraph", "with", "bold", "text", "emphasis"]
    assert "wrapped" in " ".join(seen)


def test_marks_become_styles() -> None:
    assert "\x1b[1mbold\x1b[0m" in rendered(["some **bold** word"])
    assert "\x1b[3memphasis\x1b[0m" in rendered(["some *emphasis* here"])
    assert "\x1b[1;36mcode\x1b[0m" in rendered(["some `code` here"])
    assert "\x1b[1;4mTitle\x1b[0m" in rendered(["# Title"])
    assert lines("- one\n* two\n3. three") == ["• one", "• two", "3. three"]


def test_what_is_no_mark_stays() -> None:
    text = "5 * 3, 2*3*4, (a)*(b), a snake_case_name, [1], <tag>, **unclosed, `open"
    assert " ".join(lines(text)) == text


def test_items_hang_and_code_is_not_wrapped() -> None:
    assert lines("- " + "word " * 10) == ["• " + "word " * 6 + "word", "  word word word"]
    code = "x = 1  # " + "long " * 20 + "line"
    assert lines(f"```python\n{code}\n```") == ["── python", code, "──"]


def test_code_is_coloured_by_what_comes_before_it() -> None:
    quoted = rendered(["```python\n'''\ndef f():\n'''\n```"])
    code = rendered(["```python\ndef f():\n```"])
    assert "\x1b[94;49mdef\x1b[0m" in code
    assert "\x1b[94;49mdef\x1b[0m" not in quoted


def test_tables_fold_long_words_and_align() -> None:
    table = lines("| name | n |\n|---|--:|\n| " + "x" * 60 + " | 1 |\n| b | 22 |\n")
    assert "".join(table).count("x") == 60
    assert table[-1].endswith("22 ") or table[-1].endswith("22")
    assert all(len(line) <= 40 for line in table)


@pytest.mark.parametrize(
    "rows",
    [
        "| a | b |\n| c | d |",
        "| a |\n|---|\n| b | lost |",
        "|" + " a |" * 12 + "\n|" + "---|" * 12 + "\n|" + " b |" * 12,
    ],
    ids=["no table", "too many cells", "too narrow a window"],
)
def test_rows_that_can_not_be_a_table_are_shown_as_they_are(rows: str) -> None:
    assert lines(rows) == rows.splitlines()


def test_a_long_wait_for_a_second_mark_ends() -> None:
    """The text after a mark without a partner comes before the line's end."""
    written = io.StringIO()
    shown = Markdown(Console(file=written, force_terminal=True))
    shown.feed("**" + "word " * 100)
    assert "word" in written.getvalue()


@pytest.mark.parametrize(
    "evil", ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "\x00", "&#27;[31m", "`\x1b[31m`", "[x](\x1b[2J)"]
)
def test_escape_sequences_are_shown_not_obeyed(evil: str) -> None:
    for text in (f"Hello {evil} world", f"```\n{evil}\n```", f"| {evil} |\n|---|\n| {evil} |", f"# {evil}"):
        shown = plain(rendered([text]))
        assert not set(map(chr, (*range(10), *range(11, 32), *range(127, 160)))) & set(shown)
    if evil.startswith("\x1b"):
        assert r"\x1b" in plain(rendered([evil]))


def test_wide_characters_count_their_cells() -> None:
    screen = pyte.Screen(40, 50)
    text = "日本語" * 30
    pyte.Stream(screen).feed(rendered([text]).replace("\n", "\r\n"))
    assert "".join(line.rstrip() for line in screen.display).replace(" ", "") == text
    assert [line.rstrip() for line in screen.display][4] != ""


WIDE = """| 料理 | Price | 注 |
|---|---:|---|
| 寿司 🍣 | 1,200 | ❤️ good |
| ラーメン | 900 | ⚠️ **hot** |
| 家族 👨‍👩‍👧 | 4,000 | for all |
| 旗 🇯🇵 🇰🇷 | 10 | 👍🏽 yes |
| plain | 7 | end |
"""


@pytest.mark.parametrize("width", [40, 200], indirect=True)
def test_columns_stand_below_each_other_whatever_a_terminal_takes_an_emoji_for(width: int) -> None:
    """The emulated one joins no emoji and knows no variants: it takes six cells where we count two, and one for two."""
    screen = pyte.Screen(width, 20)
    pyte.Stream(screen).feed(rendered([WIDE]).replace("\n", "\r\n"))
    rows = [[screen.buffer[y][x].data for x in range(width)] for y in (0, *range(2, 7))]
    assert [row for row in screen.display[7:] if row.strip()] == []
    notes = {row.index(first) for row, first in zip(rows, ("注", "❤", "⚠", "f", "👍", "e"), strict=True)}
    prices = {max(x for x, cell in enumerate(row[: min(notes)]) if cell.strip()) for row in rows}
    assert (len(notes), len(prices)) == (1, 1)
    for emoji in ("🍣", "👨", "👍", "🏽"):  # it draws nothing of a run of letters after a joiner
        assert emoji in "".join(map("".join, rows)), "nothing is overwritten"
    assert "👨‍👩‍👧" in rendered([WIDE])


@given(st.text(st.sampled_from("ab 猫🦙\u200d\ufe0f❤👍🏽🇯🇵|*"), max_size=20))
@settings(max_examples=300, deadline=None)
def test_no_letter_of_a_table_is_lost_for_the_sake_of_its_columns(cell: str) -> None:
    shown = rendered([f"| x | y |\n|---|---|\n| {cell} | end |\n"])
    for char in "ab猫🦙\u200d❤👍🏽🇯🇵":
        assert shown.count(char) == cell.count(char)
    assert "\ufdd0" not in shown

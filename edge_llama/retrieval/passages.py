"""A document cut into passages: by headings and paragraphs, of a stated size in tokens, each a little into the next."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edge_llama.media.documents.document import Document

SIZE = 200
"""Tokens of a passage at most, but for what its paragraphs take more together than apart."""
OVERLAP = 40
"""Tokens that a passage has in common with the next at most: whole paragraphs, none over a heading."""
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n|\n(?=#{1,6} )")
_HEADING = re.compile(r"#{1,6} +(.+)")
_BREAKS = (r"\n", r"[.!?;。！？]\s*", r"\s")
"""Where what is too long may be cut, the best first."""
_COUNTED = 100
"""Characters for each token of the size: what is longer is cut before it is counted."""

Count = Callable[[str], int]
"""How many tokens a text has."""


@dataclass(frozen=True, slots=True)
class Passage:
    r"""A passage: characters ``start`` to ``stop`` of a document's text, of some ``tokens``.

    ``number`` counts from 1 to the document's ``count``; lines count from 1, too. ``heading`` is the last one before or
    at its beginning, and says what it is about.

    Examples:
        >>> texts = [f"# {city}\n" + f"{city} is a city. " * 40 for city in ("Tokyo", "Cairo", "Paris", "Rome")]
        >>> book = edge_llama.Document.from_text("\n\n".join(texts), "cities.md")
        >>> with edge_llama.open(n_ctx=512) as model:
        ...     chat = model.chat(temperature=0, max_tokens=8)
        ...     answer = chat.send("Tell me about Cairo.", files=[book], retrieve=True).result()
        ...     print(sorted({passage.heading for passage in chat.passages}))
        ['Cairo']
    """

    name: str
    sha256: str
    number: int
    count: int
    start: int
    stop: int
    first_line: int
    last_line: int
    tokens: int
    heading: str
    text: str = field(repr=False)

    @property
    def lines(self) -> str:
        """``lines 12 to 30``, or ``line 12``."""
        if self.last_line > self.first_line:
            return f"lines {self.first_line:,} to {self.last_line:,}"
        return f"line {self.first_line:,}"

    def __str__(self) -> str:
        """``notes.txt, lines 12 to 30``."""
        return f"{self.name}, {self.lines}"

    @property
    def searched(self) -> str:
        """What it is found by: its text, below its heading."""
        return self.text if self.heading in self.text else f"{self.heading}\n{self.text}"


@dataclass(frozen=True, slots=True)
class _Block:
    start: int
    stop: int
    tokens: int
    heading: str


def split(document: Document, count: Count, size: int = SIZE, overlap: int = OVERLAP) -> tuple[Passage, ...]:
    """The passages of a document, in its order: they cover all of its text but blanks between them."""
    blocks = list(_blocks(document.text, count, size))
    runs = list(_runs(blocks, size, overlap))
    line_starts = [0, *(match.end() for match in re.finditer("\n", document.text))]
    passages = []
    heading, seen = "", 0
    for number, (first, end) in enumerate(runs, 1):
        while seen <= first:
            heading = blocks[seen].heading or heading
            seen += 1
        start, stop = blocks[first].start, blocks[end - 1].stop
        passages.append(
            Passage(
                document.name,
                document.sha256,
                number,
                len(runs),
                start,
                stop,
                bisect_right(line_starts, start),
                bisect_right(line_starts, stop - 1),
                sum(block.tokens for block in blocks[first:end]),
                heading,
                document.text[start:stop],
            )
        )
    return tuple(passages)


def _runs(blocks: list[_Block], size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """The blocks of each passage: from the first to before the end."""
    first = 0
    while first < len(blocks):
        end = _end(blocks, first, size)
        yield first, end
        if end == len(blocks):
            return
        first = end if blocks[end].heading else _back(blocks, first, end, min(overlap, size - blocks[end].tokens))


def _end(blocks: list[_Block], first: int, size: int) -> int:
    """As many blocks as fit, but no heading at the end, and none of the next section once it is half full."""
    tokens, end = blocks[first].tokens, first + 1
    while end < len(blocks) and tokens + blocks[end].tokens <= size:
        if blocks[end].heading and tokens * 2 >= size:
            return end
        tokens += blocks[end].tokens
        end += 1
    while end - 1 > first and end < len(blocks) and blocks[end - 1].heading:
        end -= 1
    return end


def _back(blocks: list[_Block], first: int, end: int, overlap: int) -> int:
    """Where the next passage begins: some blocks before the end of this one, of so many tokens at most."""
    begin, tokens = end, 0
    while begin - 1 > first and tokens + blocks[begin - 1].tokens <= overlap and not blocks[begin - 1].heading:
        begin -= 1
        tokens += blocks[begin].tokens
    return begin


def _blocks(text: str, count: Count, size: int) -> Iterator[_Block]:
    """Paragraphs without the blanks around them, headings apart, and pieces of what is longer than a passage."""
    start = 0
    for match in [*_PARAGRAPH_END.finditer(text), None]:
        end = match.start() if match else len(text)
        for begin, stop, tokens in _pieces(text, start, end, count, size):
            heading = _HEADING.match(text, begin, stop)
            yield _Block(begin, stop, tokens, heading[1].strip() if heading else "")
        start = match.end() if match else end


def _pieces(text: str, start: int, stop: int, count: Count, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut in halves at the best place near the middle, until each piece fits."""
    while start < stop and text[start] == "\n":
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    if start == stop:
        return
    tokens = count(text[start:stop]) if stop - start <= _COUNTED * size else size + 1
    if tokens <= size or stop - start < 2:
        yield start, stop, tokens
        return
    middle = _cut(text, start, stop)
    yield from _pieces(text, start, middle, count, size)
    yield from _pieces(text, middle, stop, count, size)


def _cut(text: str, start: int, stop: int) -> int:
    """A place to cut in the middle third: a line's end, else a sentence's, else a word's, else the middle."""
    third = max(1, (stop - start) // 3)
    middle = (start + stop) // 2
    for pattern in _BREAKS:
        places = [match.end() for match in re.finditer(pattern, text[start + third : stop - third])]
        if places:
            return min((start + third + place for place in places), key=lambda place: abs(place - middle))
    return middle

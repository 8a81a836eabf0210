"""HTML to readable text, by the standard library: headings, lists, tables and code as Markdown writes them."""

import re
from html.parser import HTMLParser

from edge_llama.media.documents.limits import Extracted, check_characters

_UNSEEN = frozenset(("script", "style", "template", "noscript", "svg", "math", "head", "iframe", "object", "select"))
"""What a reader of the page doesn't see, or not as text."""
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote dd details dialog div dl dt fieldset figcaption figure footer form header hr "
        "li main nav ol p pre section summary table tbody tfoot thead title tr ul",
    )
).union(_HEADINGS)
_APART = frozenset(("blockquote", "figure", "ol", "p", "pre", "table", "ul", "title")).union(_HEADINGS)
"""Blocks with an empty line around them."""
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9._:-]{1,40})""", re.IGNORECASE)


def declared_encoding(data: bytes) -> str | None:
    """What the page says of its encoding in its first kilobyte, as browsers look for it."""
    found = _CHARSET.search(data[:1024])
    if found is None:
        return None
    name = found[1].decode("ascii").lower()
    return "cp1252" if name in {"iso-8859-1", "latin1", "ascii", "us-ascii"} else name


def read_html(source: Extracted, name: str) -> Extracted:
    """The page's text, with the notes of ``source``."""
    reader = _Reader(name)
    reader.feed(source.text)
    reader.close()
    return Extracted(reader.text(), source.notes)


class _Reader(HTMLParser):
    """Collects what is seen. Tags need not match: what is open is counted, never searched for."""

    def __init__(self, name: str) -> None:
        super().__init__(convert_charrefs=True)
        self._name = name
        self._parts: list[str] = []
        self._size = 0
        self._unseen: str = ""
        """The tag that hides what it holds, if one is open."""
        self._depth = 0
        self._pre = 0
        self._begins_line = True
        self._is_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._unseen == "head" and tag == "body":  # one that was never closed
            self._unseen = ""
        if self._unseen:
            self._depth += tag == self._unseen
            self._is_title = tag == "title" and self._unseen == "head"
            return
        if tag in _UNSEEN:
            self._unseen, self._depth = tag, 1
            return
        self._pre += tag == "pre"
        if tag in _BLOCKS:
            self._put("\n\n" if tag in _APART else "\n")
        if tag in _HEADINGS or tag == "li":
            self._put(_HEADINGS.get(tag, "- "))
        elif tag == "br":
            self._put("\n")
        elif tag in {"td", "th"} and not self._begins_line:
            self._put(" | ")
        elif tag == "img" and (alt := dict(attrs).get("alt")):
            self._put(f"[image: {alt}]")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _UNSEEN:  # "<script/>" would hide the rest
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self._is_title = False
        if self._unseen:
            self._depth -= tag == self._unseen
            if self._depth == 0:
                self._unseen = ""
            return
        if tag == "pre" and self._pre:
            self._pre -= 1
        if tag in _BLOCKS:
            self._put("\n\n" if tag in _APART else "\n")

    def handle_data(self, data: str) -> None:
        if self._is_title:
            self._put(f"# {' '.join(data.split())}\n\n" if data.strip() else "")
        elif not self._unseen:
            text = data if self._pre else re.sub(r"\s+", " ", data)
            self._put(text.lstrip() if self._begins_line and not self._pre else text)

    def _put(self, text: str) -> None:
        if not text:
            return
        self._begins_line = text.endswith("\n")
        self._size += len(text)
        check_characters(self._size, self._name)
        self._parts.append(text)

    def text(self) -> str:
        """All of it, with at most one empty line in a row and no blanks at the lines' ends."""
        lines = [line.rstrip() for line in "".join(self._parts).split("\n")]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"

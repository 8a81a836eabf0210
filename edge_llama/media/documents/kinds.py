"""What kinds of documents there are, and how a file is known to be one. To add a kind, add an entry to ``KINDS``.

The reader of a kind is told the file's bytes and its name for errors, and gives the text with notes, or raises a
DocumentError. One that runs more than a decoder says from how many bytes on it does so in a process of its own.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_llama.errors import DocumentError
from edge_llama.media.documents.docx import is_docx, read_docx
from edge_llama.media.documents.encoding import decoded
from edge_llama.media.documents.html_text import declared_encoding, read_html
from edge_llama.media.documents.limits import Extracted
from edge_llama.media.documents.pdf import is_pdf, read_pdf

_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of document: ``is_one`` by the first bytes decides before ``suffixes`` do."""

    name: str
    suffixes: frozenset[str]
    read: Callable[[bytes, str], Extracted]
    is_one: Callable[[bytes], bool] | None = None
    apart_from: int = _NEVER
    """Bytes from which on it is parsed in a process of its own."""


def _read_text(data: bytes, name: str) -> Extracted:
    return decoded(data, name)


def _read_html(data: bytes, name: str) -> Extracted:
    return read_html(decoded(data, name, declared_encoding(data)), name)


def _is_html(data: bytes) -> bool:
    return _HTML.match(data) is not None


_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}>\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE)
TEXT = Kind("text", frozenset(), _read_text)
KINDS = (
    Kind("PDF", frozenset((".pdf",)), read_pdf, is_pdf, apart_from=0),
    Kind("docx", frozenset((".docx", ".docm")), read_docx, is_docx, apart_from=0),
    # Python's parser takes quadratic time for some damage (CVE-2025-6069): a second for 64 KiB at most.
    Kind("HTML", frozenset((".html", ".htm", ".xhtml")), _read_html, apart_from=64 << 10),
    Kind("CSV", frozenset((".csv", ".tsv")), _read_text),
    Kind("Markdown", frozenset((".md", ".markdown")), _read_text),
    TEXT,
)
"""The first whose bytes these are, else the one of the name's suffix, else text."""

_OTHERS = (  # how data begins that is no document, what it is, what to give
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM.{4}\0\0\0\0|(?:II\*\0|MM\0\*)", "a picture", "show it: --image"),
    (rb"PK(?:\x03\x04|\x05\x06)", "a zip archive, and no docx", "save it as PDF, docx or text"),
    (rb"\xd0\xcf\x11\xe0", "a file of an old Office, or one with a password", "save it as docx without a password"),
    (rb"\{\\rtf", "RTF", "save it as docx or text"),
    (rb"%!PS", "PostScript", "convert it to PDF"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "a packed file", "unpack it"),
    (rb"GGUF", "a model", "name it as MODEL"),
    (rb"SQLite format 3\0", "a database", "export what is wanted as CSV"),
)


def kind_of(data: bytes, path: Path) -> Kind:
    """Which kind the file is. DocumentError for data that is known to be of none."""
    if known := next((kind for kind in KINDS if kind.is_one and kind.is_one(data)), None):
        return known
    for begins, what, remedy in _OTHERS:
        if re.match(begins, data, re.DOTALL):
            raise DocumentError(f"{path}: it is {what}, no document whose text is read", remedy=remedy)
    suffix = path.suffix.lower()
    found = next((kind for kind in KINDS if suffix in kind.suffixes), None)
    if found and found.is_one:
        raise DocumentError(f"{path}: it is called {suffix}, but is no {found.name}", remedy="get it again")
    if found is None and not suffix and _is_html(data):
        return kind_named("HTML")
    return found or TEXT


def kind_named(name: str) -> Kind:
    """The kind of this name."""
    return next(kind for kind in KINDS if kind.name == name)

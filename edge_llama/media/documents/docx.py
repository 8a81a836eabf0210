"""The text of a docx, by the standard library: its XML streams through expat, out of a zip of bounded size.

No part of another file is read: a document type, which could define entities that grow or lead elsewhere, is refused,
and relationships are not followed. Elements are those of WordprocessingML (ECMA-376, part 1, 17).
"""

import io
import re
import zipfile
import zlib
from xml.parsers import expat

from edge_llama.errors import DocumentError
from edge_llama.media.documents.limits import MAX_UNPACKED, Extracted, check_characters

_MAIN = re.compile(r"word/document\d*\.xml")
_NOTES = ("word/footnotes.xml", "word/endnotes.xml")
_LEFT_OUT = re.compile(r"word/(?:header|footer|comments)\d*\.xml")
_MAX_ENTRIES = 10_000
_HEADING = re.compile(r"(?:heading|überschrift|titre|título)\s*([1-6])|(title)", re.IGNORECASE)
_DAMAGED = "get it again, or save it once more"
_UNSEEN = frozenset(("Fallback", "del", "moveFrom"))
"""What stands there once more (Fallback), was deleted or moved away by a tracked change."""


def is_docx(data: bytes) -> bool:
    """Whether it is a zip with a text document of Word's in it."""
    if not data.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(map(_MAIN.fullmatch, archive.namelist()))
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return b"word/document" in data[: 1 << 16]  # damaged: its reader says how


def read_docx(data: bytes, name: str) -> Extracted:
    """Paragraphs as lines, headings and lists as Markdown writes them, cells of tables with ``|`` between.

    DocumentError for a damaged file, one with a password, and one that unpacks to too much.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) > _MAX_ENTRIES:
                raise DocumentError(f"{name}: {len(names):,} parts, at most {_MAX_ENTRIES:,} are looked at")
            main = next(filter(_MAIN.fullmatch, names), None)
            if main is None:
                raise DocumentError(f"{name}: a zip without word/document.xml", remedy=_DAMAGED)
            texts = [_text_of(archive, part, name) for part in (main, *(each for each in _NOTES if each in names))]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DocumentError(f"{name}: a damaged docx: {error}", remedy=_DAMAGED) from error
    left = any(map(_LEFT_OUT.fullmatch, names))
    notes = ("headers, footers and comments are left out",) if left else ()
    return Extracted("\n\n".join(text.strip("\n") for text in texts if text.strip()) + "\n", notes)


def _text_of(archive: zipfile.ZipFile, part: str, name: str) -> str:
    info = archive.getinfo(part)
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise DocumentError(f"{name}: {part} is packed in a way that docx doesn't know", remedy=_DAMAGED)
    with archive.open(info) as file:
        xml = file.read(MAX_UNPACKED + 1)
    size = max(len(xml), info.file_size)
    if size > MAX_UNPACKED:
        raise DocumentError(
            f"{name}: {part} unpacks to {size:,} bytes, at most {MAX_UNPACKED:,} are read", remedy="give a part of it"
        )
    reader = _Reader(name, part)
    try:
        reader.parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise DocumentError(f"{name}: {part} is no XML: {error}", remedy=_DAMAGED) from error
    return "".join(reader.parts)


class _Reader:
    """Takes the events of expat."""

    def __init__(self, name: str, part: str) -> None:
        self.parts: list[str] = []
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartDoctypeDeclHandler = self._refuse
        self._name, self._part = name, part
        self._size = 0
        self._hidden = 0
        self._cells = 0
        self._is_text = False
        self._prefix = ""
        """What stands before the first text of this paragraph."""

    def _refuse(self, *_declaration: object) -> None:
        raise DocumentError(f"{self._name}: {self._part} has a document type, which docx never has", remedy=_DAMAGED)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        local = tag.rpartition(" ")[2]
        if self._hidden or local in _UNSEEN:
            self._hidden += 1
        elif local == "t":
            self._is_text = True
        elif local in {"tab", "br", "cr"} and not (attributes and local == "tab"):  # a tab stop has attributes
            self._put("\t" if local == "tab" else "\n")
        elif local == "tc":
            self._put(" | " if self._cells else "")
            self._cells += 1
        elif local == "tr":
            self._cells = 0
        elif local == "numPr":
            self._prefix = self._prefix or "- "
        elif local == "pStyle" and (style := _HEADING.search(_value(attributes))):
            self._prefix = "#" * int(style[1] or 1) + " "

    def _end(self, tag: str) -> None:
        local = tag.rpartition(" ")[2]
        if self._hidden:
            self._hidden -= 1
        elif local == "t":
            self._is_text = False
        elif local == "p":
            self._prefix = ""
            self._put(" " if self._cells else "\n\n")
        elif local == "tr":
            self._put("\n")
            self._cells = 0
        elif local == "tbl":
            self._put("\n")

    def _characters(self, data: str) -> None:
        if self._is_text and not self._hidden:
            self._put(self._prefix + data)
            self._prefix = ""

    def _put(self, text: str) -> None:
        self._size += len(text)
        check_characters(self._size, self._name)
        self.parts.append(text)


def _value(attributes: dict[str, str]) -> str:
    """That of ``w:val``."""
    return next((value for name, value in attributes.items() if name.rpartition(" ")[2] == "val"), "")

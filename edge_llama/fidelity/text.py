"""A text that is measured with: its name, its domain, what stands in it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edge_llama.errors import DocumentError
from edge_llama.host.regular_files import content_of, why_no_file

_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True, slots=True)
class Text:
    """A document, with line feeds at its lines' ends."""

    name: str
    """What tables call it: a file's name."""
    domain: str
    """What kind of text it is, by which results are grouped: ``prose``, ``code``; of a person's own file "own"."""
    content: str

    @property
    def sha256(self) -> str:
        """Of the content in UTF-8, in hexadecimal digits."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def read_text(path: Path, domain: str = "own") -> Text:
    """The text in a file of UTF-8, whatever its lines end with.

    DocumentError for a folder, what can't be read, an empty file, binary data, or a byte that is not UTF-8: that byte's
    place, counted from 0, is told.
    """
    data = _bytes_of(path)
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise DocumentError(f"{path}: its first bytes say {encoding}", remedy="save it as UTF-8")
    if (place := data.find(0)) >= 0:
        raise DocumentError(f"{path}: is no text: byte {place:,} is zero", remedy="give a file of text")
    try:
        content = data.removeprefix(_MARK).decode()
    except UnicodeDecodeError as error:
        place = error.start + (len(_MARK) if data.startswith(_MARK) else 0)
        raise DocumentError(
            f"{path}: byte {place:,} (0x{data[place]:02x}) is not UTF-8", remedy="save it as UTF-8"
        ) from error
    if not content.strip():
        raise DocumentError(f"{path}: there is no text in it", remedy="give another file")
    return Text(path.name, domain, content.replace("\r\n", "\n").replace("\r", "\n"))


def _bytes_of(path: Path) -> bytes:
    try:
        return content_of(path)
    except FileNotFoundError as error:
        raise DocumentError(f"{path}: no such file", remedy="give a file of text") from error
    except IsADirectoryError as error:
        raise DocumentError(f"{path}: is a folder", remedy="name the files in it") from error
    except OSError as error:
        why = why_no_file(path) or f"cannot be read: {error.strerror}"
        raise DocumentError(f"{path}: {why}", remedy="give a file of text that can be read") from error

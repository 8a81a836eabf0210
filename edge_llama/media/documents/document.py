"""A document as people have it, a file, down to its text.

What a file is its first bytes say, and its name where these say nothing. What more than a decoder parses is parsed in a
process of its own, bounded in time and memory: see ``reading.py``.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from edge_llama.errors import DocumentError, OptionError
from edge_llama.host.regular_files import opened
from edge_llama.media.documents import reading
from edge_llama.media.documents.kinds import kind_of
from edge_llama.media.documents.limits import MAX_BYTES, check_text_size
from edge_llama.media.images import regular_file

DocumentSource: TypeAlias = "str | os.PathLike[str] | Document"


@dataclass(frozen=True, slots=True)
class Document:
    """A document's text; :meth:`open` makes one. A value: safe to share between threads.

    ``name`` is the file's without its folder, ``sha256`` that of the file's bytes in hex, ``kind`` what it was taken
    for (``text``, ``Markdown``, ``CSV``, ``HTML``, ``PDF``, ``docx``). ``notes`` say what people should know: which
    encoding was assumed, which pages have no text. Lines of ``text`` end with a line feed.

    Examples:
        >>> with open("notes.txt", "w") as file:
        ...     print("Cairo is hot.", file=file)
        >>> note = edge_llama.Document.open("notes.txt")
        >>> note.name, note.kind, len(note.text)
        ('notes.txt', 'text', 14)
    """

    name: str
    sha256: str
    text: str = field(repr=False)
    kind: str
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, source: DocumentSource) -> "Document":
        """A document from a file's path, or itself.

        DocumentError for one whose text can't be had: damaged, encrypted, scanned, too large, of no kind that is known,
        or empty. InputError for what is no file that can be read, or a missing package, which is named; OptionError for
        another type.
        """
        if isinstance(source, cls):
            return source
        if not isinstance(source, str | os.PathLike):
            raise OptionError(f"a document is given as {type(source).__name__}", remedy="give a path, or a Document")
        path = regular_file(source)
        return _of_bytes(_bytes_of(path), path)

    @classmethod
    def from_text(cls, text: str, name: str) -> "Document":
        """A text that is no file, under a name. DocumentError if it is blank or too long."""
        check_text_size(text, name)
        return cls(name, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), text, "text")


def open_documents(sources: Iterable[DocumentSource]) -> list[Document]:
    """Each by :meth:`Document.open`; OptionError for one document in place of several."""
    if not isinstance(sources, Iterable) or isinstance(sources, str | bytes):
        raise OptionError(f"files is {type(sources).__name__}, expected a list", remedy="for one: files=[path]")
    return list(map(Document.open, sources))


def _bytes_of(path: Path) -> bytes:
    try:
        with opened(path) as file:
            data = file.read(MAX_BYTES + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DocumentError(f"{path}: cannot be read: {error.strerror}", remedy="see to its permissions") from error
    if size > MAX_BYTES:
        raise DocumentError(f"{path}: {size:,} bytes, at most {MAX_BYTES:,} are read", remedy="give a part of it")
    return data


def _of_bytes(data: bytes, path: Path) -> Document:
    kind = kind_of(data, path)
    found = reading.text_of(kind, data, str(path))
    check_text_size(found.text, str(path))
    return Document(path.name, hashlib.sha256(data).hexdigest(), found.text, kind.name, found.notes)

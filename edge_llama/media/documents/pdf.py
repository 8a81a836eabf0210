"""The text of a PDF, page by page, by pypdf (the extra ``documents``).

pypdf is Python: what a hostile file can do is take time and memory. Its own limits (75 MB for a stream unpacked,
https://pypdf.readthedocs.io/en/stable/user/security.html) bound one stream, not a page that has many, so all of it runs
in a process with a deadline and a bound of memory: see ``reading.py``.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_llama.errors import DocumentError, InputError
from edge_llama.media.documents.limits import MAX_PAGES, Extracted, check_characters

if TYPE_CHECKING:
    from pypdf import PdfReader

_HEADER = 1024
"""Bytes within which readers look for the mark."""


def is_pdf(data: bytes) -> bool:
    """Whether it has PDF's mark where readers look for it."""
    return b"%PDF-" in data[:_HEADER]


def read_pdf(data: bytes, name: str) -> Extracted:
    """The text of all pages, an empty line between them.

    DocumentError for a damaged file, one with a password, more pages than are read, and one none of whose pages has
    text; InputError if pypdf is not installed.
    """
    reader = _opened(data, name)
    pages = _page_count(reader, name)
    texts: list[str] = []
    blank: list[int] = []
    broken: list[int] = []
    size = 0
    for number in range(1, pages + 1):
        text = _page_text(reader, number, name)
        if text is None:
            broken.append(number)
        elif not text.strip():
            blank.append(number)
        else:
            size += len(text)
            check_characters(size, name)
            texts.append(text.strip("\n"))
    _check_any(texts, pages, broken, name)
    notes = [_told(blank, pages, "no text"), _told(broken, pages, "text that can't be read")]
    return Extracted("\n\n".join(texts) + "\n", tuple(note for note in notes if note))


def _opened(data: bytes, name: str) -> "PdfReader":
    try:
        from pypdf import PdfReader  # noqa: PLC0415 - an extra
    except ImportError as error:
        needs = f"{name}: reading a PDF needs the package pypdf"
        raise InputError(needs, remedy='pip install "edge-llama[documents]"') from error
    try:
        reader = PdfReader(io.BytesIO(data))
        is_locked = reader.is_encrypted and not reader.decrypt("")
    except MemoryError:
        raise
    except Exception as error:  # "broken PDF files might cause other Exceptions": pypdf/errors.py
        raise _damaged(name, error) from error
    if is_locked:
        raise DocumentError(f"{name}: it is encrypted with a password", remedy="save it without one")
    return reader


def _page_count(reader: "PdfReader", name: str) -> int:
    try:
        count = len(reader.pages)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _damaged(name, error) from error
    if count > MAX_PAGES:
        raise DocumentError(f"{name}: {count:,} pages, at most {MAX_PAGES:,} are read", remedy="give a part of it")
    return count


def _page_text(reader: "PdfReader", number: int, name: str) -> str | None:
    """None if the page is damaged."""
    try:
        text: str = reader.pages[number - 1].extract_text()
        return text.encode("utf-8", "replace").decode()  # a font may map to half a character
    except MemoryError:
        raise
    except Exception as error:  # as above: the page is told as one that can't be read
        if _is_for_want_of_cryptography(error):
            raise _damaged(name, error) from error
        return None


def _check_any(texts: Sequence[str], pages: int, broken: Sequence[int], name: str) -> None:
    if texts:
        return
    if broken:
        raise DocumentError(f"{name}: none of its {pages:,} pages can be read", remedy="get it again")
    raise DocumentError(
        f"{name}: none of its {pages:,} pages has text: it is scanned, or empty",
        remedy="have its text recognised (OCR), or show its pages as pictures",
    )


def _told(numbers: Sequence[int], pages: int, what: str) -> str:
    """``3 of 12 pages have no text: 4 to 6``; nothing for no pages."""
    if not numbers:
        return ""
    return f"{len(numbers):,} of {pages:,} pages {'has' if len(numbers) == 1 else 'have'} {what}: {runs(numbers)}"


def runs(numbers: Sequence[int]) -> str:
    """Ascending numbers in few words: ``1, 4 to 6 and 9``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    words = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in found]
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _is_for_want_of_cryptography(error: Exception) -> bool:
    return type(error).__name__ == "DependencyError"


def _damaged(name: str, error: Exception) -> DocumentError:
    if _is_for_want_of_cryptography(error):
        return DocumentError(f"{name}: its encryption (AES) needs a package", remedy="pip install cryptography")
    why = str(error) or type(error).__name__
    return DocumentError(f"{name}: a damaged PDF: {why}", remedy="get it again, or print it to a new PDF")

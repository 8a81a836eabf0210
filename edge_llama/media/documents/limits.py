"""How much of a document is read: beyond it an error names both numbers, nothing is cut off."""

from dataclasses import dataclass

from edge_llama.errors import DocumentError

MAX_BYTES = 64 << 20
"""Of a file."""
MAX_UNPACKED = 64 << 20
"""Bytes of one part of a docx, unpacked: a zip of some kilobytes can hold gigabytes."""
MAX_CHARACTERS = 8 << 20
"""Of text: some two million tokens."""
MAX_PAGES = 2_000
"""Of a PDF."""
MAX_SECONDS = 120
"""That parsing a file may take."""
MAX_MEMORY = 2 << 30
"""Bytes of address space that the process that parses it may have (not on Windows)."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """The text of a document, and what people should know of it."""

    text: str
    notes: tuple[str, ...] = ()


def check_text_size(text: str, name: str) -> None:
    """DocumentError for a text that is blank, or of more characters than are taken."""
    if not text.strip():
        raise DocumentError(f"{name}: there is no text in it", remedy="give another file")
    check_characters(len(text), name)


def check_characters(count: int, name: str) -> None:
    """DocumentError for more characters than are taken."""
    if count > MAX_CHARACTERS:
        raise DocumentError(
            f"{name}: {count:,} characters of text or more, at most {MAX_CHARACTERS:,} are taken",
            remedy="give a part of it",
        )

"""Documents as they stand in a message: each as text under its name, in a frame that nothing in it can close.

The frame is a code fence of Markdown's, which models know from their training. By CommonMark (4.5) a fence is closed
only by a line of at least as many backticks: so each fence has one more than the longest run in its text. It depends on
the text alone, unlike a mark that is drawn: the same file again is the same tokens, and found in the prompt cache.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_llama.errors import OptionError, printable
from edge_llama.media.documents.document import Document

_BACKTICKS = re.compile("`+")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class AttachedDocument:
    """Where a document stands in a message's content: ``length`` characters from ``place`` on, its frame included.

    ``name`` and ``sha256`` are the document's; ``tokens`` is what it takes of the context, None where no model counted
    it; ``part`` says which part of it stands there, nothing for the whole.

    Examples:
        >>> note = edge_llama.Document.from_text("Cairo is hot.", "notes.txt")
        >>> chat = model.chat(temperature=0, max_tokens=8)
        >>> answer = chat.send("What is the capital of Egypt?", files=[note]).result()
        >>> attached = chat.messages[0].documents[0]
        >>> attached.name, attached.tokens == chat.file_tokens([note])[0]
        ('notes.txt', True)
    """

    place: int
    length: int
    name: str
    sha256: str
    tokens: int | None = None
    part: str = ""

    def __post_init__(self) -> None:
        numbers = {"place": self.place, "length": self.length, "tokens": 0 if self.tokens is None else self.tokens}
        for what, number in numbers.items():
            if type(number) is not int or number < 0:
                raise OptionError(f"a document's {what} is {number!r:.40}, expected a whole number")
        for what, text in {"name": self.name, "part": self.part, "sha256": self.sha256}.items():
            if not isinstance(text, str):
                raise OptionError(f"a document's {what} is {type(text).__name__}, expected text")
        if not _SHA256.fullmatch(self.sha256):
            raise OptionError(f"a document's sha256 is {self.sha256!r:.80}, expected 64 hexadecimal digits")

    @property
    def end(self) -> int:
        """Where the content goes on after it."""
        return self.place + self.length

    def __str__(self) -> str:
        """``[file notes.txt, 1,234 tokens]``, as people are shown it."""
        size = f"{self.length:,} characters" if self.tokens is None else f"{self.tokens:,} tokens"
        return f"[file {', '.join(filter(None, (printable(self.name), self.part, size)))}]"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        data = {"place": self.place, "length": self.length, "name": self.name, "sha256": self.sha256}
        given = {"tokens": self.tokens, "part": self.part or None}
        return data | {key: value for key, value in given.items() if value is not None}

    @classmethod
    def from_json(cls, data: object) -> "AttachedDocument":
        """The inverse of :meth:`to_json`; OptionError for anything else."""
        if not isinstance(data, Mapping):
            raise OptionError(f"a message's document is {type(data).__name__}, expected an object")
        if unknown := set(data) - set(cls.__slots__):
            raise OptionError(f"a message's document has {', '.join(map(repr, sorted(unknown)))}")
        if missing := {"place", "length", "name", "sha256"} - set(data):
            raise OptionError(f"a message's document has no {', '.join(sorted(missing))}")
        return cls(**data)


@dataclass(frozen=True, slots=True)
class FramedDocument:
    """A document, or a part of one, as a part of a message's content: its whole ``text``, frame included."""

    text: str
    name: str
    sha256: str
    tokens: int | None = None
    part: str = ""

    def at(self, place: int) -> AttachedDocument:
        """It, where it stands in a content."""
        return AttachedDocument(place, len(self.text), self.name, self.sha256, self.tokens, self.part)


def framed(document: Document, text: str | None = None, part: str = "") -> FramedDocument:
    """The document as it goes into a message: whole, or as ``text``, which is the ``part`` of it that this names."""
    shown = (document.text if text is None else text).strip("\n")
    longest = max(map(len, _BACKTICKS.findall(shown)), default=0)
    fence = "`" * max(3, longest + 1)
    heading = f"File {printable(document.name)}{f' ({part})' if part else ''}:"
    return FramedDocument(f"{heading}\n{fence}\n{shown}\n{fence}\n\n", document.name, document.sha256, part=part)

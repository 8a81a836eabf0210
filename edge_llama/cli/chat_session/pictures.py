"""What a person shows: pictures, clips and documents that wait for the next message, and paths that were dropped."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from edge_llama.media.documents.document import Document
from edge_llama.media.images import Image

PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".ppm"))
CLIPS = frozenset((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg"))
# Terminals put quotes around a dropped path, escape what the shell would read, or write it as a URL.
_DROPPED = re.compile(r"""\s*(?:'([^']+)'|"([^"]+)"|((?:\\.|[^\s\\'"])+))(?=\s|\Z)""")


@dataclass(slots=True)
class Shown:
    """Pictures and documents in the order in which they were shown, and at most one clip, for the next message."""

    images: list[Image] = field(default_factory=list)
    clip: Path | None = None
    documents: list[Document] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.images or self.documents) or self.clip is not None

    def clear(self) -> None:
        """Show nothing."""
        self.clear_pictures()
        self.documents = []

    def clear_pictures(self) -> None:
        """Show no picture and no clip."""
        self.images, self.clip = [], None


def dropped(line: str) -> tuple[list[Path], str]:
    """Files of pictures and clips with whose absolute paths ``line`` begins, and the text after them.

    Paths of other files, and files that are not there, are text.
    """
    paths: list[Path] = []
    at = 0
    while (match := _DROPPED.match(line, at)) and (path := _path(match)) is not None:
        paths.append(path)
        at = match.end()
    return paths, line[at:].strip() if paths else line


def unquoted(argument: str) -> str:
    """A command's path as it was typed or, if only that is there, without what a terminal adds to a dropped path.

    A name in quotes that is not there yet is what they surround.
    """
    match = _DROPPED.fullmatch(argument)
    readings = (argument, *_readings(match)) if match else (argument,)
    new = match[1] or match[2] or argument if match else argument
    return next((text for text in readings if _is_there(text)), new)


def _path(match: re.Match[str]) -> Path | None:
    for path in map(Path, _readings(match)):
        if path.suffix.lower() in PICTURES | CLIPS and path.is_absolute() and _is_file(path):
            return path
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _is_there(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # as above; nobody's home
        return False


def _readings(match: re.Match[str]) -> Iterator[str]:
    quoted, bare = match[1] or match[2], match[3]
    text = quoted or bare
    if text.startswith("file://"):
        yield url2pathname(urlsplit(text).path)
    yield text
    if bare:
        yield re.sub(r"\\(.)", r"\1", bare)

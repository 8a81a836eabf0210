"""A small file that a verb writes: refused before the work begins, and written whole or not at all."""

from pathlib import Path

from edge_llama.errors import OutputError
from edge_llama.host.atomic import new_file
from edge_llama.host.windows import why_impossible

_ELSEWHERE = "give another name"


def check(path: Path, *, force: bool) -> None:
    """OutputError if ``path`` can't be written, or is there already without ``force``."""
    if why := why_impossible(path):
        raise OutputError(f"{path}: {why}", remedy=_ELSEWHERE)
    if path.exists() and not force:
        raise OutputError(f"{path}: already exists", remedy=f"{_ELSEWHERE}, or --force to replace it")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "it is a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise OutputError(f"{path}: cannot be written: {what}", remedy=_ELSEWHERE)


def write(path: Path, content: bytes) -> None:
    """Write it, complete or not at all. OutputError if it can't be written."""
    try:
        with new_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}", remedy=_ELSEWHERE) from error

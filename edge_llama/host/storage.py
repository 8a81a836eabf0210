"""How much lies in a folder, and how much more would fit."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Contents:
    """Files below a folder, and their bytes together."""

    files: int
    bytes: int


def contents(folder: Path) -> Contents:
    """What is below ``folder``, links not followed; what can't be read counts as nothing."""
    sizes = list(_sizes(str(folder)))
    return Contents(len(sizes), sum(sizes))


def _sizes(folder: str) -> Iterator[int]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path)
            else:
                yield entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue


def free_bytes(path: Path) -> int | None:
    """Bytes that may still be written where ``path`` lies, or would; None if the system doesn't say."""
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None

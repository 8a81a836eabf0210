"""Files and folders that appear complete or not at all: whoever is killed in between leaves what was there before.

A new file grows under a hidden name beside the one that it will replace, ``.NAME.XXXXXXXX.partial``, since a rename is
atomic within one folder alone.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edge_llama.host.windows import move, why_impossible

PARTIAL = ".partial"
"""How the names of unfinished files and folders end."""


@contextmanager
def new_file(path: Path, *, is_private: bool = False) -> Iterator[IO[bytes]]:
    """The file to write: on leaving it is synced to the disk and takes the place of ``path``.

    Left by an exception, nothing of it remains and ``path`` is as before. ``is_private``: nobody but its owner may
    read it. OSError if it can't be written, whose ``strerror`` says what to do where Windows' rules are the reason.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    _check_name(path, partial)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(partial, flags, 0o600 if is_private else 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill: on leaving it takes the place of ``path``, which is deleted. OSError as above."""
    partial, aside = (path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}") for _ in range(2))
    _check_name(path, partial)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.mkdir()
        yield partial
        replace_folder(partial, path, aside)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(new: Path, path: Path, aside: Path) -> None:
    """Rename ``new`` to ``path``; what is there is moved ``aside``, and back again if the rename fails (OSError)."""
    if path.is_dir():
        move(path, aside)
    try:
        move(new, path)
    except OSError:
        if aside.is_dir():
            move(aside, path)
        raise


def _check_name(path: Path, partial: Path) -> None:
    if why := why_impossible(path, partial.absolute()):
        raise OSError(errno.EINVAL, why, str(path))


def sync_folder(folder: Path) -> None:
    """Have a rename in ``folder`` survive a power cut; Windows has no way to ask for it, and needs none."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

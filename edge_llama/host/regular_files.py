"""Reading files, and nothing that waits: a FIFO, a socket or a device is refused before it is opened.

Opening a FIFO waits for a writer, who may never come, and a device may never end. All that is read by a path that a
user gave is opened here; what is refused is an OSError like any other that a file may raise, so that whoever reads
says which file it was and what to do.
"""

import errno
import io
import os
import stat
from pathlib import Path
from typing import Literal, overload

_KINDS = (
    (stat.S_ISFIFO, "a FIFO, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
)
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""Without waiting: a path may become another thing between the look at it and its opening."""


@overload
def opened(path: Path) -> io.BufferedReader: ...
@overload
def opened(path: Path, buffering: Literal[0]) -> io.FileIO: ...
def opened(path: Path, buffering: Literal[-1, 0] = -1) -> io.BufferedReader | io.FileIO:
    """The regular file at ``path`` for reading bytes; ``buffering`` 0 is none, as of :func:`open`.

    OSError if there is none or it can't be read, at once also for what would be waited for; IsADirectoryError for a
    folder.
    """
    _check(path, os.stat(path))  # noqa: PTH116 - of what a link leads to; sockets can't be opened, some devices act
    descriptor = os.open(path, _FLAGS)
    try:
        _check(path, os.fstat(descriptor))
        raw = io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    return io.BufferedReader(raw) if buffering else raw


def content_of(path: Path) -> bytes:
    """All of a regular file. OSError as :func:`opened`."""
    with opened(path) as file:
        return file.read()


def text_of(path: Path, encoding: str, errors: str = "strict", *, may_be_piped: bool = False) -> str:
    """A regular file's text, with Unix line ends. OSError as :func:`opened`, UnicodeDecodeError.

    ``may_be_piped``: what is open already is read too, as a shell's ``<(command)`` gives it: it has a writer.
    """
    content = path.read_bytes() if may_be_piped and _is_open_already(path) else content_of(path)
    text = content.decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def why_no_file(path: Path) -> str:
    """What is at ``path`` and neither a file nor a folder: ``a FIFO, not a file``; "" for these, and for nothing."""
    try:
        return _kind(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return ""


def _is_open_already(path: Path) -> bool:
    return str(path) == "/dev/stdin" or str(path.parent) in ("/dev/fd", "/proc/self/fd")


def _kind(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "")


def _check(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind := _kind(status.st_mode):
        raise OSError(errno.EINVAL, kind, str(path))

"""Memory that both processes see: a file without a name, so that nothing is left behind whoever dies.

The parent makes it and hands its descriptor to the child; the parent alone says who uses which region of it.
On Linux it is a memfd, which no mount's limit concerns (a container's /dev/shm holds 64 MB); elsewhere a temporary
file that is removed already. Bytes are reserved before they are mapped: to write where the system has no room would
end the process with SIGBUS.
"""

import mmap
import os
import tempfile
import threading
from bisect import insort
from contextlib import suppress
from dataclasses import dataclass, field

from edge_llama.errors import EngineError
from edge_llama.host.devices import available_memory

_UNIT = mmap.ALLOCATIONGRANULARITY


class ClosedError(Exception):
    """The file is closed: the child that it was shared with is no more."""


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """``size`` bytes at ``start``, which begins a page, and they themselves. Whoever took it gives it back."""

    start: int
    size: int
    memory: mmap.mmap = field(compare=False, repr=False)


class SharedFile:
    """The file, and who has which part of it. Any thread may use it."""

    def __init__(self) -> None:
        """EngineError if the system gives no such file."""
        try:
            self.descriptor = _nameless_file()
        except OSError as error:
            raise EngineError(
                f"no file to share with the model's process can be made: {error.strerror or error}",
                remedy="see to the folder for temporary files (TMPDIR)",
            ) from error
        self._lock = threading.Lock()
        self._taken: list[Region] = []  # by their starts
        self._size = 0
        self._is_closed = False

    def take(self, size: int) -> Region:
        """Room for ``size`` bytes. EngineError if the system has none, ClosedError."""
        with self._lock:
            if self._is_closed:  # the descriptor may be another file's by now
                raise ClosedError
            start = 0
            for other in self._taken:
                if start + size <= other.start:
                    break
                start = other.start + _whole_pages(other.size)
            end = start + _whole_pages(size)
            if end > self._size:
                self._grow(end)
            region = Region(start, size, view(self.descriptor, start, size))
            insort(self._taken, region)
            return region

    def free(self, region: Region) -> None:
        """Another may have it: neither process looks there any more. The system gets the memory of the last one."""
        with self._lock:
            self._taken.remove(region)
            if not self._taken and not self._is_closed and os.name == "posix":  # Windows shortens no mapped file
                os.ftruncate(self.descriptor, 0)
                self._size = 0

    def close(self) -> None:
        """Give the memory back, once what is mapped is not any more."""
        with self._lock:
            self._is_closed = True
            os.close(self.descriptor)

    def _grow(self, size: int) -> None:
        try:
            if size - self._size > (free := available_memory()):  # a memfd would take all there is before it says so
                raise OSError(f"{free:,} are free")
            _reserve(self.descriptor, self._size, size)
        except OSError as error:
            raise EngineError(
                f"no room for {size:,} bytes to hand to the model's process: {error.strerror or error}",
                remedy="close other programs, or give fewer or smaller images at once",
            ) from error
        self._size = size


def view(descriptor: int, start: int, size: int) -> mmap.mmap:
    """``size`` bytes of the file from ``start``, which begins a page: what one process writes the other reads."""
    return mmap.mmap(descriptor, max(size, 1), offset=start)


def _whole_pages(size: int) -> int:
    return -(-max(size, 1) // _UNIT) * _UNIT


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # a sandbox may forbid it
            return os.memfd_create("edge-llama", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())  # not inheritable


def _reserve(descriptor: int, start: int, stop: int) -> None:
    """Have the file hold the bytes from ``start`` to ``stop``, zeros. OSError if there is no room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, stop - start)
    elif hasattr(os, "pwrite"):
        for at in range(start, stop, _UNIT):
            os.pwrite(descriptor, bytes(min(_UNIT, stop - at)), at)
    else:  # where a mapping makes the file longer, with room for all of it
        mmap.mmap(descriptor, stop).close()

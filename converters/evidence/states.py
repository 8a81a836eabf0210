"""Hidden states of all chunks, one row a token: in a file, of which a chunk at a time is in memory; or in memory."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import OutputError

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
ELSEWHERE = "make room, or name another folder in the environment's TMPDIR"


class States(Protocol):
    """Rows of float32, ``(rows, columns)``."""

    def read(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``."""

    def write(self, start: int, rows: Floats) -> None:
        """Put ``rows`` from ``start`` on."""

    def gather(self, numbers: Numbers) -> Floats:
        """The rows of these numbers."""

    def add(self, numbers: Numbers, rows: Floats) -> None:
        """Add ``rows`` to those of these numbers, of which none occurs twice."""


class HeldStates:
    """Rows in memory."""

    def __init__(self, rows: Floats) -> None:
        self.rows = rows

    def read(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``."""
        return self.rows[start:stop]

    def write(self, start: int, rows: Floats) -> None:
        """Put ``rows`` from ``start`` on."""
        self.rows[start : start + len(rows)] = rows

    def gather(self, numbers: Numbers) -> Floats:
        """The rows of these numbers."""
        return self.rows[numbers]

    def add(self, numbers: Numbers, rows: Floats) -> None:
        """Add ``rows`` to those of these numbers."""
        self.rows[numbers] += rows


class StoredStates:
    """Rows in a file of ``folder`` that has no name: it ends with the process, however that ends.

    OutputError if it can't be written.
    """

    def __init__(self, folder: Path, columns: int) -> None:
        self._folder, self._columns = folder, columns
        self._row = 4 * columns
        with self._errors():
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - closed by close()

    def close(self) -> None:
        """Give the file's room back."""
        self._file.close()

    def read(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``."""
        rows = np.empty((stop - start, self._columns), np.float32)
        self._transfer(start, rows, self._file.readinto)
        return rows

    def write(self, start: int, rows: Floats) -> None:
        """Put ``rows`` from ``start`` on."""
        self._transfer(start, np.ascontiguousarray(rows), self._file.write)

    def gather(self, numbers: Numbers) -> Floats:
        """The rows of these numbers."""
        rows = np.empty((len(numbers), self._columns), np.float32)
        for at, number in enumerate(numbers.tolist()):
            rows[at : at + 1] = self.read(number, number + 1)
        return rows

    def add(self, numbers: Numbers, rows: Floats) -> None:
        """Add ``rows`` to those of these numbers."""
        for at, number in enumerate(numbers.tolist()):
            self.write(number, self.read(number, number + 1) + rows[at : at + 1])

    def _transfer(self, start: int, rows: Floats, act: Callable[[memoryview], int | None]) -> None:
        left = rows.view(np.uint8).reshape(-1).data
        with self._errors():
            self._file.seek(start * self._row)
            while left:
                if not (count := act(left)):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                left = left[count:]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._folder}: hidden states: {error.strerror}", remedy=ELSEWHERE) from error

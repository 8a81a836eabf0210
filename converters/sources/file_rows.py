"""Rows of numbers, read where they lie in a file; never mapped: a file that shrinks is an error and no crash."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Stored, Tensor
from edge_llama.errors import UNREADABLE, CheckpointError
from edge_llama.files.formats import Format
from edge_llama.host.regular_files import opened


def tensor_in(
    path: Path, name: str, shape: tuple[int, ...], format_: Format, offset: int, pitch: int | None = None
) -> Tensor:
    """The tensor whose rows lie in the file at ``path``, as :class:`FileRows` has them."""
    rows = FileRows(path, offset, format_.row_bytes(shape[-1]), pitch)
    nbytes = prod(shape[:-1]) * rows.row_bytes
    return Tensor(name, shape, format_, rows, stored=frozenset({Stored(path, offset, nbytes)}))


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of ``row_bytes`` bytes, the first at ``offset``, which begin ``pitch`` bytes apart (None: no gaps)."""

    path: Path
    offset: int
    row_bytes: int
    pitch: int | None = None

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows ``start`` to ``stop``, uint8 ``(stop - start, row_bytes)``; CheckpointError if they can't be read."""
        if self.pitch not in (None, self.row_bytes):
            return self.stripe(start, stop, 0, self.row_bytes)
        wanted = (stop - start) * self.row_bytes
        try:
            raw = np.fromfile(self.path, np.uint8, wanted, offset=self.offset + start * self.row_bytes)
        except OSError as error:
            raise self._unreadable(error) from error
        if raw.size != wanted:
            raise self._ended()
        return raw.reshape(stop - start, self.row_bytes)

    def stripe(self, start: int, stop: int, first: int, last: int) -> NDArray[np.uint8]:
        """Bytes ``first`` to ``last`` of each of these rows; what lies between is not read."""
        rows = np.empty((stop - start, last - first), np.uint8)
        pitch = self.pitch or self.row_bytes
        at = self.offset + start * pitch + first
        try:
            with opened(self.path, buffering=0) as file:
                for row in rows:
                    file.seek(at)
                    if file.readinto(row.data) != last - first:
                        raise self._ended()
                    at += pitch
        except OSError as error:
            raise self._unreadable(error) from error
        return rows

    def _unreadable(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self.path}: cannot be read: {error.strerror}", remedy=UNREADABLE)

    def _ended(self) -> CheckpointError:
        return CheckpointError(f"{self.path}: ended while being read", remedy="the file changed meanwhile: start again")

"""What is made of a matrix beside what is being written: scales, which wait for their turn in the file.

So a matrix is read and quantized once, though its arrays lie one after another. Memory is bounded: what finds no room
is made again from the matrix when its turn comes.
"""

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.targets.layout import Entry
from quant.nbits import ArrayFormat, Arrays

_ROOM = 64 << 20  # the scales of a billion weights, as float32, take 128 MB


class Companions:
    """Arrays that wait, by matrix, part and first row. Threads share it."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """``entries`` are those that will be written: nothing else is kept."""
        self._awaited = {
            (entry.tensor.read, entry.format) for entry in entries if isinstance(entry.format, ArrayFormat)
        }
        self._waiting: dict[tuple[Any, int], NDArray[np.uint8]] = {}
        self._room = _ROOM
        self._lock = threading.Lock()

    def keep(self, entry: Entry, start: int, arrays: Arrays) -> None:
        """Have what was made beside ``entry``'s own array of the rows from ``start`` on."""
        if not isinstance(entry.format, ArrayFormat) or not entry.is_first:
            return
        for part, array in arrays.items():
            format_ = entry.format.grid.array(part, is_transposed=entry.format.is_transposed)
            key = (entry.tensor.read, format_)
            with self._lock:
                if part != entry.format.part and key in self._awaited and array.nbytes <= self._room:
                    self._room -= array.nbytes
                    self._waiting[key, start] = array

    def take(self, entry: Entry, start: int) -> NDArray[np.uint8] | None:
        """What waits for this entry, which is then forgotten."""
        with self._lock:
            found = self._waiting.pop(((entry.tensor.read, entry.format), start), None)
            self._room += 0 if found is None else found.nbytes
            return found

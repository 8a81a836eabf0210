"""Scales and zero points that wait for their turn in the file, while the numbers of their matrix are written.

So a matrix is read and quantized once, though its arrays lie one after another. Memory is bounded: what finds no room
is computed again from the matrix when its turn comes.
"""

import threading
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.files.formats import Format
from quant.nbits import ArrayFormat, Arrays

_ROOM = 64 << 20  # bytes; the scales of a billion weights, as float32, take 128 MB


class PendingScales:
    """Arrays that wait, by matrix, format and first row. Threads share it."""

    def __init__(self, entries: Iterable[tuple[Tensor, Format]]) -> None:
        """``entries`` are those that will be written: nothing else is kept."""
        self._awaited = {(tensor.read, format_) for tensor, format_ in entries if isinstance(format_, ArrayFormat)}
        self._waiting: dict[tuple[object, Format, int], NDArray[np.uint8]] = {}
        self._room = _ROOM
        self._lock = threading.Lock()

    def keep(self, tensor: Tensor, format_: ArrayFormat, start: int, arrays: Arrays) -> None:
        """Have what was computed beside the array ``format_`` of ``tensor``'s rows from ``start`` on."""
        for part, array in arrays.items():
            other = format_.grid.array(part, is_transposed=format_.is_transposed)
            with self._lock:
                is_awaited = part != format_.part and (tensor.read, other) in self._awaited
                if is_awaited and array.nbytes <= self._room:
                    self._room -= array.nbytes
                    self._waiting[tensor.read, other, start] = array

    def take(self, tensor: Tensor, format_: Format, start: int) -> NDArray[np.uint8] | None:
        """What waits for the array ``format_`` of ``tensor``'s rows from ``start`` on, which is then forgotten."""
        with self._lock:
            found = self._waiting.pop((tensor.read, format_, start), None)
            self._room += 0 if found is None else found.nbytes
            return found

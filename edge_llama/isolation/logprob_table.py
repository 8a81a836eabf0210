"""Log-probabilities that an answer asked for, in memory that both processes see: the child writes, the parent reads.

A row for each token, as it comes; the pipe carries only how many rows there are.
"""

import mmap
from collections.abc import Sequence

import numpy as np

from edge_llama.sampling.logprobs import Alternative, TokenLogprobs


def _row(count: int) -> np.dtype[np.void]:
    candidate = np.dtype([("token", "<i4"), ("logprob", "<f8")])
    return np.dtype([("chosen", candidate), ("n_top", "<i4"), ("top", candidate, (count,))])


def table_bytes(rows: int, count: int) -> int:
    """Bytes of a table of so many rows with ``count`` alternatives each."""
    return rows * _row(count).itemsize


class LogprobTable:
    """The rows of one answer; each side goes through them once, in order."""

    def __init__(self, memory: mmap.mmap, rows: int, count: int) -> None:
        self._rows = np.frombuffer(memory, _row(count), rows)
        self._at = 0

    def append(self, entries: Sequence[TokenLogprobs]) -> None:
        """Write the next rows."""
        for entry in entries:
            row = self._rows[self._at]
            row["chosen"] = (entry.token_id, entry.logprob)
            row["n_top"] = len(entry.top)
            row["top"][: len(entry.top)] = [(each.token_id, each.logprob) for each in entry.top]
            self._at += 1

    def take(self, count: int) -> tuple[TokenLogprobs, ...]:
        """Read the next ``count`` rows."""
        rows = self._rows[self._at : self._at + count]
        self._at += count
        columns = (rows[name].tolist() for name in ("chosen", "n_top", "top"))
        return tuple(
            TokenLogprobs(token, logprob, tuple(Alternative(*each) for each in top[:n_top]))
            for (token, logprob), n_top, top in zip(*columns, strict=True)
        )

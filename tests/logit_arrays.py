"""Logits that lie in arrays, as a source: what is computed of them can be computed anew from the same arrays."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


class Arrays:
    """A LogitSource over given logits ``(n, n_vocab)`` of each chunk; remembers which rows were asked for."""

    def __init__(self, name: str, logits: Sequence[NDArray[np.float32]]) -> None:
        self.name = name
        self.asked: list[tuple[int, int, int]] = []
        self._logits = logits

    @property
    def n_vocab(self) -> int:
        return self._logits[0].shape[1]

    def prepare(
        self, chunks: Sequence[NDArray[np.int64]], on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        assert [len(ids) for ids in chunks] == [len(logits) for logits in self._logits]

    def logits(self, number: int, start: int, stop: int) -> NDArray[np.float32]:
        self.asked.append((number, start, stop))
        return self._logits[number][start:stop]

"""A tower used by hand for one sequence alone, whose logits can be looked at."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import base
from edge_llama.backends.base import Rows, TextTower
from edge_llama.sampling.sampler import LogitsRow


class OneSequence(base.OneSequence):
    """As the product uses it, and remembers what the last decode gave."""

    def __init__(self, tower: TextTower, sequence: int = 0) -> None:
        super().__init__(tower, sequence)
        self._row: LogitsRow | None = None

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self.tower.length(self.sequence)

    def decode(self, tokens: Sequence[int]) -> LogitsRow:
        self._row = None
        self._row = super().decode(tokens)
        return self._row

    def decode_embeddings(self, embeddings: NDArray[np.float32]) -> None:
        """Append ``(n, n_embd)`` embeddings."""
        self._row = None
        (self._row,) = self.tower.decode([Rows(self.sequence, [0] * len(embeddings), embeddings)])

    def logits(self) -> NDArray[np.float32]:
        """A copy of the logits of the last decoded position, ``(n_vocab,)``."""
        assert self._row
        return self._row.values.copy()

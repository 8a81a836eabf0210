"""Logits of many positions of a text, where it is not answered but measured."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import Rows, TextTower


@runtime_checkable
class ScoringTower(Protocol):
    """A text tower that gives the logits of several rows of a decode. Used by the thread that owns it."""

    def decode_scored(self, sequence: int, tokens: Sequence[int], count: int) -> NDArray[np.float32]:
        """Append tokens, at most ``n_batch``; the logits after each of the last ``count``: ``(count, n_vocab)``.

        They are the engine's own, good until the next decode. Raises as ``decode`` does.
        """


def scored(tower: TextTower, sequence: int, tokens: Sequence[int], count: int) -> NDArray[np.float32]:
    """The same of any tower, and of any number of tokens: one that gives the last logits alone gets token by token.

    Good until the next decode.
    """
    before, after = tokens[: len(tokens) - count], tokens[len(tokens) - count :]
    if isinstance(tower, ScoringTower):
        parts = _together(tower, tower.n_batch, sequence, tokens, count)
    else:
        for start in range(0, len(before), tower.n_batch):
            tower.decode([Rows(sequence, before[start : start + tower.n_batch], needs_logits=False)])
        parts = []
        for token in after:
            (row,) = tower.decode([Rows(sequence, [token])])
            parts.append(row.values[None].copy())
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _together(
    tower: ScoringTower, n_batch: int, sequence: int, tokens: Sequence[int], count: int
) -> list[NDArray[np.float32]]:
    """In decodes as large as may be; what only leads to the rows that are wanted goes along with the first of them."""
    n_before = len(tokens) - count
    parts = []
    for start in range(0, len(tokens), n_batch):
        part = tokens[start : start + n_batch]
        wanted = min(len(part), max(0, start + len(part) - n_before))
        logits = tower.decode_scored(sequence, part, wanted)
        if wanted:
            parts.append(logits if start + len(part) == len(tokens) else logits.copy())
    return parts

"""What is measured: chunks of token ids, and whatever gives next-token logits for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens that a model reads from an empty context, and which of them are scored."""

    ids: NDArray[np.int64]
    """``(n,)``, with the token that begins texts if the model has one."""
    text: str
    """The name of the text that they are of."""
    domain: str = ""
    """What kind of text that is, ``prose`` or ``code``; several texts may be of one."""
    begin: int = 1
    """The first token that is scored, from 1 to ``n - 1``; those before it are context alone."""

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or not 1 <= self.begin < len(self.ids):
            raise ValueError(f"a chunk of the shape {self.ids.shape} can't be scored from token {self.begin}")

    @property
    def n_scored(self) -> int:
        """Tokens whose probability counts."""
        return len(self.ids) - self.begin


class LogitSource(Protocol):
    """What gives next-token logits for chunks of token ids: an engine's model, or a checkpoint run layer by layer."""

    @property
    def name(self) -> str:
        """What reports call it: a file's name."""

    @property
    def n_vocab(self) -> int:
        """Logits that each row has."""

    def prepare(
        self, chunks: Sequence[NDArray[np.int64]], on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Do what must be done for all chunks before the first logits, if anything; ids are ``(n,)`` each.

        ``on_progress(done, total)`` is told in units of the source's own. Raises EdgeLlamaError.
        """

    def logits(self, number: int, start: int, stop: int) -> NDArray[np.float32]:
        """The logits after the tokens ``start`` to ``stop - 1`` of chunk ``number``: ``(stop - start, n_vocab)``.

        Row ``i`` is what the model says of token ``start + i + 1``, having read all up to ``start + i``. Called with
        chunks in order and, within one, with increasing ``start``; rows may be left out, as those before the first
        token that is scored. Raises EdgeLlamaError.
        """

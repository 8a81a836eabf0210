"""What chooses tokens, whichever engine brings it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class LogitsRow:
    """Logits of a sequence's last position, float32 ``(n_vocab,)``."""

    values: NDArray[np.float32]
    """The engine's own: what is written there its sampler sees. Good until the next ``decode``."""
    index: int = -1
    """Which row of the last ``decode`` they are of; -1: they were kept from an earlier one."""


class Sampler(Protocol):
    """Chooses tokens for one answer, remembering those that it chose.

    An engine without one of its own gives NumpySampler (:mod:`edge_llama.sampling.numpy_sampler`). What surrounds it
    for every engine, grammars and logprobs, is in :mod:`edge_llama.sampling.token_choice`. Samplers of several answers
    may work at the same time, each in one thread.
    """

    def sample(self, row: LogitsRow) -> int:
        """A token by these logits, as they are now."""

    def accept(self, token: int) -> None:
        """Remember a token that came without being chosen here."""

    def close(self) -> None:
        """Give back the engine's memory."""

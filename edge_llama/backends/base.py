"""The seam between the runtime and its engines: two Protocols, one per tower."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_llama.sampling import SamplingParams
from edge_llama.tokenizer import Tokenizer


class AbortedError(Exception):
    """``decode`` was stopped by ``abort``; the cache is as it was before the call."""


class Sampler(Protocol):
    """Chooses tokens for one answer, remembering those that it chose.

    An engine without one of its own gives :class:`edge_llama.sampler.NumpySampler`. What surrounds it for every
    engine, grammars and logprobs, is in :mod:`edge_llama.generation`.
    """

    def sample(self) -> int:
        """A token by what :meth:`TextTower.logits_view` holds now."""

    def close(self) -> None:
        """Give back the engine's memory."""


class TextTower(Protocol):
    """Tokens in, logits out, with a KV cache of one sequence. Only one thread may use it, ``abort`` excepted."""

    @property
    def n_ctx(self) -> int:
        """Positions that the cache holds."""

    @property
    def n_batch(self) -> int:
        """Tokens that one ``decode`` takes at most."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary."""

    def decode(self, tokens: Sequence[int]) -> None:
        """Append tokens to the cache. Raises AbortedError, or EngineError; then nothing was appended.

        A cache that can't be cut is empty after that: see ``length``.
        """

    def logits(self) -> NDArray[np.float32]:
        """A copy of the logits of the last decoded position, ``(n_vocab,)``."""

    def logits_view(self) -> NDArray[np.float32]:
        """The engine's own logits of the last decoded position, ``(n_vocab,)``: what is written there its sampler sees.

        Good until the next ``decode``.
        """

    @property
    def length(self) -> int:
        """Positions that are in the cache."""

    def rewind(self, length: int) -> int:
        """Keep the first ``length`` positions of the cache, or none where it can't be cut; how many are kept."""

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        """A sampler that has already seen the tokens of ``history``."""

    def use_threads(self, count: int) -> None:
        """How many threads the next ``decode`` uses."""

    def abort(self) -> None:
        """Stop the ``decode`` that is running, and refuse others until ``resume``. Any thread may call it."""

    def resume(self) -> None:
        """Take work again after ``abort``."""

    def close(self) -> None:
        """Give back the engine's memory."""


class VisionTower(Protocol):
    """Tiles in, embeddings out."""

    def encode(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(n_tiles, 3, side, side)`` normalised pixels to ``(n_tiles, tokens, n_embd)`` embeddings."""

"""The seam between the runtime and its engines: two Protocols, one per tower."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import EngineError
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.sampling.params import SamplingParams


class AbortedError(Exception):
    """``decode`` was stopped by ``abort``; nothing was appended."""


class Sampler(Protocol):
    """Chooses tokens for one answer, remembering those that it chose.

    An engine without one of its own gives NumpySampler (:mod:`edge_llama.sampling.numpy_sampler`). What surrounds it
    for every engine, grammars and logprobs, is in :mod:`edge_llama.generation`.
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
    def n_embd(self) -> int:
        """Width of an embedding."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary."""

    @property
    def length(self) -> int:
        """Positions in the cache."""

    def decode(self, tokens: Sequence[int]) -> None:
        """Append tokens to the cache. Raises AbortedError, or EngineError; then nothing was appended.

        A memory that can't be cut (see :meth:`rewind`) is empty after an error.
        """

    def decode_embeddings(self, embeddings: NDArray[np.float32]) -> None:
        """Append ``(n, n_embd)`` embeddings, at most ``n_batch``, in place of tokens. As :meth:`decode`."""

    def logits(self) -> NDArray[np.float32]:
        """A copy of the logits of the last decoded position, ``(n_vocab,)``."""

    def logits_view(self) -> NDArray[np.float32]:
        """The engine's own logits of the last decoded position, ``(n_vocab,)``: what is written there its sampler sees.

        Good until the next ``decode``.
        """

    def rewind(self, length: int) -> None:
        """Keep the first ``length`` positions of the cache; none where its memory can't be cut there: recurrent states.

        :attr:`length` tells.
        """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the bytes of :meth:`save` depend on, besides the model: JSON values, ``engine`` names it."""

    @property
    def saved_bytes(self) -> int:
        """Bytes that :meth:`save` would give."""

    def save(self) -> NDArray[np.uint8]:
        """A copy of the whole cache, in the engine's own format."""

    def load(self, kv: NDArray[np.uint8], length: int, logits: NDArray[np.float32] | None) -> None:
        """Have the cache of ``length`` positions that :meth:`save` gave, and the logits of its last, if known.

        EngineError if the engine refuses it: the cache is then empty. The bytes are not checked: native code reads
        them as they are.
        """

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


def checked_embeddings(embeddings: NDArray[np.float32], tower: TextTower) -> NDArray[np.float32]:
    """Contiguous float32 ``(n, n_embd)``; EngineError for another shape, or for more than the tower takes at once."""
    values = np.ascontiguousarray(embeddings, np.float32)
    if values.ndim != 2 or values.shape[1] != tower.n_embd or not 0 < len(values) <= tower.n_batch:
        raise EngineError(f"embeddings have the shape {values.shape}, expected (n, {tower.n_embd:,})")
    return values


class VisionTower(Protocol):
    """Tiles in, embeddings out. Only one thread may use it, ``abort`` excepted."""

    def encode(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(n_tiles, 3, side, side)`` normalised pixels to ``(n_tiles, tokens_per_tile, n_embd)`` embeddings.

        Raises AbortedError, or EngineError.
        """

    def use_threads(self, count: int) -> None:
        """How many threads the next ``encode`` uses, where the engine can be told."""

    def abort(self) -> None:
        """Stop the ``encode`` that is running, and refuse others until ``resume``. Any thread may call it."""

    def resume(self) -> None:
        """Take work again after ``abort``."""

    def close(self) -> None:
        """Give back the engine's memory. May be called twice."""

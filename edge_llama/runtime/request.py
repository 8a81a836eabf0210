"""One generation in the scheduler: a state machine that is given logits and says which tokens follow."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet
from edge_llama.errors import EdgeLlamaError, EngineError
from edge_llama.runtime.cache_entries import CacheOwner, Divergence
from edge_llama.sampling.sampler import LogitsRow

Embed = Callable[[int, int], NDArray[np.float32]]
"""Embeddings ``(stop - start, n_embd)`` for positions ``start`` to ``stop`` of a prompt: one tile's."""


class Request(ABC):
    """What the scheduler brings to its end. It calls in its own thread; ``cancel`` may be called from any.

    Who cancels is released at once: the answer so far is closed by the thread that cancels, or by the scheduler's if
    that is within it. So nothing here waits for the engine.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        owner: CacheOwner | None = None,
        embed: Embed | None = None,
        deadline: float | None = None,
        adapters: AdapterSet = (),
    ) -> None:
        """A negative id of ``prompt`` stands for an embedding, for which ``embed`` is asked.

        For ``owner`` the cache is kept. At ``deadline``, by time.monotonic, an error ends the request. It is computed
        with ``adapters``.
        """
        self.prompt = tuple(prompt)
        self.prompt_ids = np.array(self.prompt, np.int32)
        self.owner = owner
        self.embed = embed
        self.deadline = deadline
        self.adapters = adapters
        self.samples_apart = False
        """Whether choosing a token takes so long that other threads should do it for others meanwhile."""
        self.is_cancelled = False
        self.is_ended = False
        self._pid = os.getpid()
        self._is_within = threading.Lock()

    @abstractmethod
    def started(self, cached: int, divergence: Divergence | None) -> None:
        """``cached`` tokens of the prompt are in the engine's cache; the rest is prefilled now."""

    @abstractmethod
    def accept(self, row: LogitsRow, room: int) -> Sequence[int]:
        """Go on by the logits after all tokens so far; the tokens to append, none if this was the end.

        ``room`` is how many more the context holds. What it raises ends the request.
        """

    @abstractmethod
    def send(self) -> None:
        """Give the caller what :meth:`accept` found."""

    @abstractmethod
    def finish(self, error: EdgeLlamaError | None) -> None:
        """It was cancelled, or ``error`` ends it: tell the caller."""

    @abstractmethod
    def encoded(self, tiles: int, seconds: float) -> None:
        """Some of its image's tiles were embedded."""

    def cancel(self) -> None:
        """Tell the caller at once that this is the end, unless it came already. Called again it does nothing."""
        self.is_cancelled = True
        if os.getpid() == self._pid:  # else the lock may be held by a thread that does not exist here
            self.release()

    def advance(self, row: LogitsRow, room: int) -> Sequence[int]:
        """:meth:`accept`, with whatever it raises told to the caller; no tokens once this has ended."""
        with self._is_within:
            tokens: Sequence[int] = ()
            if not self.is_ended:
                try:
                    tokens = self.accept(row, room)
                    self.is_ended = not tokens
                except BaseException as error:  # whatever it is, others wait for this thread
                    self._finish(as_engine_error(error))
        self.release()
        return () if self.is_ended else tokens

    def deliver(self) -> None:
        """:meth:`send`, which wakes the caller: it then takes processor time from whatever this thread does."""
        with self._is_within:
            self.send()
        self.release()

    def fail(self, error: BaseException) -> None:
        """``error`` ends it."""
        with self._is_within:
            if not self.is_ended:
                self._finish(as_engine_error(error))

    def release(self) -> None:
        """If it was cancelled, tell the caller, unless a thread is within: that will do so when it leaves."""
        while self.is_cancelled and not self.is_ended and self._is_within.acquire(blocking=False):
            try:
                if not self.is_ended:
                    self._finish(None)
            finally:
                self._is_within.release()

    def _finish(self, error: EdgeLlamaError | None) -> None:
        self.finish(error)
        self.is_ended = True


def as_engine_error(error: BaseException) -> EdgeLlamaError:
    """The error itself if it is one of ours, else one that has it as its cause."""
    if isinstance(error, EdgeLlamaError):
        return error
    ours = EngineError(f"the engine's work failed: {type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours

"""A KV cache and the tokens in it, for one conversation after the other."""

import logging
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from edge_llama.backends.base import TextTower
from edge_llama.errors import ContextFullError, EngineError
from edge_llama.parking import Parking, Reader, State, shared

_log = logging.getLogger(__name__)


class Session:
    """Reads prompts into a tower's cache, and reads nothing twice that this or a parked cache already holds.

    What is in the cache belongs to the readers of it. Another one's prompt displaces it: then it is parked. A reader
    that goes back on its own gives up what it leaves.
    """

    def __init__(self, tower: TextTower, room: Callable[[int], int] = lambda _used: 0) -> None:
        """``room``: see :class:`edge_llama.parking.Parking`; without it nothing is parked."""
        self._tower = tower
        self._parking = Parking(room)
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._has_logits = False
        self.tokens: list[int] = []

    @property
    def is_full(self) -> bool:
        """Whether no further token fits."""
        return len(self.tokens) >= self._tower.n_ctx

    def read(self, prompt: Sequence[int], reader: Reader | None = None) -> int:
        """Bring the cache to hold exactly ``prompt``, its last position's logits ready; the number of tokens reused.

        Raises ContextFullError before any work; AbortedError leaves what was read so far in the cache.
        """
        if len(prompt) >= self._tower.n_ctx:
            raise ContextFullError(len(prompt), self._tower.n_ctx)
        reused = self._turn_to(prompt, reader)
        if reused == len(prompt) == len(self.tokens) and self._has_logits:
            return reused
        self.rewind(min(reused, len(prompt) - 1))
        reused = len(self.tokens)
        step = self._tower.n_batch
        for start in range(reused, len(prompt), step):
            self.append(*prompt[start : start + step])
        return reused

    def append(self, *tokens: int) -> None:
        """Decode at most ``n_batch`` tokens after those in the cache."""
        self._has_logits = False
        try:
            self._tower.decode(tokens)
        except BaseException:
            del self.tokens[self._tower.length :]
            raise
        self._has_logits = True
        self.tokens += tokens

    def rewind(self, length: int) -> None:
        """Keep the first ``length`` tokens, or none where the model's memory can't be cut there."""
        if length < len(self.tokens):
            self._has_logits = False
            self._tower.rewind(length)
            del self.tokens[self._tower.length :]

    def share(self, reader: Reader, other: Reader) -> None:
        """``other`` goes on where ``reader`` is: a fork, which copies nothing."""
        if reader in self._readers:
            self._readers.add(other)
        else:
            self._parking.share(reader, other)

    def state(self, reader: Reader) -> State | None:
        """What ``reader`` has read, as far as it is still kept."""
        return self._copy() if reader in self._readers else self._parking.of(reader)

    def adopt(self, state: State, reader: Reader) -> None:
        """Bring the cache to ``state``, for ``reader``. EngineError if the engine refuses it; the cache is then empty.

        The engine is given its bytes as they are: they must come from :meth:`state`, of the same model and settings.
        """
        self._park(self._others(reader))
        self._restore(state)
        self._belongs_to(reader)

    def _turn_to(self, prompt: Sequence[int], reader: Reader | None) -> int:
        """Have the cache that begins as ``prompt`` for the most tokens; the number of these."""
        wanted = np.array(prompt, np.int32)
        here = shared(np.array(self.tokens, np.int32), wanted)
        waiting, there = self._parking.best(wanted)
        others = self._others(reader)
        if reader:
            self._parking.leave(reader)  # before parking: it makes room
        if waiting and there > here:
            self._parking.touch(waiting)
        self._park(others)  # also if the prompt only goes on from here: what follows is not theirs
        if waiting and there > here:
            here = self._try_restore(waiting, there)
        self._belongs_to(reader)
        return here

    def _try_restore(self, state: State, length: int) -> int:
        try:
            self._restore(state)
        except EngineError as error:
            _log.warning("a conversation that was kept can't be used, it is read again: %s", error)
            self._parking.drop(state)
            return 0
        return length

    def _restore(self, state: State) -> None:
        self._has_logits = False
        self._readers.clear()
        self.tokens = []
        self._tower.load(state.kv, len(state.tokens), state.logits)
        self.tokens = state.tokens.tolist()
        self._has_logits = state.logits is not None

    def _others(self, reader: Reader | None) -> list[Reader]:
        return [each for each in self._readers if each is not reader]

    def _belongs_to(self, reader: Reader | None) -> None:
        self._readers = weakref.WeakSet([reader] if reader else [])

    def _park(self, readers: Sequence[Reader]) -> None:
        if readers and self.tokens:
            self._parking.put(self._copy(), readers)

    def _copy(self) -> State:
        logits = self._tower.logits() if self._has_logits else None
        return State(np.array(self.tokens, np.int32), self._tower.save(), logits)

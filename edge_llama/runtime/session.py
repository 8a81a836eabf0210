"""A KV cache and the tokens in it, for one conversation after the other."""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import TextTower
from edge_llama.errors import ContextFullError, EngineError
from edge_llama.runtime.kv_store import Keeper, Parking, State, shared
from edge_llama.runtime.thread_pacer import Pace, Stopwatch

_log = logging.getLogger(__name__)

Embed = Callable[[int, int], NDArray[np.float32]]
"""Embeddings ``(stop - start, n_embd)`` for positions ``start`` to ``stop`` of a prompt: one tile's."""


class Session:
    """Reads prompts into a tower's cache, and reads nothing twice that this or a parked cache already holds.

    What is in the cache belongs to its keepers. What is read for another one displaces it: then it is parked. A keeper
    that goes back on its own gives up what it leaves.
    """

    def __init__(
        self, tower: TextTower, room: Callable[[int], int] = lambda _used: 0, pace: Pace | None = None
    ) -> None:
        """``room``: see :class:`edge_llama.runtime.kv_store.Parking`; without it nothing is parked.

        With a ``pace`` the number of threads follows the machine's load from token to token.
        """
        self._tower = tower
        self._parking = Parking(room)
        self._pace = pace
        self._keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()
        self.has_logits = False
        """Whether the last position's logits are at hand, as the model gave them."""
        self.tokens: list[int] = []

    @property
    def is_full(self) -> bool:
        """Whether no further token fits."""
        return len(self.tokens) >= self._tower.n_ctx

    def read(self, prompt: Sequence[int], keeper: Keeper | None = None, embed: Embed | None = None) -> int:
        """Bring the cache to hold exactly ``prompt``, its last position's logits ready; the number of tokens reused.

        A negative id is no token, it stands for an embedding: of an image's content and the place in it (see
        :mod:`edge_llama.runtime.encoders`). ``embed`` is asked only for those that are not in the cache.
        Raises ContextFullError before any work; AbortedError leaves what was read so far in the cache.
        """
        if len(prompt) >= self._tower.n_ctx:
            raise ContextFullError(len(prompt), self._tower.n_ctx)
        reused = self._turn_to(prompt, keeper)
        if reused == len(prompt) == len(self.tokens) and self.has_logits:
            return reused
        self.rewind(min(reused, len(prompt) - 1))
        reused = len(self.tokens)
        for start, stop in _batches(prompt, reused, self._tower.n_batch):
            if prompt[start] >= 0:
                self.append(*prompt[start:stop])
            else:
                assert embed  # noqa: S101 - who makes such ids gives what they stand for
                self._append(prompt[start:stop], embed(start, stop))
        return reused

    def append(self, *tokens: int) -> None:
        """Decode at most ``n_batch`` tokens after those in the cache."""
        self._append(tokens)

    def _append(self, tokens: Sequence[int], embeddings: NDArray[np.float32] | None = None) -> None:
        watch = Stopwatch()
        self.has_logits = False
        try:
            if embeddings is None:
                self._tower.decode(tokens)
            else:
                self._tower.decode_embeddings(embeddings)
        except BaseException:
            del self.tokens[self._tower.length :]
            raise
        self.has_logits = True
        self.tokens += tokens
        if self._pace:
            self._tower.use_threads(self._pace.after(*watch.read(), len(tokens)))

    def rewind(self, length: int) -> None:
        """Keep the first ``length`` tokens, or none where the model's memory can't be cut there."""
        if length < len(self.tokens):
            self.has_logits = False
            self._tower.rewind(length)
            del self.tokens[self._tower.length :]

    def share(self, keeper: Keeper, other: Keeper) -> None:
        """``other`` goes on where ``keeper`` is: a fork, which copies nothing."""
        if keeper in self._keepers:
            self._keepers.add(other)
        else:
            self._parking.share(keeper, other)

    def state(self, keeper: Keeper) -> State | None:
        """What ``keeper`` has read, as far as it is still kept."""
        return self._copy() if keeper in self._keepers else self._parking.of(keeper)

    def adopt(self, state: State, keeper: Keeper) -> None:
        """Bring the cache to ``state``, for ``keeper``. EngineError if the engine refuses it; the cache is then empty.

        The engine is given its bytes as they are: they must come from :meth:`state`, of the same model and settings.
        """
        self._park(self._others(keeper))
        self._restore(state)
        self._belongs_to(keeper)

    def _turn_to(self, prompt: Sequence[int], keeper: Keeper | None) -> int:
        """Have the cache that begins as ``prompt`` for the most tokens; the number of these."""
        wanted = np.array(prompt, np.int32)
        here = shared(np.array(self.tokens, np.int32), wanted)
        waiting, there = self._parking.best(wanted)
        others = self._others(keeper)
        if keeper:
            self._parking.leave(keeper)  # before parking: it makes room
        if waiting and there > here:
            self._parking.touch(waiting)
        self._park(others)  # also if the prompt only goes on from here: what follows is not theirs
        if waiting and there > here:
            here = self._try_restore(waiting, there)
        self._belongs_to(keeper)
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
        self.has_logits = False
        self._keepers.clear()
        self.tokens = []
        self._tower.load(state.kv, len(state.tokens), state.logits)
        self.tokens = state.tokens.tolist()
        self.has_logits = state.logits is not None

    def _others(self, keeper: Keeper | None) -> list[Keeper]:
        return [each for each in self._keepers if each is not keeper]

    def _belongs_to(self, keeper: Keeper | None) -> None:
        self._keepers = weakref.WeakSet([keeper] if keeper else [])

    def _park(self, keepers: Sequence[Keeper]) -> None:
        if keepers and self.tokens and self._parking.make_room(self._tower.saved_bytes, len(self.tokens)):
            self._parking.put(self._copy(), keepers)

    def _copy(self) -> State:
        logits = self._tower.logits() if self.has_logits else None
        return State(np.array(self.tokens, np.int32), self._tower.save(), logits)


def _batches(prompt: Sequence[int], start: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the tokens and the embeddings from ``start`` on are cut: an engine takes one kind at a time."""
    at = start
    for _, run in groupby(prompt[start:], key=lambda token: token >= 0):
        end = at + sum(1 for _ in run)
        for begin in range(at, end, size):
            yield begin, min(begin + size, end)
        at = end

"""A KV cache and the tokens in it, for one conversation after the other."""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import TextTower
from edge_llama.errors import ContextFullError, EngineError
from edge_llama.runtime.kv_store import CacheOwner, KVStore, State, shared
from edge_llama.runtime.thread_pacer import Pace, Stopwatch

_log = logging.getLogger(__name__)

Embed = Callable[[int, int], NDArray[np.float32]]
"""Embeddings ``(stop - start, n_embd)`` for positions ``start`` to ``stop`` of a prompt: one tile's."""


class Session:
    """Prefills a tower's cache, and nothing twice that this cache or one in the store already holds.

    What is in the cache belongs to its owners. A prompt of another one displaces it: then it goes to the store. An
    owner that goes back on its own gives up what it leaves.
    """

    def __init__(
        self, tower: TextTower, room: Callable[[int], int] = lambda _used: 0, pace: Pace | None = None
    ) -> None:
        """``room``: see :class:`edge_llama.runtime.kv_store.KVStore`; without it nothing is kept there.

        With a ``pace`` the number of threads follows the machine's load from token to token.
        """
        self._tower = tower
        self._store = KVStore(room)
        self._pace = pace
        self._owners: weakref.WeakSet[CacheOwner] = weakref.WeakSet()
        self.has_logits = False
        """Whether the last position's logits are at hand, as the model gave them."""
        self.tokens: list[int] = []

    @property
    def is_full(self) -> bool:
        """Whether no further token fits."""
        return len(self.tokens) >= self._tower.n_ctx

    def prefill(self, prompt: Sequence[int], owner: CacheOwner | None = None, embed: Embed | None = None) -> int:
        """Bring the cache to hold exactly ``prompt``, its last position's logits ready; the number of tokens reused.

        A negative id is no token, it stands for an embedding: of an image's content and the place in it (see
        :mod:`edge_llama.runtime.encoders`). ``embed`` is asked only for those that are not in the cache.
        Raises ContextFullError before any work; AbortedError leaves what was decoded so far in the cache.
        """
        if len(prompt) >= self._tower.n_ctx:
            raise ContextFullError(len(prompt), self._tower.n_ctx)
        reused = self._switch_to(prompt, owner)
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
            self._tower.use_threads(self._pace.after(*watch.elapsed(), len(tokens)))

    def rewind(self, length: int) -> None:
        """Keep the first ``length`` tokens, or none where the model's memory can't be cut there."""
        if length < len(self.tokens):
            self.has_logits = False
            self._tower.rewind(length)
            del self.tokens[self._tower.length :]

    def share(self, owner: CacheOwner, other: CacheOwner) -> None:
        """``other`` goes on where ``owner`` is: a fork, which copies nothing."""
        if owner in self._owners:
            self._owners.add(other)
        else:
            self._store.share(owner, other)

    def state(self, owner: CacheOwner) -> State | None:
        """The cache of ``owner``, as far as it is still kept."""
        return self._copy() if owner in self._owners else self._store.of(owner)

    def adopt(self, state: State, owner: CacheOwner) -> None:
        """Bring the cache to ``state``, for ``owner``. EngineError if the engine refuses it; the cache is then empty.

        The engine is given its bytes as they are: they must come from :meth:`state`, of the same model and settings.
        """
        self._store_for(self._others(owner))
        self._restore(state)
        self._belongs_to(owner)

    def _switch_to(self, prompt: Sequence[int], owner: CacheOwner | None) -> int:
        """Have the cache that begins as ``prompt`` for the most tokens; the number of these."""
        wanted = np.array(prompt, np.int32)
        here = shared(np.array(self.tokens, np.int32), wanted)
        waiting, there = self._store.best(wanted)
        others = self._others(owner)
        if owner:
            self._store.leave(owner)  # before others are stored: it makes room
        if waiting and there > here:
            self._store.touch(waiting)
        self._store_for(others)  # also if the prompt only goes on from here: what follows is not theirs
        if waiting and there > here:
            here = self._try_restore(waiting, there)
        self._belongs_to(owner)
        return here

    def _try_restore(self, state: State, length: int) -> int:
        try:
            self._restore(state)
        except EngineError as error:
            _log.warning("a conversation that was kept can't be used, it is read again: %s", error)
            self._store.drop(state)
            return 0
        return length

    def _restore(self, state: State) -> None:
        self.has_logits = False
        self._owners.clear()
        self.tokens = []
        self._tower.load(state.kv, len(state.tokens), state.logits)
        self.tokens = state.tokens.tolist()
        self.has_logits = state.logits is not None

    def _others(self, owner: CacheOwner | None) -> list[CacheOwner]:
        return [each for each in self._owners if each is not owner]

    def _belongs_to(self, owner: CacheOwner | None) -> None:
        self._owners = weakref.WeakSet([owner] if owner else [])

    def _store_for(self, owners: Sequence[CacheOwner]) -> None:
        if owners and self.tokens and self._store.make_room(self._tower.saved_bytes, len(self.tokens)):
            self._store.put(self._copy(), owners)

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

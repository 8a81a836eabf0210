"""KV caches that are kept in memory while another conversation has the engine.

An engine decodes one conversation at a time, at full speed: several sequences in one cache would make each of them
attend over the cells of all. So a cache that is displaced is copied out, and back when it is wanted. A copy takes
about 3 us per token of the built-in model; to prefill the token again takes a thousand times that.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)


class CacheOwner:
    """Whose a KV cache is: while an owner lives, its cache stays as long as there is room. It has no contents."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A KV cache as a value: its ``tokens``, int32 ``(n,)``; ``kv``, the engine's bytes, uint8; and the logits.

    ``logits`` are those of the last position, float32 ``(n_vocab,)``, or None if they were not at hand.
    """

    tokens: NDArray[np.int32]
    kv: NDArray[np.uint8]
    logits: NDArray[np.float32] | None

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.tokens.nbytes + self.kv.nbytes + (0 if self.logits is None else self.logits.nbytes)


def shared(ours: NDArray[np.int32], theirs: NDArray[np.int32]) -> int:
    """How many tokens both begin with."""
    length = min(len(ours), len(theirs))
    differs = ours[:length] != theirs[:length]
    return int(differs.argmax()) if differs.any() else length


@dataclass(eq=False, slots=True)
class _Place:
    state: State
    owners: "weakref.WeakSet[CacheOwner]" = field(default_factory=weakref.WeakSet)


class KVStore:
    """KV caches, each with its owners. The least recently used go when room is short."""

    def __init__(self, room: Callable[[int], int]) -> None:
        """``room(used)`` is how many bytes all states may take, ``used`` of which they take already."""
        self._room = room
        self._places: list[_Place] = []  # the least recently used first

    def make_room(self, nbytes: int, tokens: int) -> bool:
        """Whether a state of so many bytes has room, which the least recently used ones may have to give."""
        room = self._room(self.nbytes)
        if nbytes > room:
            _log.info("no room to keep a conversation of %s tokens: it will be read again", f"{tokens:,}")
            return False
        while self.nbytes + nbytes > room:
            gone = self._places.pop(0).state
            _log.info("no room to keep a conversation of %s tokens: it will be read again", f"{len(gone.tokens):,}")
        return True

    def put(self, state: State, owners: Iterable[CacheOwner]) -> None:
        """Keep ``state``, for which :meth:`make_room` made room."""
        self._places.append(_Place(state, weakref.WeakSet(owners)))

    def best(self, prompt: NDArray[np.int32]) -> tuple[State | None, int]:
        """The state that begins as ``prompt`` for the most tokens, and how many these are."""
        found: tuple[State | None, int] = (None, 0)
        for place in self._alive():
            if (length := shared(place.state.tokens, prompt)) > found[1]:
                found = (place.state, length)
        return found

    def of(self, owner: CacheOwner) -> State | None:
        """The cache that is kept for ``owner``."""
        return next((place.state for place in self._alive() if owner in place.owners), None)

    def share(self, owner: CacheOwner, other: CacheOwner) -> None:
        """What is kept for ``owner`` is kept for ``other`` too."""
        for place in self._alive():
            if owner in place.owners:
                place.owners.add(other)

    def leave(self, owner: CacheOwner) -> None:
        """Nothing is kept for ``owner`` any more; what has no other owner is freed."""
        for place in self._places:
            place.owners.discard(owner)
        self._places = list(self._alive())

    def drop(self, state: State) -> None:
        """Keep ``state`` no longer: the engine refuses it."""
        self._places = [place for place in self._places if place.state is not state]

    def touch(self, state: State) -> None:
        """``state`` is the most recently used."""
        self._places.sort(key=lambda place: place.state is state)

    @property
    def nbytes(self) -> int:
        """Bytes that all states take."""
        self._places = list(self._alive())
        return sum(place.state.nbytes for place in self._places)

    def _alive(self) -> Iterator[_Place]:
        return (place for place in self._places if len(place.owners))

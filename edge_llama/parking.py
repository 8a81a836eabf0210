"""Where KV caches wait while another conversation has the engine.

An engine reads for one conversation at a time, at full speed: several sequences in one cache would make each of them
attend over the cells of all. So a cache that is displaced is copied out, and back when its turn comes. A copy takes
about 3 us per token of the built-in model; reading the token again takes a thousand times that.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)


class Reader:
    """Whoever reads: while one lives, what it has read is kept as long as room lasts. It holds nothing itself."""

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
    readers: "weakref.WeakSet[Reader]" = field(default_factory=weakref.WeakSet)


class Parking:
    """States that wait, each for the readers that want it. The least recently used go when room is short."""

    def __init__(self, room: Callable[[int], int]) -> None:
        """``room(used)`` is how many bytes all states may take, ``used`` of which they take already."""
        self._room = room
        self._places: list[_Place] = []  # the least recently used first

    def put(self, state: State, readers: Iterable[Reader]) -> None:
        """Keep ``state`` for its readers, if there is or can be made room for it."""
        place = _Place(state, weakref.WeakSet(readers))
        room = self._room(self.nbytes)
        if state.nbytes > room:
            _log.info("no room to keep a conversation of %s tokens: it will be read again", f"{len(state.tokens):,}")
            return
        self._places.append(place)
        while self.nbytes > room:
            gone = self._places.pop(0).state
            _log.info("no room to keep a conversation of %s tokens: it will be read again", f"{len(gone.tokens):,}")

    def best(self, prompt: NDArray[np.int32]) -> tuple[State | None, int]:
        """The state that begins as ``prompt`` for the most tokens, and how many these are."""
        found: tuple[State | None, int] = (None, 0)
        for place in self._alive():
            if (length := shared(place.state.tokens, prompt)) > found[1]:
                found = (place.state, length)
        return found

    def of(self, reader: Reader) -> State | None:
        """What waits for ``reader``."""
        return next((place.state for place in self._alive() if reader in place.readers), None)

    def share(self, reader: Reader, other: Reader) -> None:
        """What waits for ``reader`` waits for ``other`` too."""
        for place in self._alive():
            if reader in place.readers:
                place.readers.add(other)

    def leave(self, reader: Reader) -> None:
        """Nothing waits for ``reader`` any more; what nobody else waits for is freed."""
        for place in self._places:
            place.readers.discard(reader)
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
        return (place for place in self._places if len(place.readers))

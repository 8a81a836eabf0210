"""Copies of sequences: in memory under a cap, beyond it on disk."""

import logging
from collections.abc import Callable, Sized

import numpy as np

from edge_llama.runtime.cache_entries import Entry, Tokens
from edge_llama.runtime.disk_cache import DiskCache, Loading, Stored
from edge_llama.runtime.radix_tree import RadixTree
from edge_llama.runtime.session_file import State

_log = logging.getLogger(__name__)


class Copies:
    """Keeps them in the tree of all that was prefilled. Used by the engine's thread alone."""

    def __init__(
        self,
        tree: RadixTree[Entry],
        room: Callable[[int], int],
        disk: DiskCache | None,
        has_sequence: Callable[[str], bool],
    ) -> None:
        """``room(used)`` is how many bytes of memory all may take, ``used`` of which they take already.

        ``has_sequence`` says whether the engine has a sequence of a conversation.
        """
        self.disk = disk
        self.states: list[State] = []
        """Those in memory, the least recently used first."""
        self._tree = tree
        self._room = room
        self._has_sequence = has_sequence
        self._loading: dict[Stored, Loading] = {}
        for stored in disk.entries() if disk else ():
            tree.insert(stored.tokens, stored)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that they take."""
        return sum(state.nbytes for state in self.states)

    def put(self, state: State) -> None:
        """Keep it in memory, where room was made, in place of those that it begins with."""
        for shorter in self._tree.prefixes(state.tokens):
            if isinstance(shorter, State):
                self.drop(shorter)
        self.states.append(state)
        self._tree.insert(state.tokens, state)

    def drop(self, state: State) -> None:
        """Keep it in memory no longer."""
        self.states.remove(state)
        self._tree.remove(state.tokens, state)

    def keep(self, state: State) -> None:
        """Keep it, in memory or else on disk, if there is room."""
        if self.make_room(state.nbytes):
            self.put(state)
        else:
            self._spill(state)

    def has_room(self, nbytes: int) -> bool:
        """Whether a copy of so many bytes has room in memory beside all others."""
        return self.nbytes + nbytes <= self._room(self.nbytes)

    def may_have(self, nbytes: int) -> bool:
        """Whether a copy of so many bytes has room, if need be in place of all others."""
        return nbytes <= self._room(self.nbytes)

    def make_room(self, nbytes: int) -> bool:
        """Whether a copy of so many bytes has room, which the least recently used ones may have to give."""
        room = self._room(self.nbytes)
        if nbytes > room:
            return False
        while self.nbytes + nbytes > room:
            gone = self.states[0]
            self._spill(gone)
            self.drop(gone)
        return True

    def forget(self, tag: str) -> None:
        """Keep nothing of a conversation."""
        for state in [each for each in self.states if each.tag == tag]:
            self.drop(state)
        if self.disk:
            self.disk.forget(tag)

    def is_stored(self, tokens: Tokens, tag: str) -> bool:
        """Whether the disk has all of these, as a conversation's if there is a ``tag``."""
        whole = (entry for length, entry in self._tree.matches(tokens) if length == len(tokens))
        return self.disk is not None and any(
            isinstance(entry, Stored) and entry.tag == (tag or entry.tag) and self.disk.has(entry) for entry in whole
        )

    def stored(self, stored: Stored) -> None:
        """It is on disk now, in place of what went before in its conversation."""
        for shorter in self._tree.prefixes(stored.tokens):
            if isinstance(shorter, Stored) and shorter.tag == stored.tag:
                self._tree.remove(shorter.tokens, shorter)
                if self.disk and shorter.path != stored.path:
                    self.disk.remove(shorter)
        self._tree.insert(stored.tokens, stored)

    def load(self, stored: Stored) -> None:
        """Have what is on disk in memory, if it is neither damaged nor gone."""
        assert self.disk  # noqa: S101 - it has what is stored
        self._loaded(stored, self.disk.load(stored))

    def is_loading(self, stored: Stored, on_done: Callable[[], None]) -> bool:
        """Whether it is being read, as it is from now on; ``on_done`` says when it is there. After that: it was."""
        assert self.disk  # noqa: S101 - it has what is stored
        loading = self._loading.get(stored)
        if loading is None:
            loading = self._loading[stored] = self.disk.load_apart(stored, on_done)
        if not loading.done():
            return True
        del self._loading[stored]
        self._loaded(stored, None if loading.exception() else loading.result())
        return False

    def _loaded(self, stored: Stored, state: State | None) -> None:
        """Have it in memory, if it is not another one by now."""
        if state is None or not np.array_equal(state.tokens, stored.tokens):
            self._tree.remove(stored.tokens, stored)
        else:
            self.put(state)

    def _spill(self, state: State) -> None:
        """What the memory has no room for goes to disk, but not in place of a conversation's last."""
        if self.disk is None:
            tell_lost(state.tokens)
        elif self._is_wanted(state) and (stored := self.disk.put(state)):
            self.stored(stored)

    def _is_wanted(self, state: State) -> bool:
        """Whether the disk lacks it, and it is a conversation's last or of none."""
        if self.is_stored(state.tokens, state.tag):
            return False
        others = (each.tag for each in self.states if each is not state)
        return not state.tag or (not self._has_sequence(state.tag) and state.tag not in others)


def tell_lost(tokens: Sized) -> None:
    """What there was no room for."""
    _log.info("no room to keep a conversation of %s tokens: it will be read again", f"{len(tokens):,}")

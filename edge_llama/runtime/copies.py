"""Copies of sequences: in memory under a cap, beyond it on disk."""

import logging
from collections.abc import Callable, Sized
from pathlib import Path  # noqa: TC003 - as everywhere here

import numpy as np

from edge_llama.runtime.cache_entries import Held, Tokens
from edge_llama.runtime.disk_cache import DiskCache, Loading, Stored
from edge_llama.runtime.entry_trees import EntryTrees
from edge_llama.runtime.session_file import State

_log = logging.getLogger(__name__)


class Copies:
    """Keeps them in the trees of all that was prefilled. Used by the engine's thread alone."""

    def __init__(
        self,
        tree: EntryTrees,
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
        self._files: dict[Path, Stored] = {}
        """What each file has, as far as it is in the tree."""
        for stored in disk.entries() if disk else ():
            self._put_stored(stored)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that they take."""
        return sum(state.nbytes for state in self.states)

    def put(self, state: State) -> None:
        """Keep it in memory, where room was made, in place of those that it begins with."""
        for shorter in self._tree.prefixes(state.tokens, state.adapters):
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

    def is_stored(self, known: Held | State, tokens: Tokens, tag: str) -> bool:
        """Whether the disk has all tokens of what is ``known``, as a conversation's if there is a ``tag``."""
        matches = self._tree.matches(tokens, known.adapters)
        whole = (entry for length, entry in matches if length == len(tokens))
        return self.disk is not None and any(
            isinstance(entry, Stored) and entry.tag == (tag or entry.tag) and self.disk.has(entry) for entry in whole
        )

    def stored(self, stored: Stored) -> None:
        """It is on disk now, in place of what went before in its conversation."""
        for shorter in self._tree.prefixes(stored.tokens, stored.adapters):
            if isinstance(shorter, Stored) and shorter.tag == stored.tag:
                self._drop_stored(shorter)
                if self.disk and shorter.path != stored.path:
                    self.disk.remove(shorter)
        if (before := self._files.get(stored.path)) is not None and before.adapters != stored.adapters:
            self._drop_stored(before)  # the conversation went on with others, in the same file
        self._put_stored(stored)

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
        is_same = state is not None and state.adapters == stored.adapters
        if state is None or not is_same or not np.array_equal(state.tokens, stored.tokens):
            self._drop_stored(stored)
        else:
            self.put(state)

    def _put_stored(self, stored: Stored) -> None:
        self._files[stored.path] = stored
        self._tree.insert(stored.tokens, stored)

    def _drop_stored(self, stored: Stored) -> None:
        if self._files.get(stored.path) is stored:
            del self._files[stored.path]
        self._tree.remove(stored.tokens, stored)

    def _spill(self, state: State) -> None:
        """What the memory has no room for goes to disk, but not in place of a conversation's last."""
        if self.disk is None:
            tell_lost(state.tokens)
        elif self._is_wanted(state) and (stored := self.disk.put(state)):
            self.stored(stored)

    def _is_wanted(self, state: State) -> bool:
        """Whether the disk lacks it, and it is a conversation's last or of none."""
        if self.is_stored(state, state.tokens, state.tag):
            return False
        others = (each.tag for each in self.states if each is not state)
        return not state.tag or (not self._has_sequence(state.tag) and state.tag not in others)


def tell_lost(tokens: Sized) -> None:
    """What there was no room for."""
    _log.info("no room to keep a conversation of %s tokens: it will be read again", f"{len(tokens):,}")

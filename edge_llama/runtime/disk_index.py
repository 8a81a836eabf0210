"""Which tokens are on disk, and how they come into memory."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_llama.runtime.disk_cache import DiskCache, Loading, Stored
from edge_llama.runtime.radix_tree import RadixTree
from edge_llama.runtime.session_file import State

_MOST = 32
"""A file is loaded for some of its tokens if it has at most so many times as many: loading one takes some hundredths
of the time of prefilling it."""

Tokens = NDArray[np.int32]


class DiskIndex:
    """The files of a :class:`DiskCache` by their tokens. Used by the engine's thread alone."""

    def __init__(self, disk: DiskCache) -> None:
        self.disk = disk
        self._tree: RadixTree[Stored] = RadixTree()
        self._loading: dict[Stored, Loading] = {}
        for stored in disk.entries():
            self._tree.insert(stored.tokens, stored)

    def worth_loading(self, prompt: Tokens, known: int) -> tuple[int, Stored | None]:
        """The file that has the most of the prompt, and how much, if it is worth loading beside ``known`` tokens."""
        length, stored = next(self._tree.matches(prompt), (0, None))
        return (length, stored) if stored and (length - known) * _MOST >= len(stored.tokens) else (0, None)

    def has(self, tokens: Tokens, tag: str) -> bool:
        """Whether a file has all of these, a conversation's if there is a ``tag``."""
        whole = (stored for length, stored in self._tree.matches(tokens) if length == len(tokens))
        return any(stored.tag == (tag or stored.tag) and self.disk.has(stored) for stored in whole)

    def add(self, stored: Stored) -> None:
        """It is on disk now, in place of what went before in its conversation."""
        for shorter in self._tree.prefixes(stored.tokens):
            if shorter.tag == stored.tag:
                self._tree.remove(shorter.tokens, shorter)
                self._loading.pop(shorter, None)
                if shorter.path != stored.path:
                    self.disk.remove(shorter)
        self._tree.insert(stored.tokens, stored)

    def is_loaded(self, stored: Stored, on_done: Callable[[], None]) -> bool:
        """Whether :meth:`load` has it at once. It is read from now on; ``on_done`` is called then."""
        if stored not in self._loading:
            self._loading[stored] = self.disk.load_apart(stored, on_done)
        return self._loading[stored].done()

    def load(self, stored: Stored) -> State | None:
        """Its sequence; None if it was damaged or gone, or is another one by now: then it is here no longer."""
        loading = self._loading.pop(stored, None)
        state = _outcome(loading) if loading else self.disk.load(stored)
        if state is None or not np.array_equal(state.tokens, stored.tokens):
            self._tree.remove(stored.tokens, stored)
            return None
        return state


def _outcome(loading: Loading) -> State | None:
    """None also where something else went wrong, as without memory for it."""
    return None if loading.exception() else loading.result()

"""What a prompt goes on from: of all that was prefilled, whatever begins as it does for the most tokens."""

from edge_llama.backends.adapters import AdapterSet
from edge_llama.runtime.cache_entries import Entry, Held, Tokens
from edge_llama.runtime.disk_cache import Stored
from edge_llama.runtime.entry_trees import EntryTrees
from edge_llama.runtime.session_file import State

_WORTH_LOADING = 32
"""A copy, or a file, is loaded for some of its tokens if it has at most so many times as many: loading one takes some
hundredths of the time of prefilling it."""


class KnownBeginnings:
    """The trees' entries, as a prompt that is computed with certain adapters may use them: those of the same set."""

    def __init__(self, tree: EntryTrees, slice_size: int, *, has_disk: bool) -> None:
        """With a ``slice_size`` only whole slices count that were prefilled as such, and no files."""
        self._tree = tree
        self._slice_size = slice_size
        self._copies: list[type[Entry]] = [State, Stored] if has_disk and not slice_size else [State]

    def best(self, prompt: Tokens, adapters: AdapterSet) -> tuple[int, Entry | None]:
        """What has the most of the prompt, and how much; of copies and files only what is worth loading."""
        best = self.longest(prompt, adapters, Held)
        for kind in self._copies:
            length, found = self.longest(prompt, adapters, kind, beyond=best[0])
            best = (length, found) if found else best
        return best

    def longest(
        self, prompt: Tokens, adapters: AdapterSet, kind: type[Entry], beyond: int = 0
    ) -> tuple[int, Entry | None]:
        """Of the entries of a kind, rather an idle sequence; a copy or a file if what it has beyond is worth loading.

        What is loaded from disk is as worthy as it was there, so that nothing is loaded again and again.
        """
        best: tuple[int, Entry | None] = (0, None)
        for length, entry in self._tree.matches(prompt, adapters):
            if length < best[0]:
                break
            if not isinstance(entry, kind):
                continue
            usable = self._usable(length, entry)
            is_worthy = isinstance(entry, Held) or (usable - beyond) * _WORTH_LOADING >= len(entry.tokens)
            if usable and is_worthy and (usable, _rank(entry)) > (best[0], _rank(best[1])):
                best = usable, entry
        return best

    def _usable(self, length: int, entry: Entry) -> int:
        usable = min(length, len(entry.tokens))
        if self._slice_size and not isinstance(entry, Stored):
            return min(usable, entry.fixed) // self._slice_size * self._slice_size
        return usable


def _rank(entry: Entry | None) -> int:
    """Of entries with as much of a prompt the highest is taken: an idle sequence, one in use, memory, disk."""
    if isinstance(entry, Held):
        return 3 if entry.is_running else 4
    return {type(None): 0, Stored: 1, State: 2}[type(entry)]

"""What was prefilled, by the adapters that it was computed with and by its tokens.

Keys and values that one set of adapters gave are wrong under every other, the model alone included: each set has a
radix tree of its own, so none is ever found for another.
"""

from collections.abc import Iterator

from edge_llama.backends.adapters import AdapterSet
from edge_llama.runtime.cache_entries import Entry, Tokens
from edge_llama.runtime.radix_tree import RadixTree


class EntryTrees:
    """Entries, each under its own ``adapters``; several may have the same tokens."""

    def __init__(self) -> None:
        self._trees: dict[AdapterSet, RadixTree[Entry]] = {}

    def insert(self, tokens: Tokens, entry: Entry) -> None:
        """Add an entry."""
        self._trees.setdefault(entry.adapters, RadixTree()).insert(tokens, entry)

    def remove(self, tokens: Tokens, entry: Entry) -> None:
        """Take away an entry that was added with these tokens."""
        tree = self._trees[entry.adapters]
        tree.remove(tokens, entry)
        if tree.is_empty:
            del self._trees[entry.adapters]

    def matches(self, tokens: Tokens, adapters: AdapterSet) -> Iterator[tuple[int, Entry]]:
        """Those of this set: see :meth:`RadixTree.matches`."""
        tree = self._trees.get(adapters)
        return tree.matches(tokens) if tree else iter(())

    def prefixes(self, tokens: Tokens, adapters: AdapterSet) -> list[Entry]:
        """Those of this set: see :meth:`RadixTree.prefixes`."""
        tree = self._trees.get(adapters)
        return tree.prefixes(tokens) if tree else []

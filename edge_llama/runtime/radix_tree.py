"""Token ids by their beginnings: who else began like this, and for how long."""

from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

E = TypeVar("E")
Tokens = NDArray[np.int32]


def shared_length(ours: Tokens, theirs: Tokens) -> int:
    """How many tokens both begin with."""
    length = min(len(ours), len(theirs))
    differs = ours[:length] != theirs[:length]
    at = int(differs.argmax()) if length else 0
    return at if length and differs[at] else length


class _Node(Generic[E]):
    __slots__ = ("children", "edge", "entries", "parent")

    def __init__(self, edge: Tokens, parent: "_Node[E] | None") -> None:
        self.edge = edge
        """The tokens between the parent and here."""
        self.parent = parent
        self.children: dict[int, _Node[E]] = {}
        self.entries: list[E] = []

    def below(self, skipped: "_Node[E] | None") -> Iterator[E]:
        """The entries here and below, but for those of one child."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield from node.entries
            waiting += (child for child in node.children.values() if child is not skipped)


class RadixTree(Generic[E]):
    """Entries by int32 token ids ``(n,)``; several may have the same. A path without branches is one node."""

    def __init__(self) -> None:
        self._root: _Node[E] = _Node(np.empty(0, np.int32), None)

    @property
    def is_empty(self) -> bool:
        """Whether it has no entries."""
        return not self._root.children and not self._root.entries

    def insert(self, tokens: Tokens, entry: E) -> None:
        """Add an entry."""
        node, rest = self._root, tokens
        while len(rest):
            child = node.children.get(int(rest[0]))
            if child is None:
                child = _Node(rest.copy(), node)
                node.children[int(rest[0])] = child
            else:
                child = self._split(child, shared_length(child.edge, rest))
            node, rest = child, rest[len(child.edge) :]
        node.entries.append(entry)

    def remove(self, tokens: Tokens, entry: E) -> None:
        """Take away an entry that was added with these tokens."""
        node, rest = self._root, tokens
        while len(rest):
            node = node.children[int(rest[0])]
            rest = rest[len(node.edge) :]
        node.entries.remove(entry)
        self._prune(node)

    def matches(self, tokens: Tokens) -> Iterator[tuple[int, E]]:
        """Entries and how many tokens each begins with of these: those that share the most first, none that share none.

        The tree must not be changed meanwhile.
        """
        path, length = self._walk(tokens)
        skipped = None
        for node in reversed(path):
            yield from ((length, entry) for entry in node.below(skipped))
            skipped = node
            if node.parent is None or node.parent is self._root:
                return
            length -= min(len(node.edge), length - self._depth(node.parent))

    def prefixes(self, tokens: Tokens) -> list[E]:
        """The entries whose tokens are the beginning of these, or the same."""
        path, length = self._walk(tokens)
        if path and self._depth(path[-1]) > length:
            path.pop()
        return [entry for node in path for entry in node.entries]

    def _walk(self, tokens: Tokens) -> tuple[list[_Node[E]], int]:
        """The nodes on the way, the last perhaps only for a part of its edge, and how many tokens match."""
        path: list[_Node[E]] = []
        node, rest, length = self._root, tokens, 0
        while len(rest) and (child := node.children.get(int(rest[0]))):
            path.append(child)
            common = shared_length(child.edge, rest)
            length += common
            if common < len(child.edge):
                break
            node, rest = child, rest[common:]
        return path, length

    def _depth(self, node: _Node[E]) -> int:
        depth, at = 0, node
        while at.parent is not None:
            depth += len(at.edge)
            at = at.parent
        return depth

    def _split(self, node: _Node[E], length: int) -> _Node[E]:
        """The node that ends after ``length`` tokens of this one's edge: a new one above it, if they are not all."""
        if length == len(node.edge):
            return node
        assert node.parent  # noqa: S101 - the root has no edge
        upper: _Node[E] = _Node(node.edge[:length].copy(), node.parent)
        node.parent.children[int(upper.edge[0])] = upper
        node.edge, node.parent = node.edge[length:].copy(), upper
        upper.children[int(node.edge[0])] = node
        return upper

    def _prune(self, node: _Node[E]) -> None:
        """Remove what leads nowhere, and join what branches no more."""
        while node.parent and not node.entries and not node.children:
            del node.parent.children[int(node.edge[0])]
            node = node.parent
        if node.parent and not node.entries and len(node.children) == 1:
            (child,) = node.children.values()
            child.edge, child.parent = np.concatenate((node.edge, child.edge)), node.parent
            node.parent.children[int(child.edge[0])] = child

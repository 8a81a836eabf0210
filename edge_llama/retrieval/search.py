"""Finds the passages of documents that belong to a question, and keeps what it found out about the documents."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_llama.media.documents.document import Document
from edge_llama.retrieval.passages import SIZE, Count, Passage, split
from edge_llama.retrieval.ranking import Embedder, by_vectors, by_words, joined, nearest_first

_KEPT = 16
"""Documents whose passages and vectors are kept in memory."""


@dataclass(eq=False, slots=True)
class _Known:
    passages: tuple[Passage, ...]
    vectors: NDArray[np.float32] | None = None
    """By the model with which they were asked for: ``(n, n_embd)``."""


class PassageSearch:
    """Passages and their vectors, by document and by what counts and embeds them. Threads may share it."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, int, int], _Known] = OrderedDict()
        self._lock = threading.Lock()

    def nearest(
        self, question: str, documents: Sequence[Document], count: Count, embedder: Embedder | None = None
    ) -> list[Passage]:
        """All passages of the documents, those first that are nearest to the question.

        By the words that they have in common, and where there is an ``embedder``, by its vectors as well. ``count``
        says how many tokens a text has in the model that will answer. Raises what embedding raises.
        """
        known = [self._passages(document, count, embedder) for document in documents]
        passages = [passage for each in known for passage in each.passages]
        scores = by_words(question, [passage.searched for passage in passages])
        if embedder is not None:
            vectors = np.concatenate([_vectors(each, embedder) for each in known])
            scores = joined(scores, by_vectors(embedder.embed([question])[0], vectors))
        return [passages[at] for at in nearest_first(scores)]

    def _passages(self, document: Document, count: Count, embedder: Embedder | None) -> _Known:
        size = SIZE if embedder is None else min(SIZE, embedder.n_ctx // 2)  # it may count more tokens than we do
        key = document.sha256, document.text, size, id(embedder)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        known = _Known(split(document, count, size, size // 5))
        with self._lock:
            self._known[key] = known
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return known


def _vectors(known: _Known, embedder: Embedder) -> NDArray[np.float32]:
    if known.vectors is None:
        known.vectors = embedder.embed([passage.searched for passage in known.passages])
    return known.vectors


def fitting(ranked: Sequence[Passage], fits: Callable[[Sequence[Passage]], bool], most: int) -> list[Passage]:
    """As many of the first passages as ``fits`` says, ``most`` at most; in the documents' order, as they are given."""
    low, high = 0, min(most, len(ranked))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(ranked[:middle]) else (low, middle - 1)
    return list(ranked[:low])

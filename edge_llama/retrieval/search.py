"""Finds the passages of documents that belong to a question, and keeps what it found out about the documents."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import ContextFullError
from edge_llama.media.documents.document import Document
from edge_llama.retrieval.passages import OVERLAP, SIZE, Count, Passage, split
from edge_llama.retrieval.ranking import Embedder, by_vectors, by_words, joined, nearest_first

_AROUND = 8
"""Tokens that an embedding model may want around a text, the line's end below a heading included."""
_KEPT = 16
"""Documents whose passages and vectors are kept in memory."""


@dataclass(eq=False, slots=True)
class _Known:
    passages: tuple[Passage, ...]
    embedder: Embedder | None
    """Kept with its vectors, so that no other object is taken for it."""
    vectors: NDArray[np.float32] | None = None
    """By the embedder: ``(n, n_embd)``."""


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
        if embedder is not None and question.strip():
            vector = _question_vector(question, embedder)
            vectors = np.concatenate([_vectors(each, embedder) for each in known])
            scores = joined(scores, by_vectors(vector, vectors))
        return [passages[at] for at in nearest_first(scores)]

    def _passages(self, document: Document, count: Count, embedder: Embedder | None) -> _Known:
        # With its heading, which is no longer than a passage, each must fit what embeds it.
        size = SIZE if embedder is None else min(SIZE, (embedder.n_ctx - _AROUND) // 2)
        key = document.sha256, document.text, size, id(embedder)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        counts = count if embedder is None else _larger(count, embedder)
        known = _Known(split(document, counts, size, size * OVERLAP // SIZE), embedder)
        with self._lock:
            self._known[key] = known
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return known


def _larger(count: Count, embedder: Embedder) -> Count:
    """The tokens of a text in the model that answers or in the one that embeds, whichever has more."""
    return lambda text: max(count(text), len(embedder.tokenizer.encode(text)))


def _question_vector(question: str, embedder: Embedder) -> NDArray[np.float32]:
    try:
        vector: NDArray[np.float32] = embedder.embed([question])[0]
    except ContextFullError as error:
        remedy = "shorten it, or find passages by words alone: without an embedding model"
        raise ContextFullError(error.needed, error.n_ctx, text="the question to embed", remedy=remedy) from error
    return vector


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

"""Which passages are nearest to a question: by the cosine of vectors, by words (BM25), or by both ranks together.

BM25 as Lucene has it (k1 1.2, b 0.75; Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009); ranks are
joined by their reciprocals (k 60; Cormack, Clarke and Büttcher, SIGIR 2009), since scores of both kinds can't be added.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_llama.prompts.tokenizer import Tokenizer

_K1, _B = 1.2, 0.75
_RANK_OFFSET = 60
_WORD = re.compile(r"\w+")
_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""Scripts that don't part words: pairs of their characters are looked for."""
_ENDINGS = re.compile(r"(?<=[a-z]{3})(?:ing|ed|es|s|ly)\Z")


class Embedder(Protocol):
    """What gives vectors of texts; :class:`edge_llama.Model` does."""

    @property
    def n_ctx(self) -> int:
        """Tokens that a text may have."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of a text."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector of unit length for each text, float32 ``(n, n_embd)``."""


def by_words(question: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """How well each text answers the question by the words that they have in common: ``(n,)``, 0 for none."""
    counts = [Counter(_words(text)) for text in texts]
    lengths = np.array([count.total() for count in counts], np.float64)
    relative = 1 - _B + _B * lengths / max(float(lengths.mean()) if len(texts) else 0.0, 1.0)
    scores = np.zeros(len(texts))
    for word in dict.fromkeys(_words(question)):
        scores += _rarity(word, counts) * _frequencies(word, counts, relative)
    return scores


def _rarity(word: str, counts: Sequence[Counter[str]]) -> float:
    found = sum(word in count for count in counts)
    return math.log(1 + (len(counts) - found + 0.5) / (found + 0.5))


def _frequencies(word: str, counts: Sequence[Counter[str]], relative: NDArray[np.float64]) -> NDArray[np.float64]:
    times = np.array([count[word] for count in counts], np.float64)
    scores: NDArray[np.float64] = times * (_K1 + 1) / (times + _K1 * relative)
    return scores


def by_vectors(question: NDArray[np.float32], passages: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosines of the passages' vectors ``(n, n_embd)`` with the question's ``(n_embd,)``: ``(n,)``."""
    return passages.astype(np.float64) @ question.astype(np.float64)


def joined(*scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """One score of several for the same passages, by the ranks that they give: ``(n,)``. A score of 0 gives none."""
    total = np.zeros(len(scores[0]))
    for each in scores:
        ranks = np.empty(len(each))
        ranks[nearest_first(each)] = np.arange(1, len(each) + 1)
        total += np.where(each > 0, 1 / (_RANK_OFFSET + ranks), 0)
    return total


def nearest_first(scores: NDArray[np.float64]) -> list[int]:
    """The places of the passages, that with the highest score first; of equals the one that stands before."""
    return [int(at) for at in np.argsort(-scores, kind="stable")]


def _words(text: str) -> list[str]:
    """Words in small letters without common English endings; parts of names_like_this as well."""
    words: list[str] = []
    for found in _WORD.findall(text.casefold()):
        if _WITHOUT_SPACES.search(found):
            words += [found[at : at + 2] for at in range(max(1, len(found) - 1))]
            continue
        words.append(_ENDINGS.sub("", found))
        if "_" in found:
            words += [_ENDINGS.sub("", part) for part in found.split("_") if part]
    return words

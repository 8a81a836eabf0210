"""Recall of retrieval: is a passage that answers a question among the five nearest to it.

    .venv/bin/python benchmarks/retrieval.py [--embedding-model MODEL.gguf] [--k 5] [--misses] [--keep FOLDER]

A hundred questions about the pages in docs/, each with a few words of the place that answers it
(benchmarks/data/retrieval_questions.json), asked in other words than the page has. All pages are one corpus, cut into
passages as ``chat.send(files=..., retrieve=True)`` cuts them. A question is answered if one of its k nearest passages
is of the right page and holds the words. Printed by words (BM25), by vectors, and by both; vectors are those of the
built-in model's mean pooled states unless another model is named.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edge_llama
from edge_llama.retrieval.passages import Passage, split
from edge_llama.retrieval.ranking import by_vectors, by_words, joined, nearest_first

ROOT = Path(__file__).resolve().parent.parent
_AT_ONCE = 16
QUESTIONS = ROOT / "benchmarks" / "data" / "retrieval_questions.json"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the page that answers it, and words of the place there."""

    question: str
    file: str
    answer: str

    def is_answered_by(self, passage: Passage) -> bool:
        return passage.name == self.file and self.answer in passage.text


def questions() -> list[Question]:
    return [Question(**each) for each in json.loads(QUESTIONS.read_text("utf-8"))]


def corpus(model: edge_llama.Model) -> list[Passage]:
    """The passages of all pages."""
    documents = [edge_llama.Document.open(path) for path in sorted((ROOT / "docs").glob("*.md"))]

    def count(text: str) -> int:
        return len(model.tokenizer.encode(text))

    return [passage for document in documents for passage in split(document, count)]


def embedded(texts: Sequence[str], model: edge_llama.Model, keep: Path | None) -> NDArray[np.float32]:
    """The texts' vectors; each is kept in a folder by its text and the model, for a run that goes on from here."""
    started = time.perf_counter()
    places = {text: keep and keep / f"{_digest(text, model)}.npy" for text in texts}
    found = {text: np.load(place) for text, place in places.items() if place and place.exists()}
    missing = [text for text in places if text not in found]
    for at in range(0, len(missing), _AT_ONCE):
        some = missing[at : at + _AT_ONCE]
        for text, vector in zip(some, model.embed(some), strict=True):
            found[text] = vector
            if place := places[text]:
                np.save(place, vector)
    seconds = time.perf_counter() - started
    print(f"{model.artifact.name}: {len(missing):,} of {len(texts):,} passages embedded in {seconds:,.0f} s")
    return np.stack([found[text] for text in texts])


def _digest(text: str, model: edge_llama.Model) -> str:
    return hashlib.sha256(f"{model.identity}\0{text}".encode()).hexdigest()


def rankings(
    asked: Sequence[Question], passages: Sequence[Passage], model: edge_llama.Model, keep: Path | None
) -> dict[str, list[list[int]]]:
    """For each way of ranking and each question the places of the passages, the nearest first."""
    texts = [passage.searched for passage in passages]
    vectors = embedded(texts, model, keep)
    wanted = model.embed([each.question for each in asked])
    found: dict[str, list[list[int]]] = {"words": [], "vectors": [], "both": []}
    for each, vector in zip(asked, wanted, strict=True):
        scores = {"words": by_words(each.question, texts), "vectors": by_vectors(vector, vectors)}
        scores["both"] = joined(scores["words"], scores["vectors"])
        for name, score in scores.items():
            found[name].append(nearest_first(score))
    return found


def recall(
    asked: Sequence[Question], passages: Sequence[Passage], ranked: Sequence[Sequence[int]], k: int
) -> list[bool]:
    return [
        any(each.is_answered_by(passages[at]) for at in places[:k]) for each, places in zip(asked, ranked, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedding-model", default="smollm2", help="a model that embeds (default: the built-in one)")
    parser.add_argument("--k", type=int, default=5, help="so many passages are looked at")
    parser.add_argument("--misses", action="store_true", help="name the questions that are not answered")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep vectors there, and use those that are there")
    parser.add_argument("--threads", type=int, help="as many for the model (default: as many as are free)")
    options = parser.parse_args()
    asked = questions()
    with edge_llama.open(options.embedding_model, n_ctx=512, threads=options.threads) as model:
        passages = corpus(model)
        missing = [each for each in asked if not any(map(each.is_answered_by, passages))]
        assert not missing, f"no passage holds the answer: {missing}"
        found = rankings(asked, passages, model, options.keep)
    sizes = np.array([passage.tokens for passage in passages])
    print(
        f"{len(passages):,} passages of {np.median(sizes):.0f} tokens (at most {sizes.max()}), {len(asked)} questions"
    )
    for name, ranked in found.items():
        hits = recall(asked, passages, ranked, options.k)
        print(f"{name:8} recall at {options.k}: {np.mean(hits):.2f}")
        for each, hit in zip(asked, hits, strict=True):
            if options.misses and not hit:
                print(f"    {each.file}: {each.question}")


if __name__ == "__main__":
    main()

"""Documents cut into passages: all of their text, in passages of a size, by headings and paragraphs."""

from itertools import pairwise

import numpy as np
import pytest

from edge_llama import Document
from edge_llama.retrieval.passages import Passage, split


def count(text: str) -> int:
    """Words, in place of a model's tokens."""
    return len(text.split())


def passages_of(text: str, size: int = 20, overlap: int = 5) -> tuple[Passage, ...]:
    return split(Document.from_text(text, "a.txt"), count, size, overlap)


def test_a_short_document_is_one_passage() -> None:
    (passage,) = passages_of("# Title\n\none two\n")
    assert (passage.text, passage.heading, passage.number, passage.count) == ("# Title\n\none two", "Title", 1, 1)
    assert (passage.first_line, passage.last_line, passage.tokens) == (1, 3, 4)
    assert str(passage) == "a.txt, lines 1 to 3"


def test_sections_and_paragraphs_stay_together() -> None:
    sections = [f"## Section {at}\n\n" + " ".join(f"word{at}" for _ in range(12)) for at in range(3)]
    passages = passages_of("\n\n".join(sections))
    assert [passage.heading for passage in passages] == ["Section 0", "Section 1", "Section 2"]
    assert [passage.text for passage in passages] == sections


def test_what_follows_goes_on_from_whole_paragraphs_of_what_went_before() -> None:
    paragraphs = [f"p{at} p p p" for at in range(12)]
    passages = passages_of("# Title\n\n" + "\n\n".join(paragraphs), size=18, overlap=4)
    for before, after in pairwise(passages):
        assert after.start < before.stop
        assert after.text.startswith(before.text[-len("p0 p p p") :].lstrip())
    assert all(passage.heading == "Title" for passage in passages)
    assert passages[-1].searched.startswith("Title\n")


def test_a_heading_is_never_the_end_of_a_passage() -> None:
    text = "one two three four five six\n\n## Next\n\n" + "word " * 18
    assert [passage.text.splitlines()[0] for passage in passages_of(text)][1] == "## Next"


@pytest.mark.parametrize("size", [5, 20, 200])
def test_passages_hold_all_of_a_text_and_none_is_too_large(size: int, rng: np.random.Generator) -> None:
    for _ in range(20):
        words = rng.choice(["a", "bb.", "c\n", "d\n\n", "\n# H\n", "\n\n\n", "    e", "x" * 90], 300)
        text = " ".join(words) + "end"
        passages = passages_of(text, size, size // 5)
        covered = np.zeros(len(text), bool)
        for at, passage in enumerate(passages, 1):
            assert passage.text == text[passage.start : passage.stop]
            assert passage.number == at
            assert passage.count == len(passages)
            assert count(passage.text) <= size
            assert text.count("\n", 0, passage.start) + 1 == passage.first_line
            assert text.count("\n", 0, passage.stop) + 1 == passage.last_line
            covered[passage.start : passage.stop] = True
        assert not "".join(char for char, seen in zip(text, covered, strict=True) if not seen).strip()
        assert all(one.start < two.start and one.stop < two.stop for one, two in pairwise(passages))


def test_a_line_without_end_is_cut_too() -> None:
    def letters(text: str) -> int:
        return len(text)

    for text in ("x" * 100_000, "word " * 20_000, "ja. " * 25_000, "\n" * 50_000 + "x" + "\n" * 50_000):
        passages = split(Document.from_text(text, "a"), letters, 200, 40)
        assert max(passage.stop - passage.start for passage in passages) <= 200
        assert sum(len(passage.text.replace(" ", "")) for passage in passages) == len("".join(text.split()))

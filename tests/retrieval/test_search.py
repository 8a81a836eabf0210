"""Passages of documents for a question, and documents before questions: by functions in place of a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_llama import ContextFullError, Document, Message
from edge_llama.retrieval.attaching import MOST, Attaching
from edge_llama.retrieval.search import PassageSearch, fitting

PARAGRAPHS = [f"The number {at} is said here, and nothing else about animals number {at}. " * 4 for at in range(40)]
BOOK = Document.from_text(
    "\n\n".join([*PARAGRAPHS[:30], "A llama was born on the mountain.", *PARAGRAPHS[30:]]), "book.txt"
)
TABLE = Document("table.csv", "7" * 64, "name,age\n" + "".join(f"person{at},{at}\n" for at in range(3000)), "CSV")


def count(text: str) -> int:
    return len(text.split())


def prompt(question: Message) -> int:
    """As if a template took ten tokens."""
    return 10 + count(question.content)


@dataclass
class Embedder:
    """It knows two directions: llamas, and all else."""

    n_ctx: int = 512
    asked: list[int] = field(default_factory=list)

    @property
    def tokenizer(self) -> "Embedder":
        return self

    def encode(self, text: str) -> list[str]:
        return text.split()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(len(texts))
        return np.array([[1, 0] if "llama" in text or "camel" in text else [0, 1] for text in texts], np.float32)


def test_by_words_the_nearest_comes_first() -> None:
    assert "llama was born" in PassageSearch().nearest("Where was the llama born?", [BOOK], count)[0].text


def test_by_vectors_what_has_no_word_in_common_is_found_and_a_document_is_embedded_once() -> None:
    search, embedder = PassageSearch(), Embedder()
    for _ in range(2):
        assert "llama was born" in search.nearest("camel?", [BOOK, TABLE], count, embedder)[0].text
    assert len(embedder.asked) == 4, "two documents, and two questions"
    assert embedder.asked[-1] == 1


def test_as_many_fit_as_fit() -> None:
    passages = PassageSearch().nearest("llama", [BOOK], count)
    assert fitting(passages, lambda some: len(some) <= 3, 16) == passages[:3]
    assert fitting(passages, lambda some: len(some) <= 3, 2) == passages[:2]
    assert fitting(passages, lambda _: False, 16) == []
    assert fitting(passages, lambda _: True, 10_000) == passages


def test_what_fits_goes_whole_with_its_tokens() -> None:
    attaching = Attaching(10_000, prompt, count, None)
    message = attaching.whole(Message("user", "Where?"), [BOOK])
    assert message.documents[0].tokens == count(message.content) - 1
    assert message.content.endswith("Where?")
    found, passages = attaching.retrieved(Message("user", "Where?"), [BOOK], PassageSearch(), None)
    assert (found, passages) == (message, ())


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    question = Message("user", "Where was it?")
    with pytest.raises(ContextFullError) as refused:
        Attaching(1_000, prompt, count, None).whole(question, [BOOK, TABLE])
    needed = count(Message("user", [BOOK, TABLE]).content)
    assert (refused.value.needed, refused.value.room, refused.value.n_ctx) == (needed, 1_000 - 1 - 13, 1_000)
    text = str(refused.value)
    assert text.startswith(f"book.txt, table.csv needs {needed:,} tokens but the context of 1,000 has room for 986; ")
    assert "--retrieve" in text


def test_passages_leave_room_for_the_answer_and_stand_in_the_documents_order() -> None:
    attaching = Attaching(1_000, prompt, count, None)
    question = Message("user", "Where was the llama born? number 3 number 29")
    message, passages = attaching.retrieved(question, [BOOK], PassageSearch(), None)
    assert prompt(message) <= 750
    assert any("llama was born" in passage.text for passage in passages)
    assert [passage.number for passage in passages] == sorted(passage.number for passage in passages)
    assert 1 < len(passages) <= MOST
    (attached,) = message.documents
    assert attached.part.startswith("passages ")
    assert attached.part.endswith(f" of {passages[0].count}")
    assert "[...]" in message.content
    assert message.own_text == question.content
    for passage in passages:
        assert passage.text.strip() in message.content


def test_a_tables_first_line_comes_along() -> None:
    message, passages = Attaching(1_000, prompt, count, None).retrieved(
        Message("user", "How old is person1234?"), [TABLE], PassageSearch(), None
    )
    assert any("person1234,1234\n" in passage.text for passage in passages)
    lines = message.content.splitlines()
    assert lines[:3] == [lines[0], "```", "name,age"]
    assert "person1234,1234" in lines


def test_where_not_even_one_passage_fits_it_is_an_error() -> None:
    with pytest.raises(ContextFullError, match=r"the nearest passage \(book.txt, lines? .*\) needs .* has room for"):
        Attaching(60, prompt, count, None).retrieved(Message("user", "llama"), [BOOK], PassageSearch(), None)


def test_what_is_too_long_to_count_is_refused_with_a_bound() -> None:
    def bounded(question: Message) -> int:
        if (tokens := prompt(question)) > 500:
            raise ContextFullError(tokens // 2, 500, is_bound=True)
        return tokens

    with pytest.raises(ContextFullError, match=r"needs at least .* has room for") as refused:
        Attaching(500, bounded, count, None).whole(Message("user", "Where?"), [BOOK])
    assert refused.value.is_bound
    _, passages = Attaching(500, bounded, count, None).retrieved(
        Message("user", "llama"), [BOOK], PassageSearch(), None
    )
    assert passages


def test_the_same_file_twice_is_searched_once() -> None:
    copy = Document("copy.txt", BOOK.sha256, BOOK.text, BOOK.kind)
    message, _ = Attaching(1_000, prompt, count, None).retrieved(
        Message("user", "llama"), [BOOK, copy], PassageSearch(), None
    )
    assert len(message.documents) == 1


def test_an_answers_limit_makes_more_room() -> None:
    question = Message("user", "number 3")
    few = Attaching(600, prompt, count, None).retrieved(question, [BOOK], PassageSearch(), None)[1]
    more = Attaching(600, prompt, count, 10).retrieved(question, [BOOK], PassageSearch(), None)[1]
    assert len(more) >= len(few)

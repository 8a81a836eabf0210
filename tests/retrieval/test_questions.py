"""The hundred questions of benchmarks/retrieval.py: each is answered by one place of the pages, and by a passage."""

import json
from pathlib import Path

import edge_llama
from edge_llama.retrieval.passages import split

ROOT = Path(__file__).resolve().parent.parent.parent
QUESTIONS = json.loads((ROOT / "benchmarks" / "data" / "retrieval_questions.json").read_text("utf-8"))


def test_a_hundred_different_questions_whose_answers_are_on_their_pages() -> None:
    assert len({each["question"] for each in QUESTIONS}) == 100
    for each in QUESTIONS:
        page = (ROOT / "docs" / each["file"]).read_text("utf-8")
        assert page.count(each["answer"]) == 1, each
        assert each["question"] not in page


def test_each_answer_is_within_a_passage(model: edge_llama.Model) -> None:
    for name in {each["file"] for each in QUESTIONS}:
        document = edge_llama.Document.open(ROOT / "docs" / name)
        passages = split(document, lambda text: len(model.tokenizer.encode(text)))
        for each in QUESTIONS:
            if each["file"] == name:
                assert any(each["answer"] in passage.text for passage in passages), each

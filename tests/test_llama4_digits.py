"""A small Llama 4 that was trained to read digits answers as transformers does, and almost as well when quantized.

``benchmarks/images.py answers`` asks a thousand pictures and more.
"""

from pathlib import Path

import pytest
from llama4_answers import KINDS, opened, ours, questions, right, theirs
from llama4_reference import Reference

COUNT = 120
ASKED = questions(COUNT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def exact(llama4_digits: Path, folder: Path) -> list[str]:
    """Our answers in float32."""
    with opened(llama4_digits, folder, "f32", "f32") as model:
        return [ours(model, question) for question in ASKED]


def test_every_answer_in_f32_is_transformers(llama4_digits: Path, exact: list[str]) -> None:
    reference = Reference(llama4_digits)
    assert exact == [theirs(reference, question) for question in ASKED]


def test_it_reads_what_it_never_saw(exact: list[str]) -> None:
    """Singles and pairs in pictures of one tile and of several; 94 to 97 % in a thousand of each."""
    is_right = right(exact, ASKED)
    for at, kind in enumerate(KINDS):
        assert is_right[at :: len(KINDS)].mean() >= 0.7, kind
    assert is_right.mean() >= 0.85
    assert {len(question.message.images) for question in ASKED} == {1, 2}


def test_q8_0_with_a_vision_tower_in_f16_answers_as_well(llama4_digits: Path, folder: Path, exact: list[str]) -> None:
    with opened(llama4_digits, folder, "q8_0", "f16") as model:
        answers = [ours(model, question) for question in ASKED]
    lost = right(exact, ASKED).sum() - right(answers, ASKED).sum()
    assert lost <= 0.03 * COUNT, "within a point, as far as so few pictures can tell"


def test_a_black_picture_leaves_it_guessing(llama4_digits: Path, folder: Path) -> None:
    with opened(llama4_digits, folder, "f32", "f32") as model:
        assert right([ours(model, question, blank=True) for question in ASKED], ASKED).mean() <= 0.2

"""Ranks by words, by vectors, and by both."""

import numpy as np

from edge_llama.retrieval.ranking import by_vectors, by_words, joined, nearest_first

TEXTS = [
    "Llamas are calm animals of the Andes.",
    "The server listens to a port; n_ctx is its context.",
    "Alpacas give wool, and so does a llama.",
    "吾輩は猫である。名前はまだ無い。",
]


def best(question: str) -> int:
    return nearest_first(by_words(question, TEXTS))[0]


def test_words_are_found_by_their_stems_and_parts() -> None:
    assert best("Where does wool come from?") == 2
    assert best("How do I set the CTX?") == 1
    assert best("What are listening ports?") == 1
    assert best("猫の名前") == 3


def test_rare_words_count_more_and_nothing_in_common_is_zero() -> None:
    scores = by_words("llama wool", TEXTS)
    assert scores[2] > scores[0] > 0
    assert scores[1] == scores[3] == 0
    assert by_words("", TEXTS).tolist() == [0, 0, 0, 0]
    assert by_words("llama", []).shape == (0,)


def test_bm25_is_the_formula_of_the_paper() -> None:
    texts = ["a a b", "b c", "c c c c c"]
    score = by_words("a", texts)[0]
    rarity = np.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = rarity * 2 * 2.2 / (2 + 1.2 * (1 - 0.75 + 0.75 * 3 / (10 / 3)))
    assert abs(score - expected) < 1e-12


def test_vectors_rank_by_their_cosine() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    assert by_vectors(np.array([0, 1], np.float32), vectors).round(6).tolist() == [0, 1, 0.8]


def test_ranks_are_joined() -> None:
    one, other = np.array([3.0, 2.0, 1.0]), np.array([0.5, 9.0, 8.0])
    assert nearest_first(joined(one, other)) == [1, 0, 2]
    assert nearest_first(joined(one)) == [0, 1, 2]
    assert nearest_first(joined(np.zeros(3), other)) == [1, 2, 0], "what has no score has no rank"
    assert nearest_first(np.array([1.0, 1.0, 2.0])) == [2, 0, 1], "of equals the first"

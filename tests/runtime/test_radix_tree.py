"""The radix tree finds what a list that is searched from end to end finds."""

import numpy as np
import pytest

from edge_llama.runtime.radix_tree import RadixTree, Tokens, shared_length


def tokens(*ids: int) -> Tokens:
    return np.array(ids, np.int32)


@pytest.mark.parametrize(
    ("ours", "theirs", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 5], [1, 2], 1), ([5], [1], 0)],
)
def test_the_shared_beginning(ours: list[int], theirs: list[int], length: int) -> None:
    assert shared_length(tokens(*ours), tokens(*theirs)) == shared_length(tokens(*theirs), tokens(*ours)) == length


def drawn(rng: np.random.Generator) -> Tokens:
    """Few ids and short, so that many begin alike."""
    return rng.integers(-1, 2, int(rng.integers(0, 12))).astype(np.int32)


@pytest.mark.parametrize("trial", range(40))
def test_it_agrees_with_a_list_whatever_comes_and_goes(trial: int, seed: int) -> None:
    rng = np.random.default_rng([seed, trial])
    tree: RadixTree[object] = RadixTree()
    there: list[tuple[Tokens, object]] = []
    for _ in range(60):
        if there and rng.random() < 0.4:
            tree.remove(*there.pop(int(rng.integers(len(there)))))
        else:
            there.append((drawn(rng), object()))
            tree.insert(*there[-1])
        wanted = drawn(rng)
        found = list(tree.matches(wanted))
        expected = {entry: length for ids, entry in there if (length := shared_length(ids, wanted))}
        assert {entry: length for length, entry in found} == expected
        assert len(found) == len(expected)
        assert [length for length, _ in found] == sorted(expected.values(), reverse=True)
        beginnings = {entry for ids, entry in there if 0 < len(ids) == shared_length(ids, wanted)}
        assert set(tree.prefixes(wanted)) == beginnings
    for each in there:
        tree.remove(*each)
    assert not tree._root.children, "nothing is left of what went"


def test_a_path_without_branches_is_one_node() -> None:
    tree: RadixTree[str] = RadixTree()
    tree.insert(tokens(1, 2, 3, 4), "long")
    tree.insert(tokens(1, 2, 9), "other")
    tree.remove(tokens(1, 2, 9), "other")
    (node,) = tree._root.children.values()
    assert node.edge.tolist() == [1, 2, 3, 4]
    assert not node.children


def test_equal_tokens_may_have_several_entries() -> None:
    tree: RadixTree[str] = RadixTree()
    tree.insert(tokens(1, 2), "first")
    tree.insert(tokens(1, 2), "second")
    assert sorted(tree.prefixes(tokens(1, 2, 3))) == ["first", "second"]
    tree.remove(tokens(1, 2), "first")
    assert tree.prefixes(tokens(1, 2, 3)) == ["second"]

"""The cells that are counted are those that an engine's sequences have."""

import itertools

import numpy as np
import pytest

from edge_llama.runtime.cells import Cells

N_SEQUENCES = 4


class Naive:
    """Each sequence as the list of its cells."""

    def __init__(self) -> None:
        self.sequences: list[list[int]] = [[] for _ in range(N_SEQUENCES)]
        self._new = itertools.count()

    def append(self, sequence: int, count: int) -> None:
        self.sequences[sequence] += itertools.islice(self._new, count)

    def cut(self, sequence: int, length: int) -> None:
        del self.sequences[sequence][length:]

    def share(self, source: int, target: int, length: int) -> None:
        self.sequences[target][:length] = self.sequences[source][:length]

    def used_by(self, sequences: set[int]) -> int:
        return len({cell for number in sequences for cell in self.sequences[number]})


@pytest.mark.parametrize("trial", range(40))
def test_they_agree_with_lists_whatever_is_done(trial: int, seed: int) -> None:
    rng = np.random.default_rng([seed, trial])
    cells, naive = Cells(N_SEQUENCES), Naive()
    for _ in range(60):
        source, target = (int(number) for number in rng.choice(N_SEQUENCES, 2, replace=False))
        length, own = (int(rng.integers(0, most)) for most in (len(naive.sequences[source]) + 1, 8))
        match rng.integers(3):
            case 0:
                count = int(rng.integers(1, 5))
                cells.append(source, count)
                naive.append(source, count)
            case 1:
                cells.cut(source, length)
                naive.cut(source, length)
            case 2:  # with a sequence that was loaded, or is new: it has cells of its own alone
                for each in (cells, naive):
                    each.cut(target, 0)
                    each.append(target, own)
                    each.share(source, target, length)
        assert cells.used == naive.used_by(set(range(N_SEQUENCES)))
        some = {int(number) for number in rng.integers(0, N_SEQUENCES, 2)}
        assert cells.used_by(some) == naive.used_by(some)


def test_what_is_shared_counts_once_and_stays_while_one_has_it() -> None:
    cells = Cells(2)
    cells.append(0, 100)
    cells.share(0, 1, 60)
    cells.append(1, 5)
    assert (cells.used, cells.used_by({0}), cells.used_by({1})) == (105, 100, 65)
    cells.cut(0, 0)
    assert cells.used == 65

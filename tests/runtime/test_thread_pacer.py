"""The number of threads follows what each token shows of the machine's load."""

import pytest
from engines import Session, on_engine

import edge_llama
from edge_llama.backends.base import TextTower
from edge_llama.runtime.thread_pacer import Pace

RAN, WAITED = 0.01, 0.001  # processor seconds of a token that took 0.01


class Machine:
    """Cores that are free, as the two ways of looking tell."""

    def __init__(self, cores: int) -> None:
        self.cores = cores

    def __call__(self) -> int:
        return self.cores


@pytest.fixture
def machine() -> Machine:
    return Machine(4)


@pytest.fixture
def pace(machine: Machine) -> Pace:
    return Pace(4, machine, machine)


def tokens(pace: Pace, count: int, cpu_seconds: float = RAN, seconds: float = 0.01, rows: int = 1) -> list[int]:
    return [pace.after(seconds, cpu_seconds, rows, is_decode=True) for _ in range(count)]


def test_an_answer_begins_with_the_free_cores(pace: Pace, machine: Machine) -> None:
    assert pace.begin() == 4
    machine.cores = 1
    assert pace.begin() == 1
    machine.cores = 9
    assert pace.begin() == 4


def test_undisturbed_tokens_keep_their_threads(pace: Pace) -> None:
    pace.begin()
    assert set(tokens(pace, 100)) == {4}


def test_one_token_that_waited_is_enough_for_fewer_threads(pace: Pace, machine: Machine) -> None:
    pace.begin()
    machine.cores = 2
    assert tokens(pace, 1, WAITED) == [2]
    machine.cores = 1
    assert tokens(pace, 1, WAITED) == [1]
    assert set(tokens(pace, 20, WAITED)) == {1}


def test_a_thread_that_sleeps_while_no_other_process_runs_waited_for_none(pace: Pace) -> None:
    pace.begin()
    assert set(tokens(pace, 20, WAITED)) == {4}


def test_a_batch_that_waited_counts_too(pace: Pace, machine: Machine) -> None:
    pace.begin()
    machine.cores = 1
    assert pace.after(2.0, 0.2, 512, is_decode=False) == 1


def test_a_token_many_times_slower_than_the_best_counts_as_one_that_waited(pace: Pace, machine: Machine) -> None:
    """A thread that spins while it waits for another looks busy."""
    pace.begin()
    tokens(pace, 10)
    assert tokens(pace, 1, cpu_seconds=0.08, seconds=0.08) == [3]


def test_tokens_that_get_slower_as_the_context_fills_do_not(pace: Pace) -> None:
    pace.begin()
    assert {pace.after(at / 1000, at / 1000, 1, is_decode=True) for at in range(10, 100)} == {4}


def test_more_threads_when_cores_stay_free(pace: Pace, machine: Machine) -> None:
    machine.cores = 1
    pace.begin()
    assert set(tokens(pace, 40)) == {1}
    machine.cores = 3
    rising = tokens(pace, 20)
    assert rising[0] == 1
    assert rising[-1] == 3


def test_not_more_threads_while_this_one_is_disturbed(pace: Pace, machine: Machine) -> None:
    machine.cores = 1
    pace.begin()
    machine.cores = 4
    assert set(tokens(pace, 40, cpu_seconds=0.6 * RAN)) == {1}


def test_one_glance_at_free_cores_is_not_enough(pace: Pace, machine: Machine) -> None:
    machine.cores = 1
    pace.begin()
    seen = []
    for _ in range(10):
        machine.cores = 4
        seen += tokens(pace, 8)
        machine.cores = 1
        seen += tokens(pace, 8)
    assert set(seen) == {1}


def test_answers_that_are_more_at_once_are_not_slow_for_that(pace: Pace, machine: Machine) -> None:
    """A step for eight takes longer than one for one: each number of rows has a best time of its own."""
    pace.begin()
    tokens(pace, 10)
    machine.cores = 1
    assert set(tokens(pace, 10, cpu_seconds=0.06, seconds=0.06, rows=8)) == {4}
    assert tokens(pace, 1, cpu_seconds=0.5, seconds=0.5, rows=8) == [1]


def test_without_flash_attention_the_number_of_threads_does_not_change_a_bit(model: edge_llama.Model) -> None:
    assert not model.choice.setting.flash_attention

    def logits(threads: int) -> bytes:
        def work(session: Session, tower: TextTower) -> bytes:
            session.rewind(0)
            tower.use_threads(threads)
            session.prefill(list(range(100, 300)))
            session.append(7)
            return session.logits().tobytes()

        return on_engine(model, work)

    assert logits(1) == logits(2) == logits(3)


def test_a_number_that_was_given_is_kept(converted: object) -> None:
    with edge_llama.open(converted, n_ctx=256, threads=1) as model:  # type: ignore[arg-type]
        assert model._engine._pace is None

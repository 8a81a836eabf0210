"""``speed.measure`` runs what was asked for and leaves the model as usable as before."""

import os
import signal
import sys
from collections.abc import Sequence

import pytest
from engines import CAPITAL, on_engine

import edge_llama
from edge_llama import OptionError
from edge_llama.backends.base import Rows
from edge_llama.cli import speed
from edge_llama.sampling.sampler import LogitsRow


def test_tests_are_named_as_llama_bench_names_them() -> None:
    assert list(map(str, speed.tests([512], [128], [0, 1500]))) == [
        "pp512",
        "tg128",
        "pp512 @ d1500",
        "tg128 @ d1500",
    ]


@pytest.mark.parametrize(
    ("prompts", "answers", "depths", "said"),
    [
        ([], [], [0], "nothing to measure"),
        ([0], [], [0], "n_prompt is 0"),
        ([], [-1], [0], "n_gen is -1"),
        ([8], [], [-2], "n_depth"),
    ],
)
def test_lengths_that_are_none_are_errors(prompts: list[int], answers: list[int], depths: list[int], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        speed.tests(prompts, answers, depths)


def test_each_run_decodes_its_tokens_after_its_depth(model: edge_llama.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = model._engine.tower
    lengths: list[int] = []
    decode, decoded = tower.decode, [0]
    runs: list[tuple[str, int]] = []

    def counting(batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        logits = decode(batch)
        decoded[0] += sum(len(rows.tokens) for rows in batch)
        lengths.append(tower.length(0))
        return logits

    monkeypatch.setattr(tower, "decode", counting)
    wanted = speed.tests([20], [3], [0, 600])
    results = speed.measure(model, wanted, repetitions=2, on_run=lambda test, number: runs.append((str(test), number)))
    assert [result.test for result in results] == wanted
    assert all(len(result.samples) == 2 and result.mean > 0 and result.deviation >= 0 for result in results)
    assert runs[:3] == [("pp20", 1), ("pp20", 2), ("tg3", 1)]
    assert max(lengths) == 620
    assert decoded[0] == 1 + 2 * (20 + 3) + 600 + 2 * (20 + 3)  # the depth is read once


def test_the_model_answers_afterwards(model: edge_llama.Model) -> None:
    before = model.chat().send(CAPITAL, temperature=0).result().text
    speed.measure(model, speed.tests([16], [], [0]), repetitions=1)
    assert model.chat().send(CAPITAL, temperature=0).result().text == before
    assert on_engine(model, lambda session, _: len(session.tokens)) > 0


def test_a_test_longer_than_the_context_names_both(model: edge_llama.Model) -> None:
    with pytest.raises(OptionError, match=r"pp5000 needs 5,000 tokens of context, the model has 4,096"):
        speed.measure(model, speed.tests([5000], [], [0]))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_stops_the_work_at_once(model: edge_llama.Model) -> None:
    runs: list[int] = []

    def show(_test: object, number: int) -> None:
        runs.append(number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        speed.measure(model, speed.tests([600], [], [0]), repetitions=50, on_run=show)
    assert model.chat().send(CAPITAL, temperature=0, max_tokens=2).result().text
    assert len(runs) < 5

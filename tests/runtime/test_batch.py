"""What of waiting prompts goes into a decode."""

import pytest
from letters import Letters

from edge_llama.backends.base import CacheSize
from edge_llama.runtime.answering import Answering
from edge_llama.runtime.batch import Running, batches
from edge_llama.runtime.cache_entries import Held
from edge_llama.sampling.params import SamplingParams

TOWER = Letters(CacheSize(512, 512, 8))


def running(number: int, tokens: int, *, is_decoding: bool = False) -> Running:
    return Running(Answering(TOWER, [1], SamplingParams()), Held(number), range(tokens), is_decoding)


@pytest.mark.parametrize(
    ("waiting", "room", "expected"),
    [
        ([30, 30, 30], 100, {0: 30, 1: 30, 2: 30}),
        ([30, 30, 30], 50, {0: 30, 1: 20}),
        ([4000, 30, 20], 100, {0: 50, 1: 30, 2: 20}),
        ([4000, 30, 20], 60, {0: 30, 1: 10, 2: 20}),
        ([10, 4000, 30], 60, {0: 10, 1: 20, 2: 30}),
        ([4000, 30], 1, {0: 1}),
        ([4000], 64, {0: 64}),
    ],
)
def test_few_wait_and_the_first_is_never_forgotten(waiting: list[int], room: int, expected: dict[int, int]) -> None:
    ready = [running(number, tokens) for number, tokens in enumerate(waiting)]
    (batch,) = batches(ready, 512, 10_000, room)
    assert {each.held.number: len(rows.tokens) for each, rows in batch} == expected


def test_answers_come_first_and_then_as_much_as_the_batch_holds() -> None:
    ready = [running(0, 400), running(1, 1, is_decoding=True), running(2, 400)]
    (batch,) = batches(ready, 512, 10_000, None)
    assert [(each.held.number, len(rows.tokens)) for each, rows in batch] == [(1, 1), (0, 400), (2, 111)]
    assert batches(ready, 512, 0, None) == []
    (batch,) = batches(ready, 512, 10_000, 0)
    assert [each.held.number for each, _ in batch] == [1]

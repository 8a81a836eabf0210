"""Requests with different adapters on one model: turns that are fair, and nothing that one set computed for another.

The tower has no weights, and a row over what other adapters computed fails (``letters.AdaptedLetters``).
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pytest
from letters import AdaptedLetters, said_with
from one_sequence import OneSequence

from edge_llama.backends.adapters import AdapterSet, AdapterUse
from edge_llama.backends.base import CacheSize, Rows
from edge_llama.errors import EngineError
from edge_llama.generation import generate
from edge_llama.runtime import adapter_turns, session_file
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.disk_cache import DiskCache
from edge_llama.runtime.prompt_cache import PromptCache
from edge_llama.runtime.scheduler import Scheduler
from edge_llama.runtime.session_file import SavedChat, State
from edge_llama.sampling.params import SamplingParams

LEGAL: AdapterSet = (AdapterUse("a" * 64, 1.0),)
HALF: AdapterSet = (AdapterUse("a" * 64, 0.5),)
BOTH: AdapterSet = (AdapterUse("a" * 64, 1.0), AdapterUse("b" * 64, -0.25))
SETS: list[AdapterSet] = [(), LEGAL, HALF, BOTH]
PROMPT = list(range(100, 300))
SETTINGS = {"engine": "letters"}


@pytest.fixture
def tower() -> AdaptedLetters:
    return AdaptedLetters()


@pytest.fixture
def engine(tower: AdaptedLetters) -> Iterator[Scheduler]:
    engine = letters.scheduler(tower)
    yield engine
    engine.close()


def asked(engine: Scheduler, prompt: Sequence[int], tokens: int, adapters: AdapterSet, **options: Any) -> Any:
    params = SamplingParams(temperature=0, max_tokens=tokens)
    return generate(engine, prompt, params, adapters=adapters, **options)


def test_callers_with_different_adapters_get_what_they_get_alone(engine: Scheduler, tower: AdaptedLetters) -> None:
    running = {adapters: asked(engine, PROMPT, 50, adapters) for adapters in SETS}
    for adapters, generation in running.items():
        assert generation.result().text == said_with(PROMPT, 50, adapters)
    assert set(tower.turns) == set(SETS)


def test_the_same_prompt_with_other_adapters_is_prefilled_again(engine: Scheduler) -> None:
    """And again with the first ones it is not: what they computed is still there."""
    first = [asked(engine, PROMPT, 4, adapters).result() for adapters in SETS]
    again = [asked(engine, PROMPT, 4, adapters).result() for adapters in SETS]
    assert [answer.timings.cached_tokens for answer in first] == [0] * 4
    assert [answer.timings.cached_tokens for answer in again] == [len(PROMPT) - 1] * 4
    assert [answer.text for answer in first] == [answer.text for answer in again]


def test_turns_go_round_and_nobody_waits_for_a_second_one(
    engine: Scheduler, tower: AdaptedLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While all are being answered, each set has one turn before any has another; a turn is more than one decode."""
    monkeypatch.setattr(adapter_turns, "_TURN", 0.003)
    tower.go.clear()
    running = [asked(engine, [*PROMPT, number], 600, SETS[number % 4]) for number in range(8)]
    assert tower.within.wait(20)
    tower.go.set()
    for generation in running:
        generation.result()
    turns = [adapters for adapters, _ in groupby(tower.turns)]
    first_to_end = min(max(at for at, adapters in enumerate(turns) if adapters == each) for each in SETS)
    all_along = turns[4:first_to_end]
    assert len(all_along) > 8
    for at in range(len(all_along) - 4):
        assert len(set(all_along[at : at + 4])) == 4, all_along[at : at + 4]
    assert len(turns) < len(tower.turns) / 2


def test_a_set_whose_decodes_fail_keeps_the_others_from_nothing(engine: Scheduler, tower: AdaptedLetters) -> None:
    tower.refuses = lambda _batch: EngineError("no such adapter") if tower.used == LEGAL else None
    failing, good = asked(engine, PROMPT, 40, LEGAL), asked(engine, PROMPT, 40, HALF)
    with pytest.raises(EngineError, match="no such adapter"):
        failing.result()
    assert good.result().text == said_with(PROMPT, 40, HALF)


@pytest.mark.parametrize("trial", range(6))
@pytest.mark.parametrize(("n_cells", "n_sequences", "room"), [(4096, 8, 10**9), (420, 8, 10**9), (420, 3, 2000)])
def test_whatever_comes_every_answer_is_that_of_its_adapters(
    n_cells: int, n_sequences: int, room: int, trial: int, seed: int
) -> None:
    """Also where cells are short, so that requests of one set leave for those of another, and come back."""
    rng = np.random.default_rng([seed, n_cells, n_sequences, trial])
    tower = AdaptedLetters(CacheSize(400, n_cells, n_sequences))
    engine = letters.scheduler(tower, room=lambda _used: room, max_running=4)
    try:
        running = []
        for _ in range(24):
            blocks = rng.integers(0, 2, int(rng.integers(1, 4)))
            prompt = [token for block in blocks for token in range(block, 40 * block + 40)]
            adapters, count = SETS[int(rng.integers(4))], int(rng.integers(1, 60))
            running.append((prompt, count, adapters, asked(engine, prompt, count, adapters)))
            if rng.integers(3) == 0:
                running.pop(int(rng.integers(len(running))))[3].cancel()
        for prompt, count, adapters, generation in running:
            assert generation.result().text == said_with(prompt, count, adapters)
    finally:
        engine.close()


def use(cache: PromptCache, tower: AdaptedLetters, adapters: AdapterSet, owner: CacheOwner | None = None) -> int:
    """Have the prompt with these adapters, and leave it; how many tokens were there."""
    tower.use_adapters(adapters)
    beginning = cache.begin(np.array(PROMPT, np.int32), owner, adapters)
    assert beginning is not None
    one = OneSequence(tower, beginning.held.number)
    for at in range(beginning.reused, len(PROMPT), tower.n_batch):
        one.decode(PROMPT[at : at + tower.n_batch])
        cache.appended(beginning.held, PROMPT[at : at + tower.n_batch])
    assert tower.set_of(beginning.held.number) == adapters
    cache.end(beginning.held, tower._logits(beginning.held.number))
    return beginning.reused


@pytest.mark.parametrize("slice_size", [0, 64])
def test_copies_in_memory_are_those_of_their_adapters(slice_size: int, tower: AdaptedLetters) -> None:
    cache = PromptCache(tower, lambda _used: 10**9, slice_size)
    assert [use(cache, tower, adapters) for adapters in SETS] == [0] * 4
    assert cache.make_cells(tower.n_cells)
    assert len(cache.copies.states) == 4
    kept = len(PROMPT) // slice_size * slice_size if slice_size else len(PROMPT)
    assert [use(cache, tower, adapters) for adapters in SETS] == [kept] * 4


def test_a_chats_state_and_what_it_goes_on_from_have_its_adapters(tower: AdaptedLetters) -> None:
    cache, owner, other = PromptCache(tower, lambda _used: 10**9), CacheOwner(), CacheOwner()
    use(cache, tower, (), owner)
    use(cache, tower, LEGAL, owner)
    state = cache.state(owner)
    assert state is not None
    assert state.adapters == owner.adapters == LEGAL
    cache.clear()
    cache.adopt(state, other)
    assert other.adapters == LEGAL
    assert cache.known(np.array(PROMPT, np.int32), LEGAL) == len(PROMPT)
    assert cache.known(np.array(PROMPT, np.int32)) == 0


class Process:
    """A model that is open, with its cache on disk."""

    def __init__(self, folder: Path) -> None:
        self.tower = AdaptedLetters()
        for adapters in SETS:
            self.tower.use_adapters(adapters)
        self.disk = DiskCache(folder, "a", "identity of a", SETTINGS, SETTINGS, self.tower.n_ctx)
        self.cache = PromptCache(self.tower, lambda _used: 10**9, disk=self.disk)

    def use(self, adapters: AdapterSet, owner: CacheOwner | None = None) -> int:
        return use(self.cache, self.tower, adapters, owner)


def test_files_are_those_of_their_adapters(tmp_path: Path) -> None:
    first = Process(tmp_path)
    assert [first.use(adapters) for adapters in SETS] == [0] * 4
    first.cache.close()
    assert len(list(tmp_path.iterdir())) == 4
    second = Process(tmp_path)
    assert [second.use(adapters) for adapters in SETS[::-1]] == [len(PROMPT)] * 4


def test_a_conversations_file_is_that_of_the_adapters_it_was_last_answered_with(tmp_path: Path) -> None:
    """One file for each conversation: what it had before is found neither in this process nor in the next."""
    first, owner = Process(tmp_path), CacheOwner()
    first.cache.tag(owner, "talk")
    for adapters in ((), LEGAL):
        first.use(adapters, owner)
        state = first.cache.state(owner)
        assert state is not None
        state.tag = "talk"
        stored = first.disk.write(state)
        assert stored is not None
        first.cache.copies.stored(stored)
    first.cache.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["talk.session"]
    assert first.use(()) == 0
    second = Process(tmp_path)
    assert second.use(()) == 0
    assert second.use(LEGAL) == len(PROMPT)


def test_a_session_file_tells_its_adapters_and_older_versions_refuse_it(tmp_path: Path) -> None:
    """Without adapters it is as before, byte for byte in its version and header."""
    for adapters, version in ((), 1), (BOTH, 2):
        state = State(np.arange(3, dtype=np.int32), np.zeros(12, np.uint8), None, adapters=adapters)
        path = tmp_path / f"{version}.session"
        session_file.write(path, SavedChat("a", "identity", SETTINGS, (), state))
        assert path.read_bytes()[8] == version
        assert (b"adapters" in path.read_bytes()) == bool(adapters)
        read = session_file.read(path).state
        assert read is not None
        assert read.adapters == session_file.peek(path).adapters == adapters


def test_a_row_over_what_other_adapters_computed_would_be_noticed(tower: AdaptedLetters) -> None:
    """The tests above prove something."""
    OneSequence(tower).decode(PROMPT[:20])
    tower.use_adapters(LEGAL)
    with pytest.raises(AssertionError):
        tower.decode([Rows(0, [1])])

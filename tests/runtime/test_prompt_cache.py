"""What was prefilled is found, shared, moved out and loaded again, and every sequence holds what it says."""

import gc
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from letters import Letters, following
from one_sequence import OneSequence

from edge_llama.backends.base import CacheSize, Rows
from edge_llama.errors import EngineError
from edge_llama.runtime.cache_entries import Beginning, CacheOwner, Divergence, Held
from edge_llama.runtime.prompt_cache import PromptCache
from edge_llama.runtime.session_file import State

SYSTEM = list(range(100, 400))
"""More than may lie idle beside others: see ``_IDLE_CELLS``."""


def ids(tokens: Sequence[int]) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    return np.array(tokens, np.int32)


class Cached:
    """A cache over a tower without weights, used as the scheduler uses it."""

    def __init__(
        self,
        *,
        n_cells: int = 4096,
        n_sequences: int = 8,
        room: int = 10**9,
        slice_size: int = 0,
        tower: type = Letters,
    ) -> None:
        self.tower: Letters = tower(CacheSize(min(n_cells, 2048), n_cells, n_sequences))
        self.room = room
        self.cache = PromptCache(self.tower, lambda _used: self.room, slice_size)

    def begin(self, prompt: Sequence[int], owner: CacheOwner | None = None) -> Beginning:
        """The prompt in a sequence that is running."""
        beginning = self.cache.begin(ids(prompt), owner)
        assert beginning is not None
        self.append(beginning.held, prompt[beginning.reused :])
        assert self.tower.tokens(beginning.held.number) == list(prompt)
        return beginning

    def append(self, held: Held, tokens: Sequence[int]) -> None:
        for at in range(0, len(tokens), self.tower.n_batch):
            rows = tokens[at : at + self.tower.n_batch]
            try:
                OneSequence(self.tower, held.number).decode(rows)
                self.cache.appended(held, rows)
            finally:
                self.cache.synchronize(held)
        self.check()

    def end(self, held: Held) -> None:
        self.cache.end(held, self.tower._logits(held.number))
        self.check()

    def use(self, prompt: Sequence[int], owner: CacheOwner | None = None) -> int:
        """Have the prompt, and leave it; how many tokens were there."""
        beginning = self.begin(prompt, owner)
        self.end(beginning.held)
        return beginning.reused

    def move_out(self) -> None:
        assert self.cache.make_cells(self.tower.n_cells)
        assert self.tower.used_cells == 0

    def check(self) -> None:
        """What the cache believes is what the tower has."""
        for held in self.cache._held:
            assert held.tokens == self.tower.tokens(held.number)
        numbers = [held.number for held in self.cache._held]
        assert sorted([*numbers, *self.cache._free]) == list(range(self.tower.n_sequences))
        assert self.cache.used_cells == self.tower.used_cells
        assert self.cache.free_cells == self.tower.n_cells - self.tower.used_cells
        assert self.cache.copies.nbytes <= self.room


def test_two_that_are_running_share_their_beginning() -> None:
    cached = Cached()
    first = cached.begin([*SYSTEM, 1, 2, 3])
    second = cached.begin([*SYSTEM, 4, 5])
    assert (first.reused, second.reused) == (0, len(SYSTEM))
    assert cached.cache.used_cells == len(SYSTEM) + 5
    cached.append(first.held, [6])
    cached.end(first.held)
    cached.append(second.held, [7])
    assert cached.tower.tokens(second.held.number) == [*SYSTEM, 4, 5, 7]


def test_what_another_is_about_to_prefill_is_not_there_yet() -> None:
    cached = Cached()
    beginning = cached.cache.begin(ids(SYSTEM))
    assert beginning is not None
    cached.append(beginning.held, SYSTEM[:10])
    assert cached.cache.known(ids(SYSTEM)) == 10
    assert cached.begin([*SYSTEM[:50], 1]).reused == 10


def test_a_chat_goes_on_in_its_own_sequence_and_another_forks() -> None:
    cached, owners = Cached(), [CacheOwner(), CacheOwner()]
    prompt = list(range(100))
    cached.use([*prompt, 1, 2], owners[0])
    assert cached.use([*prompt, 3], owners[1]) == 100
    assert cached.tower.used_cells == 103, "the beginning lies there once"
    assert cached.use([*prompt, 1, 2, 5], owners[0]) == 102
    assert cached.use([*prompt, 9], owners[0]) == 100, "its own it may cut"
    assert cached.tower.used_cells == 102
    assert cached.tower.loads == 0


def test_what_nobody_owns_is_cut_only_where_little_is_lost() -> None:
    cached = Cached()
    cached.use([*range(100), 1, 2])
    assert cached.use([*range(100), 3]) == 100
    assert cached.use([*range(100), 1, 2]) == 100, "two tokens were not worth keeping"
    assert cached.use([0, 1, 2, 7]) == 3
    assert cached.use([*range(100), 1, 2, 3]) == 102, "a hundred were"


@pytest.mark.parametrize("n_sequences", [1, 2])
def test_what_a_dropped_chat_left_is_kept_and_goes_first_when_room_is_short(n_sequences: int) -> None:
    cached = Cached(n_sequences=n_sequences)
    chats = [CacheOwner() for _ in range(3)]
    prompts = [[number, *SYSTEM] for number in range(3)]
    for prompt, chat in zip(prompts, chats, strict=True):
        cached.use(prompt, chat)
    cached.move_out()
    chats[0] = CacheOwner()
    gc.collect()
    kept = cached.cache.copies.nbytes
    assert [cached.cache.known(ids(prompt)) for prompt in prompts] == [301] * 3
    cached.room = kept
    cached.use([9, *SYSTEM])
    cached.move_out()
    assert [cached.cache.known(ids(prompt)) for prompt in prompts] == [0, 301, 301]
    assert cached.cache.known(ids([9, *SYSTEM])) == 301
    assert cached.cache.copies.nbytes == kept


def test_the_least_recently_used_goes_first() -> None:
    cached = Cached()
    prompts = [[number, *SYSTEM] for number in range(4)]
    for prompt in prompts[:3]:
        cached.use(prompt)
    cached.use(prompts[0])
    cached.move_out()
    cached.room = cached.cache.copies.nbytes
    cached.use(prompts[3])
    cached.move_out()
    assert [bool(cached.cache.known(ids(prompt))) for prompt in prompts] == [True, False, True, True]


def test_a_copy_that_is_larger_than_all_room_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    cached = Cached(room=1000)
    cached.use([1, 2, 3])
    cached.move_out()
    assert cached.cache.known(ids([1, 2, 3])) == 3
    cached.use([5, *SYSTEM])
    with caplog.at_level(logging.INFO):
        cached.move_out()
    assert "no room to keep a conversation of 301 tokens: it will be read again" in caplog.text
    assert cached.cache.known(ids([5, *SYSTEM])) == 0
    assert cached.cache.known(ids([1, 2, 3])) == 3, "nothing had to go for it"


def test_what_was_moved_out_is_loaded_with_its_logits() -> None:
    cached, owner = Cached(), CacheOwner()
    cached.use(SYSTEM, owner)
    cached.move_out()
    beginning = cached.begin(SYSTEM, owner)
    assert beginning.reused == len(SYSTEM), "not even the last token is prefilled again"
    assert beginning.held.logits is not None
    assert int(beginning.held.logits.argmax()) == following(SYSTEM)
    assert cached.tower.loads == 1
    assert cached.cache.copies.nbytes == 0


def test_a_beginning_that_is_needed_alone_leaves_the_copy() -> None:
    cached = Cached()
    own = [*SYSTEM, *range(20)]
    cached.use(own)
    cached.move_out()
    assert cached.use([*SYSTEM, 44]) == len(SYSTEM)
    assert cached.use([*own, 5]) == len(own)


def test_what_is_loaded_shares_the_beginning_that_another_has() -> None:
    cached, chats = Cached(), [CacheOwner(), CacheOwner()]
    own = [*SYSTEM, *range(20)]
    cached.use(own, chats[0])
    cached.move_out()
    running = cached.begin([*SYSTEM, 44])
    assert cached.begin([*own, 5], chats[0]).reused == len(own)
    assert cached.cache.used_cells == len(own) + 2
    cached.end(running.held)


def test_of_two_copies_one_of_which_begins_the_other_the_longer_is_kept() -> None:
    cached, chats = Cached(), [CacheOwner(), CacheOwner()]
    cached.use(SYSTEM, chats[0])
    cached.use([*SYSTEM, 1, 2], chats[1])
    cached.move_out()
    assert len(cached.cache.copies.states) == 1
    assert cached.cache.known(ids([*SYSTEM, 1, 2])) == len(SYSTEM) + 2


def test_a_state_that_the_engine_refuses_is_prefilled_again(caplog: pytest.LogCaptureFixture) -> None:
    cached, owner = Cached(), CacheOwner()
    bad = State(ids(SYSTEM), np.zeros(7, np.uint8), None)
    with pytest.raises(EngineError, match="read 0 of 7"):
        cached.cache.adopt(bad, owner)
    cached.check()
    cached.cache.copies.keep(bad)
    assert cached.use(SYSTEM) == 0
    assert "can't be used, it is prefilled again" in caplog.text
    assert cached.cache.copies.nbytes == 0


def test_one_that_is_suspended_comes_back_and_goes_on() -> None:
    cached, owner = Cached(n_cells=400), CacheOwner()
    held = cached.begin([1, *SYSTEM], owner).held
    state = cached.cache.suspend(held)
    cached.check()
    assert cached.use([2, *SYSTEM]) == 0
    again = cached.cache.resume(state, ids([1, *SYSTEM]), owner)
    assert again is not None
    assert again.is_running
    assert cached.tower.tokens(again.number) == [1, *SYSTEM]
    cached.append(again, [5])
    cached.end(again)
    assert cached.cache.known(ids([1, *SYSTEM, 5])) == 302


def test_one_that_was_suspended_and_cancelled_is_kept() -> None:
    cached = Cached()
    cached.cache.copies.keep(cached.cache.suspend(cached.begin(SYSTEM).held))
    assert cached.use(SYSTEM) > 0
    assert cached.tower.loads == 1


def test_only_what_is_idle_leaves_for_others() -> None:
    cached = Cached(n_cells=400)
    running = cached.begin(SYSTEM)
    assert not cached.cache.make_cells(200)
    cached.end(running.held)
    assert cached.cache.make_cells(200)
    assert cached.cache.known(ids(SYSTEM)) == len(SYSTEM)


def test_when_every_sequence_is_running_another_waits() -> None:
    cached = Cached(n_sequences=2)
    running = [cached.begin([number, 1]) for number in range(2)]
    assert cached.cache.begin(ids([5, 1])) is None
    cached.end(running[0].held)
    assert cached.begin([5, 1])


def test_a_copy_that_is_too_long_for_the_cells_keeps_no_short_prompt_waiting() -> None:
    cached = Cached(n_cells=400)
    cached.use([1, 2, *SYSTEM])
    cached.move_out()
    running = cached.begin([5, *SYSTEM[:200]])
    assert cached.begin([1, 2, 3]).reused == 0
    assert cached.cache.begin(ids([1, 2, *SYSTEM])) is None, "one that needs the cells waits for them"
    cached.end(running.held)
    assert cached.begin([1, 2, *SYSTEM]).reused == 302


def test_few_idle_cells_stay_beside_those_that_run_and_many_do_not() -> None:
    cached = Cached()
    cached.use(list(range(200)))
    cached.begin([9, 9])
    assert not cached.cache.is_crowded()
    assert cached.cache.used_cells == 202
    cached.use([8, *SYSTEM])
    cached.begin([7, 7])
    assert cached.cache.used_cells == 505, "one at a time, so that nobody waits for long"
    used = []
    while cached.cache.is_crowded():
        cached.cache.relieve()
        used.append(cached.cache.used_cells)
    assert used == [305, 4]
    assert cached.cache.known(ids([8, *SYSTEM])) == 301


def test_before_a_long_prompt_few_idle_cells_are_copied_out_where_there_is_room() -> None:
    cached = Cached()
    cached.use(list(range(20)))
    cached.begin([9, 9])
    assert not cached.cache.is_crowded(100)
    assert cached.cache.is_crowded(1000)
    cached.room = 0
    assert not cached.cache.is_crowded(1000)


def test_at_rest_what_is_idle_takes_the_place_of_copies_that_were_used_before_it() -> None:
    cached = Cached()
    cached.use([*SYSTEM, 5])
    cached.move_out()
    running = [cached.begin([number]) for number in (1, 2, 3)]
    for token in range(3, 300):
        for each in running:
            cached.append(each.held, [token])
    for each in running:
        cached.end(each.held)
    cached.room = 2 * cached.cache._bytes(running[0].held)
    while cached.cache.tidy():
        cached.check()
    assert [held.tokens[0] for held in cached.cache._held] == [3], "the last that was used stays"
    assert [cached.cache.known(ids([number, *range(3, 300)])) for number in (1, 2, 3)] == [298] * 3
    assert cached.cache.known(ids([*SYSTEM, 5])) < len(SYSTEM), "what was used before them is gone"
    for held in cached.cache._held:
        cells = [cell for cell, _ in cached.tower.sequences[held.number]]
        assert max(cells) - min(cells) == len(cells) - 1


def test_while_nothing_runs_the_last_stays_as_it_is_and_the_others_are_copied_out() -> None:
    cached = Cached()
    cached.use([1, *SYSTEM])
    assert not cached.cache.tidy()
    cached.use([2, *SYSTEM])
    cached.use([3, *SYSTEM])
    assert [cached.cache.tidy() for _ in range(3)] == [True, True, False]
    assert cached.tower.used_cells == 301
    assert [cached.cache.known(ids([number, *SYSTEM])) for number in (1, 2, 3)] == [301] * 3


def test_what_has_no_room_for_a_copy_stays_while_nobody_needs_its_cells() -> None:
    cached = Cached(room=0)
    for number in (1, 2):
        cached.use([number, *SYSTEM])
    assert not cached.cache.tidy()
    assert [cached.cache.known(ids([number, *SYSTEM])) for number in (1, 2)] == [301, 301]


def test_a_copy_is_not_loaded_for_a_few_tokens_more_than_a_sequence_has() -> None:
    cached = Cached()
    for number in (1, 2):
        cached.use([*SYSTEM, 7, 7, number])
    cached.cache.tidy()
    cached.use([*SYSTEM, 8])
    cached.cache.clear()
    cached.use([*SYSTEM, 7, 7, 1])
    cached.move_out()
    cached.use([*SYSTEM, 9])
    assert cached.use([*SYSTEM, 7, 7, 3]) == len(SYSTEM)
    assert len(cached.cache.copies.states) == 1


def test_a_prompt_that_leaves_what_was_there_is_told_where() -> None:
    cached = Cached()
    cached.use(list(range(80)))
    prompt = [*range(20), 7, 8, *range(22, 80)]
    assert cached.begin(prompt).divergence == Divergence(20, tuple(range(20, 28)), (7, 8, *range(22, 28)))
    assert cached.begin([*range(80), 1]).divergence is None, "it goes on after what was there"
    assert cached.begin([99]).divergence is None, "nothing like it was there"


def test_only_whole_slices_are_reused_where_numbers_must_not_depend_on_others() -> None:
    cached = Cached(slice_size=64)
    prompt = list(range(200))
    assert cached.use(prompt) == 0
    assert cached.use([*prompt, 1, 2, 3]) == 192
    assert cached.use(prompt[:150]) == 128
    assert cached.use([*prompt[:63], 9, *prompt[64:]]) == 0


def test_a_chats_state_is_what_its_last_answer_left() -> None:
    cached, owner, other = Cached(), CacheOwner(), CacheOwner()
    assert cached.cache.state(owner) is None
    cached.use(SYSTEM, owner)
    state = cached.cache.state(owner)
    assert state is not None
    assert state.tokens.tolist() == SYSTEM
    cached.cache.clear()
    cached.check()
    assert cached.cache.state(owner) is None
    cached.cache.adopt(state, other)
    cached.check()
    assert cached.cache.state(other) is not None
    assert cached.use(SYSTEM, other) == len(SYSTEM)


def test_a_conversation_larger_than_all_cells_that_are_free_is_not_adopted() -> None:
    cached = Cached(n_cells=400)
    cached.use([1, *SYSTEM], owner := CacheOwner())
    state = cached.cache.state(owner)
    assert state is not None
    cached.cache.clear()
    running = cached.begin([2, *SYSTEM])
    with pytest.raises(EngineError, match="others use it"):
        cached.cache.adopt(state, owner)
    cached.end(running.held)
    cached.cache.adopt(state, owner)
    cached.check()


class Recurrent(Letters):
    """Its memory holds only the last position: it can't be cut."""

    def cut(self, sequence: int, length: int) -> None:
        if length < self.length(sequence):
            self.sequences[sequence] = []

    def decode(self, batch: Sequence[Rows]) -> "Sequence[object]":  # type: ignore[override]
        try:
            return super().decode(batch)
        except EngineError:
            self.sequences[0] = []
            raise


def test_a_memory_that_cannot_be_cut_is_prefilled_again_as_a_whole() -> None:
    cached = Cached(n_sequences=1, tower=Recurrent)
    assert cached.use(range(20)) == 0
    assert cached.use(range(20)) == 20
    assert cached.use(range(30)) == 20
    assert cached.use(range(25)) == 0
    cached.tower.refuses = lambda _batch: EngineError("odd")
    held = cached.cache.begin(ids(range(40)))
    assert held is not None
    with pytest.raises(EngineError, match="odd"):
        cached.append(held.held, range(25, 40))
    cached.cache.end(held.held)
    cached.check()
    cached.tower.refuses = lambda _batch: None
    assert cached.use(range(40)) == 0


@pytest.mark.parametrize("trial", range(10))
@pytest.mark.parametrize("n_sequences", [1, 3, 6])
def test_whatever_comes_and_goes_every_sequence_holds_what_it_says(n_sequences: int, trial: int, seed: int) -> None:
    rng = np.random.default_rng([seed, n_sequences, trial])
    cached = Cached(n_cells=700, n_sequences=n_sequences, room=int(rng.choice([0, 3000, 10**6])))
    owners: list[CacheOwner | None] = [None, *(CacheOwner() for _ in range(4))]
    running: list[tuple[Held, list[int]]] = []
    suspended: list[tuple[State, list[int]]] = []

    def prompt() -> list[int]:
        """Of blocks, few of which differ, so that many begin alike."""
        return [
            token for block in rng.integers(0, 2, int(rng.integers(1, 5))) for token in range(block, 40 * block + 40)
        ]

    def begin() -> None:
        wanted = prompt()
        if cached.cache.make_cells(len(wanted) + 1):
            owner = owners[int(rng.integers(len(owners)))]
            if (beginning := cached.cache.begin(ids(wanted), owner)) is not None:
                cached.check()
                cached.append(beginning.held, wanted[beginning.reused :])
                running.append((beginning.held, wanted))

    def leave() -> None:
        cached.end(running.pop(int(rng.integers(len(running))))[0])

    def suspend() -> None:
        held, wanted = running.pop(int(rng.integers(len(running))))
        suspended.append((cached.cache.suspend(held), wanted))
        cached.check()

    def resume() -> None:
        state, wanted = suspended.pop(int(rng.integers(len(suspended))))
        if rng.integers(4) == 0:
            cached.cache.copies.keep(state)
        elif (held := cached.cache.resume(state, ids(wanted), None)) is None:
            suspended.append((state, wanted))
        else:
            running.append((held, wanted))
        cached.check()

    for _ in range(60):
        places = n_sequences - len(running)
        may = {begin: places > 0, resume: places > 0 and bool(suspended), leave: bool(running), suspend: bool(running)}
        act = [begin, leave, suspend, resume][int(rng.integers(4))]
        if may[act]:
            act()
        for held, wanted in running:
            assert cached.tower.tokens(held.number) == wanted


def test_cells_that_lie_among_those_of_others_are_brought_together_at_rest() -> None:
    cached = Cached()
    running = [cached.begin([number]) for number in (1, 2)]
    for token in range(3, 300):
        for each in running:
            cached.append(each.held, [token])
    for each in running:
        cached.end(each.held)
    assert cached.cache.tidy()
    cells = [cell for cell, _ in cached.tower.sequences[cached.cache._held[0].number]]
    assert max(cells) - min(cells) > 2 * len(cells) - 3
    logits = cached.cache._held[0].logits
    assert cached.cache.tidy()
    (held,) = cached.cache._held
    cells = [cell for cell, _ in cached.tower.sequences[held.number]]
    assert max(cells) - min(cells) == len(cells) - 1
    assert held.logits is logits
    assert not cached.cache.tidy()
    cached.check()
    assert cached.use([2, *range(3, 300), 5]) == 298


def test_a_chats_last_answer_stays_its_last_when_an_older_one_is_brought_together() -> None:
    cached, owner = Cached(), CacheOwner()
    older, other = cached.begin([1], owner), cached.begin([2])
    for token in range(3, 30):
        for each in (older, other):
            cached.append(each.held, [token])
    for each in (older, other):
        cached.end(each.held)
    latest = [5, *range(200, 300)]
    cached.use(latest, owner)
    while cached.cache.tidy():
        cached.check()
    assert cached.tower.loads
    assert owner.tokens is not None
    assert owner.tokens.tolist() == latest


def test_scattered_cells_without_room_for_a_copy_stay_where_they_are() -> None:
    cached = Cached(room=0)
    running = [cached.begin([number]) for number in (1, 2)]
    for each in running:
        cached.append(each.held, range(3, 30))
        cached.end(each.held)
    assert cached.cache.make_cells(cached.cache.free_cells + 1)
    assert not cached.cache.tidy()
    assert cached.cache.known(ids([2, *range(3, 30)])) == 28

"""Many requests at once: each gets the answer that it would get alone, whatever becomes of the others."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import letters
import numpy as np
import pytest
from letters import Letters, said
from numpy.typing import NDArray

from edge_llama.backends.base import CacheSize, Rows
from edge_llama.errors import BusyError, DeadlineError, EngineError, OptionError
from edge_llama.generation import Generation, generate
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.scheduler import Scheduler
from edge_llama.runtime.thread_pacer import Pace
from edge_llama.sampling.params import SamplingParams

SECONDS = 20


@pytest.fixture
def started() -> Iterator[Callable[..., tuple[Scheduler, Letters]]]:
    """``started(cache, **options)``: a scheduler and its tower, closed after the test."""
    engines: list[tuple[Scheduler, Letters]] = []

    def start(cache: CacheSize | None = None, **options: Any) -> tuple[Scheduler, Letters]:
        tower = Letters(cache)
        engines.append((letters.scheduler(tower, **options), tower))
        return engines[-1]

    yield start
    for engine, tower in engines:
        tower.go.set()
        engine.close()


def ask(
    engine: Scheduler,
    prompt: Sequence[int],
    max_tokens: int | None = 5,
    *,
    deadline: float | None = None,
    **options: Any,
) -> Generation:
    owner = options.pop("owner", None)
    params = SamplingParams(temperature=0, max_tokens=max_tokens, **options)
    return generate(engine, prompt, params, owner=owner, deadline=deadline)


def until(condition: Callable[[], object]) -> None:
    """Wait for what must come."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def slow(tower: Letters, seconds: float = 0.002) -> None:
    """Every decode takes a while."""
    tower.refuses = lambda _batch: time.sleep(seconds)


def hold(tower: Letters) -> None:
    """Keep the tower within the decode that comes next."""
    tower.go.clear()
    assert tower.within.wait(SECONDS)


def distinct(count: int, length: int = 20) -> list[list[int]]:
    return [[number, *range(length)] for number in range(count)]


def test_all_of_them_run_at_once_and_get_their_own_answers(started: Any) -> None:
    engine, tower = started(max_running=4)
    tower.go.clear()
    running = [ask(engine, prompt, 30) for prompt in distinct(10)]
    tower.go.set()
    assert [each.result().text for each in running] == [said(prompt, 30) for prompt in distinct(10)]
    assert max(len(batch) for batch in tower.decoded) == 4


def test_a_tower_of_one_sequence_serves_them_in_turn(started: Any) -> None:
    engine, tower = started(CacheSize.of_one(500))
    assert engine.max_running == 1
    running = [ask(engine, prompt) for prompt in distinct(5)]
    assert [each.result().text for each in running] == [said(prompt, 5) for prompt in distinct(5)]
    assert {len(batch) for batch in tower.decoded} == {1}


def test_one_too_many_is_told_how_many_there_are(started: Any) -> None:
    engine, tower = started(max_running=2, max_queued=3)
    tower.go.clear()
    running = [ask(engine, prompt) for prompt in distinct(5)]
    with pytest.raises(BusyError, match=r"at most 3 may; .*max_queued") as caught:
        ask(engine, [9])
    assert caught.value.max_queued == 3
    assert caught.value.running + caught.value.queued == 5
    running[4].cancel()
    tower.go.set()
    until(lambda: engine.stats().queued == 0)
    assert ask(engine, [9]).result().text == said([9], 5)
    assert [each.result().text for each in running[:4]] == [said(prompt, 5) for prompt in distinct(4)]


def test_without_a_queue_as_many_as_run_are_taken(started: Any) -> None:
    engine, tower = started(max_running=2, max_queued=0)
    tower.go.clear()
    running = [ask(engine, prompt) for prompt in distinct(2)]
    with pytest.raises(BusyError):
        ask(engine, [9])
    tower.go.set()
    assert [each.result().text for each in running] == [said(prompt, 5) for prompt in distinct(2)]


def test_a_deadline_ends_one_that_waits_for_its_turn(started: Any) -> None:
    engine, tower = started(max_running=1)
    slow(tower)
    first = ask(engine, [1], 100)
    late = ask(engine, [2], deadline=time.monotonic() + 0.02)
    with pytest.raises(DeadlineError, match="not done by its deadline"):
        late.result()
    assert late.timings.generated_tokens == 0
    assert first.result().text == said([1], 100)


def test_a_deadline_ends_one_within_its_prompt(started: Any) -> None:
    engine, tower = started()
    slow(tower, 0.005)
    late = ask(engine, [5] * 3000, deadline=time.monotonic() + 0.03)
    with pytest.raises(DeadlineError):
        late.result()
    until(lambda: engine.stats().running == 0)
    assert 0 < engine.stats().prompt_tokens < 3000
    tower.refuses = lambda _batch: None
    again = ask(engine, [5] * 3000).result()
    assert again.timings.cached_tokens > 0, "what was prefilled stays"


def test_a_deadline_ends_an_answer_and_leaves_its_pieces(started: Any) -> None:
    engine, tower = started()
    slow(tower)
    late = ask(engine, [5], None, deadline=time.monotonic() + 0.1)
    other = ask(engine, [6], 100)
    pieces = []
    with pytest.raises(DeadlineError):
        pieces.extend(piece.text for piece in late)
    assert late.timings.generated_tokens > 0
    assert said([5], 10).startswith("".join(piece.text for piece in late.taken)[:10])
    assert other.result().text == said([6], 100)


def test_callers_take_turns_however_many_requests_one_has(started: Any) -> None:
    engine, tower = started(max_running=1)
    order: list[str] = []

    def noting(name: str) -> Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]:
        def processor(_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            order.append(name)
            return logits

        return processor

    greedy, modest = CacheOwner(), CacheOwner()
    tower.go.clear()
    running = [ask(engine, [number], 1, owner=greedy, logits_processor=noting("greedy")) for number in range(6)]
    running += [ask(engine, [20 + number], 1, owner=modest, logits_processor=noting("modest")) for number in range(2)]
    tower.go.set()
    for each in running:
        each.result()
    assert order.index("modest") <= 2
    assert order[:5].count("modest") == 2
    assert order.count("greedy") == 6


def test_who_cancels_is_released_while_the_engine_works_for_others(started: Any) -> None:
    engine, tower = started()
    prompts = distinct(3)
    running = [ask(engine, prompt, 200) for prompt in prompts]
    slow(tower)
    until(lambda: all(each.timings.generated_tokens for each in running))
    hold(tower)
    running[1].cancel()
    left = running[1].result()
    assert left.finish_reason == "cancelled"
    assert said(prompts[1], 200).startswith(left.text)
    assert tower.within.is_set(), "the engine is still within the decode for all three"
    before = len(tower.decoded)
    tower.refuses = lambda _batch: None
    tower.go.set()
    assert [running[at].result().text for at in (0, 2)] == [said(prompts[at], 200) for at in (0, 2)]
    assert {len(batch) for batch in tower.decoded[before + 1 :]} <= {1, 2}, "it is in no batch that began later"


def test_a_decode_that_is_mostly_for_who_cancels_is_stopped_and_done_again_for_the_others(started: Any) -> None:
    engine, tower = started()
    reached = threading.Event()

    def until_aborted(batch: Sequence[Rows]) -> None:
        if len(batch) == 2 and len(batch[1].tokens) >= 32:
            reached.set()
            until(lambda: tower._is_aborted)

    tower.go.clear()
    first = ask(engine, [5], 1)
    assert tower.within.wait(SECONDS)
    other, long = ask(engine, [2], 50), ask(engine, range(1000, 1400))
    tower.refuses = until_aborted
    tower.go.set()
    assert reached.wait(SECONDS)
    long.cancel()
    assert long.result().finish_reason == "cancelled"
    assert other.result().text == said([2], 50)
    assert first.result().text == said([5], 1)
    assert all(len(batch) == 1 for batch in tower.decoded), "what was stopped appended nothing"


def test_a_long_prompt_does_not_stall_those_that_are_answered(started: Any) -> None:
    engine, tower = started()
    slow(tower, 0.001)
    first = ask(engine, [1], 150)
    until(lambda: first.timings.generated_tokens > 2)
    began = len(tower.decoded)
    long = ask(engine, range(1000, 1600), 5)
    assert first.result().text == said([1], 150)
    sequence = next(iter(tower.decoded[began - 1]))
    both = [batch for batch in tower.decoded[began:] if len(batch) == 2]
    assert len(both) > 5
    assert all(batch[sequence] == 1 for batch in both), "a token for the answer in every step"
    assert long.result().text == said(range(1000, 1600), 5)


def test_a_prefix_that_two_have_is_prefilled_once(started: Any) -> None:
    engine, tower = started()
    system = list(range(500, 948))  # seven whole batches: the last few tokens, under 32, may be prefilled by each
    tower.go.clear()
    prompts = [[*system, number] for number in range(4)]
    running = [ask(engine, prompt) for prompt in prompts]
    tower.go.set()
    assert [each.result().text for each in running] == [said(prompt, 5) for prompt in prompts]
    assert engine.stats().prompt_tokens == len(system) + 4
    assert sorted(each.timings.cached_tokens for each in running) == [0, 448, 448, 448]


def test_the_same_prompt_asked_again_is_answered_from_its_last_logits(started: Any) -> None:
    engine, _tower = started()
    assert ask(engine, range(50), 1).result().text == said(range(50), 1)
    again = ask(engine, range(50), 1).result()
    assert (again.text, again.timings.cached_tokens) == (said(range(50), 1), 50)
    assert engine.stats().prompt_tokens == 50


def test_an_error_of_one_touches_no_other(started: Any) -> None:
    engine, tower = started()

    def refuses(batch: Sequence[Rows]) -> Exception | None:
        return EngineError("token 999 is odd") if any(999 in rows.tokens for rows in batch) else None

    def wrong(_ids: object, _logits: object) -> None:
        raise KeyError("no")

    tower.refuses = refuses
    tower.go.clear()
    good = [ask(engine, prompt, 40) for prompt in distinct(3)]
    bad = [ask(engine, [7, 999]), ask(engine, [8], logits_processor=wrong)]
    good.append(ask(engine, [9, 9], 40))
    tower.go.set()
    with pytest.raises(EngineError, match="999 is odd"):
        bad[0].result()
    with pytest.raises(OptionError, match="KeyError"):
        bad[1].result()
    assert [each.result().text for each in good] == [said(prompt, 40) for prompt in [*distinct(3), [9, 9]]]


@pytest.mark.parametrize("error", [EngineError("odd"), MemoryError("odd")])
def test_where_a_sequence_cannot_be_copied_only_what_was_in_it_is_lost(started: Any, error: Exception) -> None:
    engine, tower = started(CacheSize(400, 400, 4))

    def save(_sequence: int) -> None:
        raise error

    tower.save = save
    first, second = list(range(300)), list(range(1000, 1300))
    assert [ask(engine, prompt).result().text for prompt in (first, second)] == [said(first, 5), said(second, 5)]
    running = [ask(engine, prompt, 150) for prompt in distinct(4, 100)]
    first_of_them = running[0].result().text
    assert first_of_them == said(distinct(1, 100)[0], 150)
    for each, prompt in list(zip(running, distinct(4, 100), strict=True))[1:]:
        with suppress(EngineError):  # that its sequence can't leave the engine for a while
            assert each.result().text == said(prompt, 150)
    tower.save = type(tower).save.__get__(tower)
    assert ask(engine, first).result().text == said(first, 5)


def test_what_is_asked_while_it_is_closed_is_refused_or_cancelled() -> None:
    for _ in range(40):
        engine = letters.scheduler(Letters())
        closing = threading.Thread(target=engine.close)
        closing.start()
        asked: deque[Generation] = deque(maxlen=60)
        with pytest.raises(EngineError, match="closed"):
            asked.extend(ask(engine, [1], None) for _ in itertools.count())
        for each in asked:
            assert each.result().finish_reason == "cancelled"
        closing.join(SECONDS)


def test_closing_releases_all_callers(started: Any) -> None:
    engine, tower = started(max_running=3)
    slow(tower)
    running = [ask(engine, prompt, None) for prompt in distinct(20)]
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(each.result) for each in running]
        until(lambda: engine.stats().running == 3)
        engine.close()
        reasons = {future.result(SECONDS).finish_reason for future in waiting}
    assert reasons == {"cancelled"}
    with pytest.raises(EngineError, match="closed"):
        ask(engine, [1])
    with pytest.raises(EngineError, match="closed"):
        engine.call(lambda: None)


def test_a_call_comes_between_steps_and_one_alone_when_nothing_runs(started: Any) -> None:
    engine, tower = started()
    slow(tower)
    first = ask(engine, [1], 40)
    until(lambda: first.timings.generated_tokens)
    assert engine.call(lambda: engine.stats().running) == 1
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(
            engine.call, lambda: (engine.stats().running, first.timings.generated_tokens), is_alone=True
        )
        until(lambda: engine._calls or alone.done())
        later = ask(engine, [2], 5)
        assert alone.result(SECONDS) == (0, 40), "it waited for the first, and the next for it"
    assert later.result().text == said([2], 5)


def test_what_a_call_raises_is_its_callers(started: Any) -> None:
    engine, _tower = started()
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0)
    assert ask(engine, [1]).result().text == said([1], 5)


@pytest.mark.parametrize("room", [0, 10**9])
def test_without_cells_for_all_some_wait_or_leave_and_come_back(started: Any, room: int) -> None:
    """Each may use the whole context."""
    engine, tower = started(CacheSize(400, 400, 16), room=lambda _used: room)
    prompts = [[number, *range(100 * number, 100 * number + 90)] for number in range(8)]
    running = [ask(engine, prompt, 100) for prompt in prompts]
    whole = ask(engine, [9, 9], None)
    assert [each.result().text for each in running] == [said(prompt, 100) for prompt in prompts]
    answer = whole.result()
    assert (answer.text, answer.finish_reason) == (said([9, 9], 399), "length")
    assert tower.loads > 0


def test_deterministic_work_has_the_same_shapes_whatever_was_there_before(started: Any) -> None:
    prompt = list(range(200))

    def shapes(before: Sequence[Sequence[int]]) -> tuple[list[int], int]:
        engine, tower = started(is_deterministic=True)
        for each in before:
            ask(engine, each, 3).result()
        tower.decoded.clear()
        answer = ask(engine, prompt, 3).result()
        assert answer.text == said(prompt, 3)
        return [count for batch in tower.decoded for count in batch.values()], answer.timings.cached_tokens

    assert shapes([]) == ([64, 64, 64, 8, 1, 1], 0)
    assert shapes([prompt[:100]]) == ([64, 64, 8, 1, 1], 64)
    assert shapes([[*prompt, 5, 6]]) == ([8, 1, 1], 192)
    assert shapes([prompt[:63], [9]]) == ([64, 64, 64, 8, 1, 1], 0)


def test_stats_count_what_is_done(started: Any) -> None:
    engine, tower = started(max_running=1)
    tower.go.clear()
    running = [ask(engine, prompt, 10) for prompt in distinct(3)]
    until(lambda: engine.stats().running == 1)
    assert (engine.stats().queued, engine.stats().cells) == (2, 4096)
    tower.go.set()
    for each in running:
        each.result()
    until(lambda: engine.stats().running == 0)
    stats = engine.stats()
    assert (stats.queued, stats.prompt_tokens, stats.generated_tokens) == (0, 3 * 21, 3 * 9)
    assert stats.used_cells == engine.call(lambda: tower.used_cells) > 0
    assert stats.seconds > 0


def test_its_pace_is_told_about_every_decode() -> None:
    told: list[tuple[int, bool]] = []

    class Telling(Pace):
        def after(self, seconds: float, cpu_seconds: float, count: int, *, is_decode: bool) -> int:
            assert seconds > 0
            assert cpu_seconds >= 0
            told.append((count, is_decode))
            return 1

    engine = letters.scheduler(Letters(), pace=Telling(2))
    ask(engine, range(100), 3).result()
    engine.close()
    assert told == [(64, False), (36, False), (1, True), (1, True)]


class Encoder:
    """What embeds images: nothing is there to be embedded, but it can be held and stopped."""

    def __init__(self) -> None:
        self.encoded = self.kept_bytes = 0
        self.go = threading.Event()
        self.go.set()
        self.within = threading.Event()
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True
        self.go.set()

    def resume(self) -> None:
        self.is_aborted = False

    def close(self) -> None: ...


class Pictures:
    """Embeddings that are the ids they stand for."""

    def __init__(self, encoder: Encoder, prompt: Sequence[int], error: Exception | None = None) -> None:
        self.encoder = encoder
        self.prompt = prompt
        self.error = error
        self.asked: list[tuple[int, int]] = []

    def embed(self, start: int, stop: int) -> NDArray[np.float32]:
        self.asked.append((start, stop))
        self.encoder.within.set()
        assert self.encoder.go.wait(SECONDS)
        if self.error:
            raise self.error
        self.encoder.encoded += 1
        return np.array(self.prompt[start:stop], np.float32)[:, None]


PICTURE = [3, 4, *range(-140, -40), 5, *range(-30, -20), 6]


def look(engine: Scheduler, pictures: Pictures) -> Generation:
    params = SamplingParams(temperature=0, max_tokens=5)
    return generate(engine, pictures.prompt, params, image_embeddings=pictures)  # type: ignore[arg-type]


def test_embeddings_stand_where_their_ids_do_and_are_asked_for_by_tiles(started: Any) -> None:
    encoder = Encoder()
    engine, _tower = started(encoder=encoder)
    pictures = Pictures(encoder, PICTURE)
    answer = look(engine, pictures).result()
    assert answer.text == said(PICTURE, 5)
    assert pictures.asked == [(2, 102), (103, 113)]
    assert answer.timings.tiles == 2
    assert look(engine, pictures).result().text == said(PICTURE, 5)
    assert len(pictures.asked) == 2, "they are in the cache"


def test_while_an_image_is_embedded_others_are_answered(started: Any) -> None:
    encoder = Encoder()
    engine, _tower = started(encoder=encoder)
    encoder.go.clear()
    pictures = Pictures(encoder, PICTURE)
    looking = look(engine, pictures)
    assert encoder.within.wait(SECONDS)
    assert ask(engine, [1, 2], 50).result().text == said([1, 2], 50)
    encoder.go.set()
    assert looking.result().text == said(PICTURE, 5)


def test_who_has_just_had_a_first_token_waits_for_no_picture(started: Any) -> None:
    """A step that was planned when nobody was answered has room for much of a picture: it isn't taken after all."""
    encoder = Encoder()
    engine, tower = started(encoder=encoder)
    encoder.go.clear()
    looking = look(engine, Pictures(encoder, PICTURE))
    assert encoder.within.wait(SECONDS)
    tower.go.clear()
    other = ask(engine, [9, 9, 9], 1)
    assert tower.within.wait(SECONDS)
    encoder.go.set()
    until(lambda: encoder.encoded == 1)
    answered = ask(engine, [1, 2], 3)
    tower.go.set()
    assert [answered.result().text, other.result().text] == [said([1, 2], 3), said([9, 9, 9], 1)]
    assert looking.result().text == said(PICTURE, 5)
    first = next(at for at, batch in enumerate(tower.decoded) if at and list(batch.values()) == [2])
    (sequence,) = tower.decoded[first]
    assert tower.decoded[first + 1][sequence] == 1, "its second token comes in the next decode"


def test_who_cancels_within_an_image_is_released_and_the_next_one_is_embedded(started: Any) -> None:
    encoder = Encoder()
    engine, _tower = started(encoder=encoder)
    encoder.go.clear()
    looking = look(engine, Pictures(encoder, PICTURE))
    assert encoder.within.wait(SECONDS)
    looking.cancel()
    assert looking.result().finish_reason == "cancelled"
    assert encoder.is_aborted
    encoder.go.set()
    assert look(engine, Pictures(encoder, PICTURE)).result().text == said(PICTURE, 5)


def test_an_image_that_fails_is_its_own_requests_error(started: Any) -> None:
    encoder = Encoder()
    engine, _tower = started(encoder=encoder)
    bad = look(engine, Pictures(encoder, PICTURE, EngineError("the tower failed")))
    other = ask(engine, [1, 2], 50)
    with pytest.raises(EngineError, match="the tower failed"):
        bad.result()
    assert other.result().text == said([1, 2], 50)


@pytest.mark.parametrize("n_cells", [200, 600, 4096])
def test_callers_that_come_and_go_get_the_answers_they_would_get_alone(started: Any, n_cells: int, seed: int) -> None:
    engine, _tower = started(CacheSize(200, n_cells, 8), max_running=4, room=lambda _used: 5000)
    systems = [list(range(first, first + 60)) for first in (300, 400, 500)]

    def live(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        for _ in range(12):
            length = int(rng.integers(1, 60))
            prompt = [*systems[int(rng.integers(3))], *rng.integers(0, 2, int(rng.integers(1, 40))).tolist()]
            running = ask(engine, prompt, length)
            match rng.integers(4):
                case 0:
                    running.cancel()
                    assert said(prompt, length).startswith(running.result().text)
                case 1:
                    next(running)
                    running.close()
                    assert said(prompt, length).startswith(running.result().text)
                case _:
                    assert running.result().text == said(prompt, length)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(live, number) for number in range(8)]:
            future.result(60)
    until(lambda: engine.stats().running == engine.stats().queued == 0)

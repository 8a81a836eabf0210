"""The engine's thread outlives whatever fails, and nobody waits for it in vain. A tower without weights is enough."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import forks
import letters
import pytest
from letters import Letters

from edge_llama.backends.base import CacheSize
from edge_llama.errors import EngineError, OptionError
from edge_llama.generation import Generation, generate
from edge_llama.runtime import inbox
from edge_llama.runtime.scheduler import Scheduler
from edge_llama.sampling.params import SamplingParams

SECONDS = 20
PROMPT = tuple(range(40))
"""So long that a decode of it is worth stopping."""


@pytest.fixture
def tower() -> Letters:
    return Letters()


@pytest.fixture
def engine(tower: Letters) -> Iterator[Scheduler]:
    engine = letters.scheduler(tower)
    yield engine
    tower.go.set()
    engine.close()


def in_time(work: Callable[[], Any]) -> Any:
    """What ``work`` gives in a thread of its own; TimeoutError rather than a test that hangs."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((work(), None))
        except BaseException as error:
            results.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not results:
        raise TimeoutError
    value, error = results[0]
    if error:
        raise error
    return value


def generation(engine: Scheduler, **params: Any) -> Generation:
    return generate(engine, PROMPT, SamplingParams(**{"max_tokens": 5, "temperature": 0, **params}))


def held_within_decode(engine: Scheduler, tower: Letters, **params: Any) -> Generation:
    """An answer whose prompt is being decoded, until ``go`` is set."""
    tower.go.clear()
    first = generation(engine, **params)
    assert tower.within.wait(SECONDS)
    return first


def test_cancelling_while_the_same_thread_is_within_the_engine_does_not_hang(engine: Scheduler, tower: Letters) -> None:
    """As the garbage collector and signal handlers do."""
    first = held_within_decode(engine, tower)
    second = generation(engine)
    tower.within_abort = second.cancel
    in_time(first.cancel)
    assert in_time(first.result).finish_reason == "cancelled"
    assert in_time(second.result).finish_reason == "cancelled"


def test_closing_while_the_same_thread_is_within_the_engine_does_not_hang(engine: Scheduler, tower: Letters) -> None:
    first = held_within_decode(engine, tower)
    tower.within_abort = engine.close
    in_time(first.cancel)
    in_time(engine.close)
    assert not engine._thread.is_alive()


@pytest.mark.parametrize("bad", [lambda: 1 / 0, lambda: 0])
def test_a_choice_of_threads_that_fails_is_the_answers_error(engine: Scheduler, bad: Callable[[], int]) -> None:
    engine._choose_threads = bad
    with pytest.raises(EngineError, match=r"no threads|division by zero"):
        in_time(generation(engine).result)
    engine._choose_threads = lambda: 1
    assert in_time(generation(engine).result).text == letters.said(PROMPT, 5)


@pytest.mark.parametrize("raised", [SystemExit("gone"), RuntimeError("gone")])
def test_work_that_fails_is_an_error_and_the_next_is_done(
    engine: Scheduler, tower: Letters, raised: BaseException
) -> None:
    def fail() -> None:
        raise raised

    with pytest.raises(type(raised), match="gone"):
        engine.call(fail)
    tower.refuses = lambda _batch: raised
    with pytest.raises(EngineError, match="gone"):
        in_time(generation(engine).result)
    tower.refuses = lambda _batch: None
    assert in_time(generation(engine).result).text == letters.said(PROMPT, 5)


@pytest.mark.parametrize(("raised", "kind"), [(OptionError("odd"), OptionError), (RuntimeError("odd"), EngineError)])
def test_an_error_is_raised_each_time_that_the_result_is_asked_for(
    engine: Scheduler, tower: Letters, raised: Exception, kind: type[Exception]
) -> None:
    tower.refuses = lambda _batch: raised
    failed = generation(engine)
    with pytest.raises(kind, match="odd") as first:
        in_time(failed.result)
    with pytest.raises(kind, match="odd") as second:
        in_time(failed.result)
    assert first.value is second.value
    failed.close()


def test_threads_that_ask_for_one_result_get_the_same(engine: Scheduler, tower: Letters) -> None:
    shared = held_within_decode(engine, tower, max_tokens=200)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(shared.result) for _ in range(4)]
        tower.go.set()
        texts = [future.result(SECONDS).text for future in waiting]
    assert texts == [letters.said(PROMPT, 200)] * 4


def test_closing_from_another_thread_ends_an_iteration() -> None:
    engine = letters.scheduler(Letters(CacheSize(10**6, 10**6, 8)))  # no answer comes to its end by itself
    for _ in range(30):
        shared = generation(engine, max_tokens=None)
        iterating = threading.Thread(target=list, args=(shared,), daemon=True)
        iterating.start()
        in_time(shared.close)
        iterating.join(SECONDS)
        assert not iterating.is_alive()
        assert shared.result().finish_reason == "cancelled"
    engine.close()


def test_a_finish_is_told_once(engine: Scheduler) -> None:
    told: list[str] = []
    params = SamplingParams(max_tokens=3, temperature=0)
    for _ in range(50):
        shared = generate(engine, [1], params, on_finish=lambda answer: told.append(answer.text))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda work: work(), [shared.result, shared.result]))
    assert told == [letters.said([1], 3)] * 50


@pytest.mark.parametrize("error", [None, EngineError("odd")])
def test_a_finished_generation_keeps_nothing_alive(engine: Scheduler, tower: Letters, error: Exception | None) -> None:
    class Owner: ...

    owner = Owner()
    freed = weakref.ref(owner)
    tower.refuses = lambda _batch: error
    params = SamplingParams(max_tokens=3)
    done = generate(engine, [1], params, on_finish=lambda answer, owner=owner: None, keep_alive=owner)
    del owner
    assert freed() is not None
    with pytest.raises(EngineError) if error else nullcontext():
        done.result()
    assert freed() is None


FORKED = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
import edge_llama
model = edge_llama.open(sys.argv[1], n_ctx=256)
running = model.generate("Once upon a time", temperature=0)
chat = model.chat()
next(running)
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_process_gets_an_error(packaged: Path) -> None:
    assert (
        subprocess.run(
            [sys.executable, "-c", FORKED + forks.IN_THE_FORK, packaged], check=False, timeout=120
        ).returncode
        == 0
    )


def test_a_dropped_generation_is_freed_without_the_collector_and_stops(engine: Scheduler) -> None:
    gc.disable()
    try:
        dropped = generation(engine, max_tokens=None)
        next(dropped)
        work = dropped._work
        del dropped
        assert work.is_cancelled
    finally:
        gc.enable()


def test_who_comes_first_waits_a_moment_for_those_who_are_about_to(
    engine: Scheduler, tower: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "GATHER", SECONDS)

    def ask(number: int) -> Generation:
        return generate(engine, [number, *PROMPT], SamplingParams(max_tokens=2, temperature=0))

    with engine.preparing():
        first = ask(1)
        with engine.preparing():
            second = ask(2)
        assert not tower.decoded, "the first still waits"
    assert [in_time(each.result).text for each in (first, second)] == [letters.said([n, *PROMPT], 2) for n in (1, 2)]
    assert len(tower.decoded[0]) == 2, "they begin together"
    monkeypatch.undo()
    with engine.preparing():
        assert in_time(ask(3).result).text == letters.said([3, *PROMPT], 2), "but nobody waits for long"
    assert not engine._inbox._preparing


def test_a_watch_that_fails_harms_nobody(engine: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    watched, other = generation(engine, max_tokens=50), generation(engine, max_tokens=50)
    watched.watch(lambda: 1 / 0)
    texts = [in_time(each.result).text for each in (watched, other)]
    assert texts == [letters.said(PROMPT, 50)] * 2
    assert "what watches an answer failed: division by zero" in caplog.text
    assert caplog.text.count("what watches") == 1


def test_what_is_idle_is_tidied_up_at_rest(tower: Letters) -> None:
    engine = Scheduler(tower, lambda: 1, lambda _used: 10**9)
    for number in range(3):
        prompt = [number, *range(25)] * 12
        in_time(generate(engine, prompt, SamplingParams(max_tokens=1, temperature=0)).result)
    deadline = time.monotonic() + SECONDS
    while len(engine.cache.copies.states) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(engine.cache.copies.states) == 2, "but for the last"
    assert tower.used_cells == 312
    engine.close()

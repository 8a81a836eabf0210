"""The engine's thread outlives whatever fails, and nobody waits for it in vain. A tower without weights is enough."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_llama.backends.base import AbortedError
from edge_llama.errors import EdgeLlamaError, EngineError, OptionError
from edge_llama.generation import Generation, generate
from edge_llama.runtime.scheduler import Engine, Job
from edge_llama.sampling.params import SamplingParams

SECONDS = 20


class Letters:
    """A tower that says "a" for ever; ``go`` cleared holds it within decode."""

    n_ctx, n_batch, length = 10_000, 512, 10_000

    def __init__(self) -> None:
        self.tokenizer: Any = self
        self.length = 0
        self.is_aborted = False
        self.error: Exception | None = None
        self.go = threading.Event()
        self.go.set()
        self.within_abort: Callable[[], None] = lambda: None
        """Called once, while the engine's lock is held."""

    def is_end(self, token: int) -> bool:
        return False

    def piece(self, token: int) -> bytes:
        return b"a"

    def decode(self, tokens: Sequence[int]) -> None:
        while not self.go.wait(0.001):
            if self.is_aborted:
                raise AbortedError
        if self.error:
            raise self.error
        if self.is_aborted:
            raise AbortedError
        self.length += len(tokens)

    def sampler(self, params: object, history: object) -> "Letters":
        return self

    def sample(self) -> int:
        return 1

    def logits_view(self) -> NDArray[np.float32]:
        raise AssertionError("nothing here looks at logits")

    def rewind(self, length: int) -> None:
        self.length = length

    def use_threads(self, count: int) -> None:
        if count < 1:
            raise ValueError("no threads")

    def abort(self) -> None:
        self.is_aborted = True
        within, self.within_abort = self.within_abort, lambda: None
        within()

    def resume(self) -> None:
        self.is_aborted = False

    def close(self) -> None: ...


@pytest.fixture
def tower() -> Letters:
    return Letters()


@pytest.fixture
def engine(tower: Letters) -> Engine:
    return Engine(tower, lambda: 1)  # type: ignore[arg-type]


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


def generation(engine: Engine, **params: Any) -> Generation:
    return generate(engine, [1, 2], SamplingParams(**{"max_tokens": 5, **params}))


def test_cancelling_while_the_same_thread_is_within_the_engine_does_not_hang(engine: Engine, tower: Letters) -> None:
    """As the garbage collector and signal handlers do."""
    tower.go.clear()
    first, second = generation(engine), generation(engine)
    while engine._current is not first._job:
        pass
    tower.within_abort = second.cancel
    in_time(first.cancel)
    assert in_time(first.result).finish_reason == "cancelled"
    assert in_time(second.result).finish_reason == "cancelled"


def test_closing_while_the_same_thread_is_within_the_engine_does_not_hang(engine: Engine, tower: Letters) -> None:
    tower.go.clear()
    first = generation(engine)
    while engine._current is not first._job:
        pass
    tower.within_abort = engine.close
    in_time(first.cancel)
    in_time(engine.close)
    assert not engine._thread.is_alive()


@pytest.mark.parametrize("bad", [lambda: 1 / 0, lambda: 0])
def test_a_choice_of_threads_that_fails_is_the_answers_error(engine: Engine, bad: Callable[[], int]) -> None:
    engine._choose_threads = bad
    with pytest.raises(EngineError, match=r"no threads|division by zero"):
        in_time(generation(engine).result)
    engine._choose_threads = lambda: 1
    assert in_time(generation(engine).result).text == "aaaaa"


def test_work_that_fails_is_an_error_and_the_next_is_done(engine: Engine) -> None:
    def fail(_job: Job) -> None:
        raise SystemExit("gone")

    errors: list[EdgeLlamaError] = []
    engine.submit(fail, on_error=errors.append)
    engine.submit(fail)
    assert in_time(generation(engine).result).text == "aaaaa"
    assert [type(error) for error in errors] == [EngineError]
    assert "gone" in str(errors[0])


@pytest.mark.parametrize(("raised", "kind"), [(OptionError("odd"), OptionError), (RuntimeError("odd"), EngineError)])
def test_an_error_is_raised_each_time_that_the_result_is_asked_for(
    engine: Engine, tower: Letters, raised: Exception, kind: type[Exception]
) -> None:
    tower.error = raised
    failed = generation(engine)
    with pytest.raises(kind, match="odd") as first:
        in_time(failed.result)
    with pytest.raises(kind, match="odd") as second:
        in_time(failed.result)
    assert first.value is second.value
    failed.close()


def test_threads_that_ask_for_one_result_get_the_same(engine: Engine, tower: Letters) -> None:
    tower.go.clear()
    shared = generation(engine, max_tokens=200)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(shared.result) for _ in range(4)]
        tower.go.set()
        texts = [future.result(SECONDS).text for future in waiting]
    assert texts == ["a" * 200] * 4


def test_closing_from_another_thread_ends_an_iteration(engine: Engine, tower: Letters) -> None:
    for _ in range(30):
        shared = generation(engine, max_tokens=None)
        iterating = threading.Thread(target=list, args=(shared,), daemon=True)
        iterating.start()
        in_time(shared.close)
        iterating.join(SECONDS)
        assert not iterating.is_alive()
        assert shared.result().finish_reason == "cancelled"


def test_a_finish_is_told_once(engine: Engine) -> None:
    told: list[str] = []
    for _ in range(50):
        shared = generate(engine, [1], SamplingParams(max_tokens=3), on_finish=lambda answer: told.append(answer.text))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda work: work(), [shared.result, shared.result]))
    assert told == ["aaa"] * 50


@pytest.mark.parametrize("error", [None, EngineError("odd")])
def test_a_finished_generation_keeps_nothing_alive(engine: Engine, tower: Letters, error: Exception | None) -> None:
    class Owner: ...

    owner = Owner()
    freed = weakref.ref(owner)
    tower.error = error
    done = generate(
        engine, [1], SamplingParams(max_tokens=3), on_finish=lambda answer, owner=owner: None, keep_alive=owner
    )
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
for use in (lambda: model.generate("x"), lambda: chat.send("x"), running.result, lambda: next(running)):
    try:
        use()
    except edge_llama.EngineError as error:
        assert "fork" in str(error), error
    else:
        os._exit(3)
running.cancel()
del running
model.close()
sys.exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_process_gets_an_error(packaged: Path) -> None:
    assert subprocess.run([sys.executable, "-c", FORKED, packaged], check=False, timeout=120).returncode == 0


def test_a_dropped_generation_is_freed_without_the_collector_and_stops(engine: Engine) -> None:
    gc.disable()
    try:
        dropped = generation(engine, max_tokens=None)
        next(dropped)
        job = dropped._job
        del dropped
        assert job.is_cancelled
    finally:
        gc.enable()

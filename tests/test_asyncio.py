"""Answers in an event loop: pieces and results as elsewhere, cancelled with their tasks, no thread for each."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import letters
import pytest
from letters import Letters, said

import edge_llama
from edge_llama.errors import EngineError
from edge_llama.generation import Generation, generate
from edge_llama.runtime.scheduler import Scheduler
from edge_llama.sampling.params import SamplingParams

SECONDS = 20
PROMPT = (3, 1, 4)


@pytest.fixture
def tower() -> Letters:
    return Letters()


@pytest.fixture
def engine(tower: Letters) -> Iterator[Scheduler]:
    engine = letters.scheduler(tower)
    yield engine
    tower.go.set()
    engine.close()


def ask(engine: Scheduler, prompt: tuple[int, ...] = PROMPT, max_tokens: int | None = 20) -> Generation:
    return generate(engine, prompt, SamplingParams(temperature=0, max_tokens=max_tokens))


def until_idle(engine: Scheduler) -> None:
    end = time.monotonic() + SECONDS
    while engine.stats().running or engine.stats().queued:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_pieces_come_as_they_do_in_a_thread(engine: Scheduler) -> None:
    async def pieces() -> list[str]:
        return [piece.text async for piece in ask(engine)]

    assert asyncio.run(pieces()) == [piece.text for piece in ask(engine)]


def test_awaiting_gives_the_whole_answer_and_again(engine: Scheduler) -> None:
    async def twice() -> tuple[str, str]:
        running = ask(engine)
        return (await running).text, (await running).text

    assert asyncio.run(twice()) == (said(PROMPT, 20),) * 2


def test_the_rest_can_be_awaited_after_some_pieces(engine: Scheduler) -> None:
    async def some() -> tuple[str, str]:
        running = ask(engine)
        first = await anext(running)
        return first.text, (await running).text

    first, whole = asyncio.run(some())
    assert whole == said(PROMPT, 20)
    assert whole.startswith(first)


def test_the_end_is_told_once_and_where_it_is_taken(engine: Scheduler) -> None:
    told: list[str] = []

    async def take() -> None:
        params = SamplingParams(temperature=0, max_tokens=5)
        running = generate(engine, PROMPT, params, on_finish=lambda answer: told.append(answer.text))
        async for _ in running:
            pass
        await running

    asyncio.run(take())
    assert told == [said(PROMPT, 5)]


def test_an_error_is_raised_where_it_is_awaited(engine: Scheduler, tower: Letters) -> None:
    tower.refuses = lambda _batch: EngineError("odd")

    async def await_it() -> None:
        await ask(engine)

    async def iterate() -> None:
        async for _ in ask(engine):
            pass

    for use in (await_it, iterate):
        with pytest.raises(EngineError, match="odd"):
            asyncio.run(use())


@pytest.mark.parametrize("way", ["await", "async for"])
def test_the_work_ends_with_the_task_that_waits_for_it(engine: Scheduler, tower: Letters, way: str) -> None:
    running = ask(engine, max_tokens=None)
    tower.go.clear()

    async def wait() -> None:
        if way == "await":
            await running
        async for _ in running:
            pass

    async def cancel_it() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.02)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert running.is_cancelled

    asyncio.run(cancel_it())
    assert running.result().finish_reason == "cancelled"
    tower.go.set()
    until_idle(engine)


def test_a_timeout_ends_the_work_too(engine: Scheduler, tower: Letters) -> None:
    tower.go.clear()

    async def wait() -> None:
        async with asyncio.timeout(0.02):
            await ask(engine)

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    tower.go.set()
    until_idle(engine)
    assert ask(engine).result().text == said(PROMPT, 20)


def test_many_tasks_need_no_threads(engine: Scheduler, tower: Letters) -> None:
    prompts = [(number, 7) for number in range(60)]

    async def all_of_them() -> tuple[list[str], int]:
        tower.go.clear()
        tasks = [asyncio.create_task(text(prompt)) for prompt in prompts]
        await asyncio.sleep(0.02)
        threads = threading.active_count()
        tower.go.set()
        return await asyncio.gather(*tasks), threads

    async def text(prompt: tuple[int, ...]) -> str:
        return "".join([piece.text async for piece in ask(engine, prompt)])

    before = threading.active_count()
    texts, threads = asyncio.run(all_of_them())
    assert texts == [said(prompt, 20) for prompt in prompts]
    assert threads == before


def test_the_loop_goes_on_while_an_answer_is_generated(engine: Scheduler, tower: Letters) -> None:
    tower.go.clear()

    async def both() -> str:
        running = asyncio.ensure_future(text())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not running.done()
        tower.go.set()
        return await running

    async def text() -> str:
        return (await ask(engine)).text

    assert asyncio.run(both()) == said(PROMPT, 20)


def test_a_loop_that_is_closed_before_the_end_leaves_the_engine_in_order(engine: Scheduler, tower: Letters) -> None:
    tower.go.clear()
    running = ask(engine)

    async def wait() -> None:
        await running

    loop = asyncio.new_event_loop()
    waiting = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not waiting.done()
    loop.close()  # as a program that ends does
    tower.go.set()
    assert running.result().text == said(PROMPT, 20)
    assert ask(engine).result().text == said(PROMPT, 20)
    waiting._log_destroy_pending = False  # type: ignore[attr-defined] # of the task that was left


def test_tasks_may_share_one_generation(engine: Scheduler) -> None:
    async def shared() -> tuple[list[str], str]:
        running = ask(engine)
        taken: list[str] = []

        async def take() -> None:
            taken.extend([piece.text async for piece in running])

        await asyncio.gather(take(), take(), take())
        return taken, (await running).text

    taken, whole = asyncio.run(shared())
    assert whole == said(PROMPT, 20)
    assert sorted("".join(taken)) == sorted(whole), "each piece was given to one of them"


def test_one_that_is_dropped_stops(engine: Scheduler) -> None:
    async def drop() -> None:
        running = ask(engine, max_tokens=None)
        await anext(running)
        del running
        gc.collect()

    asyncio.run(drop())
    until_idle(engine)
    assert engine.stats().generated_tokens < 4000


def test_a_chat_is_settled_by_async_for(model: edge_llama.Model) -> None:
    chat = model.chat(temperature=0, max_tokens=4)

    async def talk() -> str:
        return "".join([piece.text async for piece in chat.send("Hello")])

    text = asyncio.run(talk())
    assert [message.content for message in chat.messages] == ["Hello", text]
    assert asyncio.run(talk())
    assert len(chat.messages) == 4


def test_importing_the_library_does_not_import_asyncio() -> None:
    script = "import sys, edge_llama; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0

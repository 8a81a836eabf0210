"""Several models: found by name, loaded when asked for, unloaded for others; what fails leaves the rest usable."""

import asyncio
import os
import shutil
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from ggufs import rewritten
from model_stores import environment
from refusals import refusal
from serving import serve

from edge_llama.backends.base import Setting
from edge_llama.backends.registry import engine_of, open_artifact
from edge_llama.errors import ArtifactError, EngineDiedError, OptionError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import Value, ValueType
from edge_llama.isolation.remote import IsolatedModel
from edge_llama.model import Model
from edge_llama.planning.options import OpenOptions
from edge_llama.planning.plan import MAX_RUNNING, cache_size
from edge_llama.prompts.messages import Message
from edge_llama.server.entries import entries
from edge_llama.server.failures import ApiError
from edge_llama.server.pool import Pool
from edge_llama.server.room import needed

N_CTX = 256
OPTIONS: OpenOptions = {"n_ctx": N_CTX, "threads": 1}
_T = TypeVar("_T")


@pytest.fixture
def folder(small_talk: Path, tmp_path: Path) -> Path:
    """A folder with three models, ``a``, ``b`` and ``c``, of one size."""
    for name in "abc":
        shutil.copyfile(small_talk, tmp_path / f"{name}.gguf")
    return tmp_path


@pytest.fixture
def size(small_talk: Path) -> int:
    """What one of them takes."""
    need = needed(small_talk, OPTIONS, [], None)
    assert need
    return need.nbytes


def run(pool: Pool, use: Callable[[], Awaitable[_T]]) -> _T:
    """What ``use`` gives in an event loop; the pool is closed at its end."""

    async def used() -> _T:
        try:
            return await asyncio.wait_for(use(), 60)
        finally:
            await pool.close()

    return asyncio.run(used())


async def ask(pool: Pool, name: str) -> str:
    async with pool.lease(name) as lease:
        return (await lease.model.answer([Message("user", "Hi!")], max_tokens=3, temperature=0)).text


# Names.


def test_a_file_is_called_as_it_is_a_folder_of_one_model_too(folder: Path, small_talk: Path) -> None:
    alone = folder / "alone"
    alone.mkdir()
    os.link(folder / "a.gguf", alone / "talk-00001-of-00001.gguf")
    found = entries([str(small_talk), str(alone)], {})
    assert [(entry.name, entry.path) for entry in found] == [
        ("small_talk", small_talk),
        ("alone", alone),
    ]


def test_a_folder_of_models_has_each_of_them(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copyfile(folder / "a.gguf", folder / "deep" / "er" / "x.gguf")
    names = [entry.name for entry in entries([str(folder), str(folder / "b.gguf")], {})]
    assert names == ["a", "b", "c", "deep/er"]


def test_names_that_the_list_of_models_shows_are_taken_as_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EDGE_LLAMA_MODELS", str(folder))
    (entry,) = entries(["b"], {"gpt-9": None})
    assert (entry.name, entry.path, entry.aliases) == ("b", folder / "b.gguf", ("gpt-9",))


def test_without_a_model_it_is_the_default_one(packaged: Path) -> None:
    assert [entry.name for entry in entries([], {})] == ["smollm2"]


def test_names_are_unique(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name / "x").mkdir(parents=True)
        shutil.copyfile(folder / "a.gguf", folder / name / "x" / "a.gguf")
    given = [str(folder / "a.gguf"), *(str(folder / name / "x" / "a.gguf") for name in ("one", "two"))]
    assert [entry.name for entry in entries(given, {})] == ["a", "x/a", "a@2"]


def test_a_model_that_is_given_again_has_both_names(folder: Path) -> None:
    (folder / "same.gguf").symlink_to(folder / "a.gguf")
    given = [str(folder / f"{name}.gguf") for name in ("a", "same", "b", "b")]
    found = entries(given, {})
    assert [(entry.name, entry.aliases) for entry in found] == [("a", ("same",)), ("b", ())]


def test_aliases_are_names_of_the_first_or_of_the_one_they_name(folder: Path) -> None:
    pool = Pool([str(folder)], aliases={"gpt-9": None, "small": "c", "tiny": "c"})
    assert pool.entry("gpt-9").name == "a"
    assert pool.entry("small") == pool.entry("tiny") == pool.entry("c")
    assert pool.entry("c").aliases == ("small", "tiny")


def test_an_unknown_name_is_told_with_those_that_are_there(folder: Path) -> None:
    with pytest.raises(ApiError, match=r"no model 'd': there are a, b, c$") as caught:
        Pool([str(folder)]).entry("d")
    assert (caught.value.status, caught.value.param) == (404, "model")


def test_what_is_no_model_is_refused_at_the_start(folder: Path, llama3: Path) -> None:
    with refusal(ArtifactError, "no such file or folder"):
        entries([str(folder / "d.gguf")], {})
    with refusal(ArtifactError, "a checkpoint: convert it first"):
        entries([str(llama3)], {})
    with refusal(OptionError, r"alias x: there is no model 'd'.*there are a, b, c"):
        entries([str(folder)], {"x": "d"})
    with refusal(OptionError, "alias b: a model has that name"):
        entries([str(folder)], {"b": "a"})


# Loading and unloading.


def test_who_starts_the_server_gets_the_error_itself(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(b"GGUF")
    pool = Pool([str(folder)], OPTIONS, isolate=False)

    async def use() -> None:
        with refusal(ArtifactError, r"a\.gguf"):
            await pool.load("a")
        model = await pool.load("b")
        assert pool.loaded == {"b": model}

    run(pool, use)


def test_nothing_is_loaded_until_asked_for_and_then_once_for_all(folder: Path) -> None:
    pool = Pool([str(folder)], OPTIONS, aliases={"x": "b"}, isolate=False)

    async def use() -> None:
        async with pool.lease("b") as one, pool.lease("x") as other:
            assert one.model is other.model
            assert one.name == other.name == "b"
        assert pool.loaded == {"b": one.model}

        async def leased() -> int:
            async with pool.lease("c") as lease:
                return id(lease.model)

        assert pool.loaded.keys() == {"b"}
        assert len(set(await asyncio.gather(leased(), leased(), leased()))) == 1

    assert not pool.loaded
    run(pool, use)
    assert not pool.loaded


def test_what_nobody_has_used_for_longest_is_unloaded_for_another(folder: Path, size: int) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False, memory=2 * size)

    async def use() -> list[set[str]]:
        loaded = []
        for name in "abacab":
            await ask(pool, name)
            loaded.append(set(pool.loaded))
        return loaded

    assert run(pool, use) == [{"a"}, {"a", "b"}, {"a", "b"}, {"a", "c"}, {"a", "c"}, {"a", "b"}]


def test_one_in_use_is_waited_for(folder: Path, size: int) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False, memory=size)

    async def use() -> None:
        async with pool.lease("a") as lease:
            waiting = asyncio.create_task(ask(pool, "b"))
            assert await ask(pool, "a")
            await asyncio.sleep(0.05)
            assert pool.loaded == {"a": lease.model}
            assert not waiting.done()
        assert await waiting
        assert pool.loaded.keys() == {"b"}

    run(pool, use)


def test_none_is_unloaded_for_one_that_does_not_fit_beside_those_in_use(folder: Path, size: int) -> None:
    large = needed(rewritten(folder / "c.gguf", folder / "d.gguf", formats=lambda _: FORMATS["f32"]), OPTIONS, [], None)
    assert large
    pool = Pool([str(folder)], OPTIONS, isolate=False, memory=large.nbytes + size - 1, patience=0.05)

    async def use() -> None:
        await ask(pool, "b")
        async with pool.lease("a"):
            with pytest.raises(ApiError, match="d does not fit beside a, in use for"):
                await ask(pool, "d")
            assert pool.loaded.keys() == {"a", "b"}
        assert await ask(pool, "d")
        assert pool.loaded.keys() == {"d"}

    run(pool, use)


def test_one_that_is_never_out_of_use_gives_way_and_comes_back(folder: Path, size: int) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False, memory=size, patience=30)
    answered = 0
    is_over = asyncio.Event()

    async def busy(delay: float) -> None:
        nonlocal answered
        await asyncio.sleep(delay)
        while not is_over.is_set():
            async with pool.lease("a"):
                await asyncio.sleep(0.03)
                answered += 1

    async def use() -> None:
        clients = [asyncio.create_task(busy(delay)) for delay in (0, 0.01, 0.02)]
        while answered < 3:
            await asyncio.sleep(0.01)
        assert await ask(pool, "b")
        before = answered
        while answered < before + 3:
            await asyncio.sleep(0.01)
        is_over.set()
        await asyncio.gather(*clients)

    run(pool, use)


def test_one_that_stays_in_use_is_waited_for_with_a_bound(folder: Path, size: int) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False, memory=size, patience=0.05)

    async def use() -> None:
        async with pool.lease("a"):
            with pytest.raises(ApiError, match="b does not fit beside a, in use for") as caught:
                await ask(pool, "b")
        assert (caught.value.status, caught.value.code) == (503, "busy")
        assert "Retry-After" in caught.value.headers
        assert await ask(pool, "b")

    run(pool, use)


def test_the_time_that_one_waits_for_others_begins_with_its_turn(folder: Path, size: int) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False, memory=size, patience=0.4)

    async def use() -> None:
        async with pool.lease("a"):
            async with pool._turn:
                waiting = asyncio.create_task(ask(pool, "b"))
                await asyncio.sleep(0.5)
            while not (pool._is_awaited or waiting.done()):
                await asyncio.sleep(0.01)
        assert await waiting

    run(pool, use)


def test_what_does_not_fit_even_alone_is_refused_with_the_numbers(folder: Path, size: int) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False, memory=size)
    tight = Pool([str(folder)], OPTIONS, isolate=False, memory=size - 1)

    async def use() -> None:
        await ask(pool, "a")
        with pytest.raises(
            ApiError, match=r"n_ctx 256 needs [\d,]+ bytes .* are available; use a smaller model"
        ) as caught:
            await ask(tight, "b")
        assert caught.value.status == 503

    run(pool, use)


def test_a_context_that_is_not_asked_for_is_what_the_memory_holds(folder: Path) -> None:
    """Of what the weights leave it may take a half."""
    artifact = open_artifact(folder / "a.gguf")
    need = engine_of(artifact).need(artifact.shape, Setting(), cache_size(1024, 1024, MAX_RUNNING))
    pool = Pool([str(folder)], {"threads": 1}, isolate=False, memory=need.weights + 2 * need.beside_weights)

    async def use() -> int:
        async with pool.lease("a") as lease:
            return lease.model.n_ctx

    assert run(pool, use) == 1024


def test_a_load_that_fails_leaves_the_others_usable(folder: Path) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False)
    sound = (folder / "b.gguf").read_bytes()
    (folder / "b.gguf").write_bytes(sound[:5000])
    (folder / "c.gguf").unlink()

    async def use() -> None:
        for name, problem in (("b", r"can't be loaded: .*b\.gguf"), ("c", "no such file or folder")):
            failed = await asyncio.gather(ask(pool, name), ask(pool, name), ask(pool, "a"), return_exceptions=True)
            assert isinstance(failed[2], str)
            for error in failed[:2]:
                assert isinstance(error, ApiError)
                assert error.status == 503
                with pytest.raises(ApiError, match=problem):
                    raise error
        (folder / "b.gguf").write_bytes(sound)
        assert await ask(pool, "b")

    run(pool, use)


def test_the_event_loop_goes_on_while_a_model_loads_and_another_is_unloaded(folder: Path, size: int) -> None:
    pool, before = Pool([str(folder)], OPTIONS, memory=size), psutil.Process().children()

    async def turns_during(name: str) -> int:
        loading, turns = asyncio.create_task(ask(pool, name)), 0
        while not loading.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert loading.result()
        return turns

    async def use() -> None:
        assert await turns_during("a") > 20
        assert await turns_during("b") > 20
        assert pool.loaded.keys() == {"b"}
        assert len(psutil.Process().children()) == len(before) + 1

    run(pool, use)


def test_many_who_ask_models_of_which_one_fits_all_get_their_answers(folder: Path, size: int) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False, memory=size)

    def asked(name: str) -> dict[str, object]:
        return {"model": name, "messages": [{"role": "user", "content": "Say 5."}], "temperature": 0, "max_tokens": 3}

    with serve(pool) as served, ThreadPoolExecutor(6) as threads:
        names = [*"abcabcaabbcc"]
        got = list(threads.map(lambda name: served.client.post("/v1/chat/completions", json=asked(name)).json(), names))
    assert [answer["model"] for answer in got] == names
    assert {answer["choices"][0]["message"]["content"] for answer in got} == {"5"}


def test_a_model_that_hangs_takes_few_threads_and_none_of_another(folder: Path) -> None:
    pool, is_over = Pool([str(folder)], OPTIONS, isolate=False), threading.Event()
    begun: list[Model] = []

    def hang(model: Model) -> None:
        begun.append(model)
        is_over.wait(60)

    async def use() -> None:
        try:
            async with pool.lease("a") as lease:
                for _ in range(3):
                    asked = [asyncio.create_task(pool.in_thread(hang, lease.model)) for _ in range(60)]
                    await asyncio.sleep(0.05)
                    for each in asked:
                        each.cancel()
                    await asyncio.wait(asked)
                waiting = [asyncio.create_task(pool.in_thread(hang, lease.model)) for _ in range(60)]
                assert await ask(pool, "b")
                assert len(begun) == 32
        finally:
            is_over.set()
        await asyncio.gather(*waiting)

    run(pool, use)
    assert len(begun) == 32 + 60


def test_who_leaves_while_a_model_loads_does_not_stop_that(folder: Path) -> None:
    pool = Pool([str(folder)], OPTIONS, isolate=False)

    async def use() -> None:
        leaving, staying = asyncio.create_task(ask(pool, "a")), asyncio.create_task(ask(pool, "a"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying
        assert leaving.cancelled()
        async with pool.lease("a"):
            assert pool.loaded.keys() == {"a"}

    run(pool, use)


# A process of its own.


def test_a_model_whose_process_is_killed_answers_the_next_request(folder: Path) -> None:
    pool, before = Pool([str(folder / "a.gguf")], {"threads": 1}), psutil.Process().children()

    async def use() -> None:
        expected = await ask(pool, "a")
        await _killed(pool)
        assert await ask(pool, "a") == expected
        async with pool.lease("a") as lease:
            endless = lease.model.answer([Message("user", "Tell a very long story.")], temperature=0)
            kill(pool)
            with pytest.raises(EngineDiedError):
                await endless
        assert await ask(pool, "a") == expected

    run(pool, use)
    assert psutil.Process().children() == before


def test_a_file_that_was_replaced_is_opened_when_the_process_had_died(folder: Path, small_talk: Path) -> None:
    pool = Pool([str(folder / "a.gguf")], OPTIONS)

    async def use() -> None:
        await ask(pool, "a")
        before = pool.loaded["a"].identity
        name = {"general.name": Value(ValueType.STRING, "another")}
        rewritten(small_talk, folder / "new", fields=name).replace(folder / "a.gguf")
        await ask(pool, "a")
        assert pool.loaded["a"].identity == before
        await _killed(pool)
        await ask(pool, "a")
        assert pool.loaded["a"].identity != before
        (folder / "a.gguf").unlink()
        await _killed(pool)
        with pytest.raises(ApiError, match=r"a\.gguf: no such file"):
            await ask(pool, "a")

    run(pool, use)


def test_a_pool_that_is_closed_while_a_model_loads_leaves_no_process(folder: Path) -> None:
    pool, before = Pool([str(folder)], OPTIONS), psutil.Process().children()

    async def use() -> None:
        loading = asyncio.create_task(ask(pool, "a"))
        while psutil.Process().children() == before:
            await asyncio.sleep(0.01)
        await pool.close()
        with pytest.raises(asyncio.CancelledError):
            await loading
        while psutil.Process().children() != before:
            await asyncio.sleep(0.01)

    run(pool, use)
    assert not pool.loaded


def test_over_http_a_killed_engine_is_a_503_and_the_next_request_works(small_talk: Path) -> None:
    """Its story has no end."""

    def asked(text: str) -> dict[str, object]:
        return {"model": "small_talk", "messages": [{"role": "user", "content": text}], "temperature": 0}

    with serve(Pool([str(small_talk)], {"threads": 1})) as served, ThreadPoolExecutor(1) as threads:
        model = served.model
        assert isinstance(model, IsolatedModel)
        running = threads.submit(served.client.post, "/v1/chat/completions", json=asked("Tell a very long story."))
        while not model.stats().running:
            assert not running.done()
        os.kill(model.worker_pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        failed = running.result()
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_failed")
        answered = served.client.post("/v1/chat/completions", json=asked("Say 5."))
        assert answered.json()["choices"][0]["message"]["content"] == "5"


def test_who_asks_for_numbers_starts_no_process_for_a_model_that_died(small_talk: Path) -> None:
    pool, before = Pool([str(small_talk)], OPTIONS), psutil.Process().children()
    with serve(pool) as served:
        model = served.model
        assert isinstance(model, IsolatedModel)
        assert 'edge_llama_model_cells{model="small_talk"}' in served.client.get("/metrics").text
        served.wait(_killed(pool))
        assert "edge_llama_models_loaded 0.0" in served.client.get("/metrics").text
        assert served.client.get("/health").json()["loaded"] == 0
        assert model.has_died
    assert psutil.Process().children() == before


def kill(pool: Pool) -> IsolatedModel:
    (model,) = pool.loaded.values()
    assert isinstance(model, IsolatedModel)
    os.kill(model.worker_pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    return model


async def _killed(pool: Pool) -> None:
    """Kill the process of the one model that is loaded, and wait until that is noticed."""
    model = kill(pool)
    while not model.has_died:
        await asyncio.sleep(0.01)

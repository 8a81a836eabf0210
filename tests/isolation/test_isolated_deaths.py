"""A model's process that dies, wherever it is: whoever waits is told, nothing hangs or is left, and chats go on."""

import contextlib
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from isolated import OPTIONS

import edge_llama
from edge_llama import EngineDiedError, EngineError, Message, Model
from edge_llama.host.child import HELPER_VARIABLE
from edge_llama.isolation.remote import IsolatedModel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL, process groups and forks")
KILLS = int(os.environ.get("EDGE_LLAMA_KILLS", "2"))
FOR_EVER: dict[str, Any] = {"temperature": 0, "regex": ".*"}


def kill(model: IsolatedModel, number: int = signal.SIGKILL) -> None:
    os.kill(model.worker_pid, number)


def is_gone(pid: int) -> bool:
    """Whether the process ends by itself, or is a zombie of nobody's. A busy machine may take longer than a second."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_all_who_wait_are_told_and_the_next_call_starts_another(isolated: IsolatedModel) -> None:
    before = isolated.worker_pid
    running = isolated.generate("Once upon", **FOR_EVER)
    next(running)
    waiting = isolated.generate("Another", **FOR_EVER)
    caught: list[BaseException] = []

    def wait(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            caught.append(error)

    threads = [threading.Thread(target=wait, args=(work,)) for work in (running.result, waiting.result, waiting.result)]
    for thread in threads:
        thread.start()
    kill(isolated)
    for thread in threads:
        thread.join()
    assert [type(error) for error in caught] == [EngineDiedError] * 3
    assert isinstance(caught[0], EngineDiedError)
    assert caught[0].cause == "SIGKILL"
    assert "SIGKILL" in str(caught[0])
    with pytest.raises(EngineDiedError):
        waiting.result()
    assert isolated.generate("x", max_tokens=1).result().tokens
    assert isolated.worker_pid != before


def test_a_chat_goes_on_from_its_messages(isolated: IsolatedModel, plain: Model) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    chat, expected = isolated.chat(**options), plain.chat(**options)
    first = chat.send("First").result()
    fork = chat.fork()
    kill(isolated)
    with contextlib.suppress(EngineDiedError):  # as soon as it is known; before, the next call is what finds out
        chat.send("Lost").result()
    expected.send("First").result()
    answer = chat.send("Second").result()
    assert answer.text == expected.send("Second").result().text
    assert [message.content for message in chat.messages][:2] == ["First", first.text]
    assert fork.send("Second").result().text == answer.text


@pytest.mark.parametrize("phase", ["counting", "prefilling", "beginning", "saving"])
def test_it_dies_in_a_phase(phase: str, isolated: IsolatedModel, tmp_path: Path) -> None:
    """The child is stopped, so that the call is within it when it is killed."""
    chat = isolated.chat(max_tokens=2)
    chat.send("x").result()
    works: dict[str, Callable[[], object]] = {
        "counting": lambda: isolated.count_tokens(chat.messages),
        "prefilling": lambda: isolated.generate("word " * 900, max_tokens=2, logprobs=3).result(),
        "beginning": lambda: chat.send("y").result(),
        "saving": lambda: chat.save(tmp_path / "a.session"),
    }
    kill(isolated, signal.SIGSTOP)
    killer = threading.Timer(0.1, kill, (isolated,))
    killer.start()
    with pytest.raises(EngineDiedError, match="SIGKILL"):
        works[phase]()
    killer.join()
    assert list(tmp_path.iterdir()) == []
    works[phase]()  # nothing stays of it


def test_it_is_killed_at_random_moments(isolated: IsolatedModel, rng: Any, seed: int) -> None:
    """``make kills`` does it a hundred times: four callers, each of whom gets answers or the typed error."""
    draw = random.Random(seed)
    done = threading.Event()
    odd: list[BaseException] = []
    answered = [0] * 4

    def call(at: int) -> None:
        chat = isolated.chat(max_tokens=40, logprobs=at)
        while not done.is_set():
            try:
                chat.send("Go on").result()
                answered[at] += 1
                isolated.count_tokens(chat.messages)
                chat.clear()
            except EngineDiedError:
                pass
            except BaseException as error:
                odd.append(error)
                raise

    threads = [threading.Thread(target=call, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    pids: set[int] = set()
    while len(pids) < KILLS:  # once each, while it opens or is at work
        time.sleep(draw.uniform(0, 2.5))
        pid = isolated.worker_pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
            pids.add(pid)
    done.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    print(f"{len(pids)} killed, {sum(answered)} answers")
    assert not odd
    assert isolated.generate("x", max_tokens=1).result().tokens
    assert all(is_gone(pid) for pid in pids - {isolated.worker_pid})


HOST = """
import os, sys, time
import edge_llama
options = dict(n_ctx=256, isolate=True)
model = edge_llama.open(sys.argv[1], **options)
running = model.generate("Once upon", regex=".*")
next(running)
if sys.argv[2] == "fork" and not os.fork():
    time.sleep(60)
    os._exit(0)
print(model.worker_pid, os.getpid(), flush=True)
for _ in running:
    pass
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_it_ends_with_its_parent(how: str, tiny: Path) -> None:
    """Also where a fork of the parent lives on, and holds the pipe."""
    command = [sys.executable, "-c", HOST, tiny, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as host:
        assert host.stdout
        pid = int(host.stdout.readline().split()[0])
        assert psutil.pid_exists(pid)
        host.kill()
        try:
            assert is_gone(pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(host.pid, signal.SIGKILL)


def test_it_ends_with_its_parent_while_it_opens(tiny: Path) -> None:
    code = HOST.replace("model = edge_llama", "print(0, flush=True)\nmodel = edge_llama")
    with subprocess.Popen([sys.executable, "-c", code, tiny, ""], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout
        host.stdout.readline()
        process = psutil.Process(host.pid)
        while not (children := process.children(recursive=True)):
            assert host.poll() is None
            time.sleep(0.01)
        host.kill()
        assert all(is_gone(child.pid) for child in children)


def test_closing_ends_it_and_what_runs_is_cancelled(tiny: Path) -> None:
    model = edge_llama.open(tiny, isolate=True, **OPTIONS)
    assert isinstance(model, IsolatedModel)
    running, waiting = (model.generate("Once upon", **FOR_EVER) for _ in range(2))
    next(running)
    pid = model.worker_pid
    model.close()
    model.close()
    assert is_gone(pid)
    assert running.result().finish_reason == waiting.result().finish_reason == "cancelled"
    for use in (lambda: model.generate("x"), lambda: model.count_tokens([Message("user", "x")])):
        with pytest.raises(EngineError, match="the model is closed; open it again") as caught:
            use()
        assert caught.type is EngineError


def test_a_dropped_model_ends_it(tiny: Path) -> None:
    model = edge_llama.open(tiny, isolate=True, n_ctx=256)
    assert isinstance(model, IsolatedModel)
    pid, generation = model.worker_pid, model.generate("x", max_tokens=2)
    del model
    gc.collect()
    assert psutil.pid_exists(pid)  # an answer keeps it
    assert generation.result().tokens
    del generation
    gc.collect()
    assert is_gone(pid)


def test_what_is_on_disk_is_found_by_the_next(tiny: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "cache_dir": tmp_path / "cache"}
    with edge_llama.open(tiny, isolate=True, **options) as model:
        assert isinstance(model, IsolatedModel)
        chat = model.chat(max_tokens=4, temperature=0)
        model.sessions.tag(chat.cache_owner, "mine")
        prompt = chat.send("word " * 300).result().timings.prompt_tokens
        model.sessions.store(chat.cache_owner)
        kill(model)
        with contextlib.suppress(EngineDiedError):
            model.stats()
        assert model.sessions.why_not_kept("mine") is None
        assert model.prefetch(chat.messages, chat.cache_owner) >= prompt
        assert chat.send("And?").result().timings.cached_tokens >= prompt
        model.sessions.forget("mine")
    assert not list((tmp_path / "cache").glob("*mine*"))


def test_two_do_not_know_each_other(isolated: IsolatedModel, tiny: Path) -> None:
    with edge_llama.open(tiny, isolate=True, n_ctx=256) as other:
        assert isinstance(other, IsolatedModel)
        running = isolated.generate("x", max_tokens=30, temperature=0, regex=".*")
        kill(other)
        assert len(running.result().tokens) == 30
        with contextlib.suppress(EngineDiedError):  # it may be known by now
            other.generate("x", max_tokens=3).result()
        assert other.generate("x", max_tokens=3).result().tokens


def test_another_model_at_the_path_is_not_taken_for_it(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(tiny, path)
    with edge_llama.open(path, isolate=True, n_ctx=256) as model:
        assert isinstance(model, IsolatedModel)
        (tmp_path / "new").write_bytes(tiny.read_bytes()[:-4] + b"\0\0\0\x3f")  # one weight is another
        (tmp_path / "new").replace(path)
        kill(model)
        with pytest.raises(EngineDiedError):
            model.generate("x").result()
        with pytest.raises(EngineError, match="another model than before the engine died"):
            model.generate("x")


def test_the_hosts_working_directory_may_change(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(tiny, tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    with edge_llama.open("model.gguf", isolate=True, n_ctx=256) as model:
        assert isinstance(model, IsolatedModel)
        chat = model.chat(max_tokens=2)
        chat.send("x").result()
        monkeypatch.chdir(tmp_path.parent)
        kill(model)
        with contextlib.suppress(EngineDiedError):
            chat.send("y").result()
        chat.send("y").result()
        chat.save(f"{tmp_path.name}/here.session")
    assert (tmp_path / "here.session").exists()


def test_a_bad_file_is_refused_as_ever_and_leaves_no_process(tiny: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    before = psutil.Process().children()
    bad.write_bytes(tiny.read_bytes()[:50_000])
    told = []
    for isolate in (False, True):
        with pytest.raises(edge_llama.ArtifactError) as caught:
            edge_llama.open(bad, isolate=isolate)
        told.append(str(caught.value))
        with pytest.raises(edge_llama.OptionError) as refused:
            edge_llama.open(tiny, isolate=isolate, device="npu:none")
        told.append(str(refused.value))
    assert told[:2] == told[2:]
    assert psutil.Process().children() == before


def test_a_helper_that_is_none_is_told(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HELPER_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(EngineError, match=r"no process for the model can be started: .*none No such file"):
        edge_llama.open(tiny, isolate=True)
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho one >&2\necho the last word >&2\nexit 3\n")
    helper.chmod(0o755)
    monkeypatch.setenv(HELPER_VARIABLE, str(helper))
    with pytest.raises(EngineDiedError, match="exit code 3: the last word") as caught:
        edge_llama.open(tiny, isolate=True)
    assert caught.value.stderr == "one\nthe last word\n"
    helper.write_text("#!/bin/sh\necho this is no frame\nsleep 60\n")
    with pytest.raises(EngineDiedError, match="what it sends is not understood"):
        edge_llama.open(tiny, isolate=True)
    monkeypatch.delenv(HELPER_VARIABLE)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EngineError, match="edge-llama-helper: no such file, and a frozen program has no interpreter"):
        edge_llama.open(tiny, isolate=True)

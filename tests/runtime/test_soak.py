"""Sixteen threads on one model, which cancel, drop, fork, save and load as they like: each answer is the solo one.

EDGE_LLAMA_SOAK sets the seconds for each model (5 unless set): 120 before a release.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import on_engine

import converters
import edge_llama

SECONDS = float(os.environ.get("EDGE_LLAMA_SOAK") or 5)
THREADS = 16
QUESTIONS = ["What colour is the sky?", "Who wrote Hamlet?", "Where is Japan? " * 8]
GREEDY = {"temperature": 0, "max_tokens": 4}


@pytest.fixture
def tiny(llama3: Path, tmp_path: Path) -> Iterator[edge_llama.Model]:
    """Quick, and without room for all that the threads' chats have read."""
    converters.convert(llama3, tmp_path / "tiny.gguf", quant="f32")
    with edge_llama.open(tmp_path / "tiny.gguf", n_ctx=512, kv_format="f32", cache_bytes=2_000_000) as opened:
        yield opened


class Caller:
    """One thread's life: it does one thing after the other, and compares what it gets with the solo answers."""

    def __init__(self, model: edge_llama.Model, solo: dict[tuple[str, str], tuple[str, str]], folder: Path) -> None:
        self.model = model
        self.solo = solo
        self.folder = folder

    def act(self, rng: np.random.Generator) -> str:
        acts = [self.whole, self.forked, self.saved, self.taken_in_part, self.cancelled, self.dropped, self.raw]
        act = acts[int(rng.integers(len(acts)))]
        first, second = (QUESTIONS[int(at)] for at in rng.integers(0, len(QUESTIONS), 2))
        act(rng, first, second)
        return act.__name__

    def whole(self, rng: np.random.Generator, first: str, second: str) -> None:
        chat = self.model.chat()
        answers = chat.send(first, **GREEDY).result().text, chat.send(second, **GREEDY).result().text
        assert answers == self.solo[first, second]

    def forked(self, rng: np.random.Generator, first: str, second: str) -> None:
        chat = self.model.chat()
        chat.send(first, **GREEDY).result()
        fork = chat.fork()
        running = chat.send(second, **GREEDY)
        assert fork.send(second, **GREEDY).result().text == self.solo[first, second][1]
        assert running.result().text == self.solo[first, second][1]

    def saved(self, rng: np.random.Generator, first: str, second: str) -> None:
        chat = self.model.chat()
        chat.send(first, **GREEDY).result()
        path = self.folder / f"{threading.get_ident()}.session"
        chat.save(path)
        assert self.model.load_chat(path).send(second, **GREEDY).result().text == self.solo[first, second][1]

    def taken_in_part(self, rng: np.random.Generator, first: str, second: str) -> None:
        chat = self.model.chat()
        running = chat.send(first, **GREEDY)
        for _ in range(int(rng.integers(4))):
            next(running, None)
        running.close()
        assert self.solo[first, second][0].startswith(running.result().text.rstrip("\ufffd"))

    def cancelled(self, rng: np.random.Generator, first: str, second: str) -> None:
        chat = self.model.chat()
        running = chat.send(first, temperature=1.0)
        timer = threading.Timer(float(rng.random()) * 0.05, chat.cancel)
        timer.start()
        assert running.result().finish_reason in ("cancelled", "stop", "length")
        timer.join()

    def dropped(self, rng: np.random.Generator, first: str, second: str) -> None:
        chat = self.model.chat()
        next(chat.send(first, temperature=1.0), None)
        if rng.integers(2):
            chat.retry(temperature=1.0, max_tokens=15)

    def raw(self, rng: np.random.Generator, first: str, second: str) -> None:
        running = self.model.generate(first, temperature=1.0, max_tokens=int(rng.integers(1, 20)))
        if rng.integers(2):
            running.cancel()
        assert running.result().finish_reason in ("cancelled", "stop", "length")


def solo_answers(model: edge_llama.Model) -> dict[tuple[str, str], tuple[str, str]]:
    answers = {}
    for first in QUESTIONS:
        on_engine(model, lambda session, tower: session.rewind(0))
        for second in QUESTIONS:
            chat = model.chat()
            texts = [chat.send(text, **GREEDY).result().text for text in (first, second)]
            answers[first, second] = (texts[0], texts[1])
    return answers


@pytest.mark.timeout(2 * SECONDS + 300)
@pytest.mark.parametrize("which", [pytest.param("tiny", marks=pytest.mark.alone), "exact"])
def test_threads_that_come_and_go_get_the_answers_they_would_get_alone(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, seed: int
) -> None:
    model: edge_llama.Model = request.getfixturevalue(which)
    caller = Caller(model, solo_answers(model), tmp_path)
    end = time.monotonic() + SECONDS
    done: Counter[str] = Counter()
    failures: list[BaseException] = []

    def live(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        try:
            while time.monotonic() < end and not failures:
                done[caller.act(rng)] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 120)
    print(f"{which}: {dict(done)}")
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    assert sum(done.values()) >= THREADS
    assert caller.model.chat().send(QUESTIONS[0], **GREEDY).result().text == caller.solo[QUESTIONS[0], QUESTIONS[0]][0]

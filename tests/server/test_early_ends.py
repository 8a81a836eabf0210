"""Requests that end before their answer does: the client leaves, or it takes too long."""

import asyncio
import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served
from talk import ANSWER, QUESTION, STORY, talking

from edge_llama.server.openai.chat import ChatWriter
from edge_llama.server.settings import Limits, ServerSettings

PATHS = ["/v1/chat/completions", "/v1/messages"]
SIGNS = {PATHS[0]: ": keep-alive", PATHS[1]: "event: ping"}


@pytest.fixture(scope="module")
def talk(small_talk: Path) -> Iterator[Served]:
    """It answers one after the other: what waits is seen."""
    with talking(small_talk, n_ctx=4096, max_running=1) as server:
        yield server


def asked(server: Served, **more: Any) -> dict[str, Any]:
    story = {"model": server.name, "messages": [{"role": "user", "content": STORY}], "max_tokens": 3000}
    return {**story, "temperature": 0, **more}


def wait_for_rest(server: Served) -> None:
    """Nothing is answered and nothing waits; the next is answered at once."""
    until = time.monotonic() + 10
    while (stats := server.model.stats()).running or stats.queued:
        assert time.monotonic() < until, stats
        time.sleep(0.005)
    question = asked(server, messages=[{"role": "user", "content": QUESTION}], max_tokens=32)
    assert ANSWER in server.client.post(PATHS[0], json=question).text


def is_running(server: Served, running: int, queued: int) -> None:
    until = time.monotonic() + 10
    while ((stats := server.model.stats()).running, stats.queued) != (running, queued):
        assert time.monotonic() < until, stats
        time.sleep(0.002)


def left(server: Served, path: str, **more: Any) -> socket.socket:
    """A connection whose answer is awaited."""
    address = httpx.URL(server.url)
    connection = socket.create_connection((address.host, address.port or 80))
    body = json.dumps(asked(server, **more)).encode()
    lines = (f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json")
    connection.sendall("\r\n".join((*lines, f"content-length: {len(body)}\r\n\r\n")).encode() + body)
    return connection


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_who_leaves_ends_its_answer(talk: Served, path: str, is_streamed: bool) -> None:
    before = talk.model.stats().generated_tokens
    with left(talk, path, stream=is_streamed):
        is_running(talk, 1, 0)
    wait_for_rest(talk)
    assert talk.model.stats().generated_tokens - before < 3000


@pytest.mark.parametrize("is_streamed", [True, False])
def test_who_leaves_while_it_waits_is_never_answered(talk: Served, is_streamed: bool) -> None:
    with left(talk, PATHS[0], stream=True):
        is_running(talk, 1, 0)
        with left(talk, PATHS[1], stream=is_streamed):
            is_running(talk, 1, 1)
        is_running(talk, 1, 0)
    wait_for_rest(talk)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_answer_that_nothing_can_tell_of_ends(
    talk: Served, is_streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = talk.model.stats().generated_tokens
    monkeypatch.delattr(ChatWriter, "of")
    assert talk.client.post(PATHS[0], json=asked(talk, stream=is_streamed)).status_code == 500
    monkeypatch.undo()
    wait_for_rest(talk)
    assert talk.model.stats().generated_tokens - before < 3000


@pytest.fixture
def cold(small_talk: Path, tmp_path: Path) -> Iterator[Served]:
    """A server that has loaded nothing, and breaks no silence later than a twentieth of a second."""
    model = tmp_path / "cold.gguf"
    shutil.copyfile(small_talk, model)
    with talking(model, settings=ServerSettings(keep_alive_seconds=0.05)) as server:
        yield server


@contextmanager
def streamed(server: Served, path: str) -> Iterator[Iterator[str]]:
    """A stream of which there is a line already, though the model is not loaded before the block begins."""
    turn = server.pool._turn
    server.wait(turn.acquire())
    question = asked(server, messages=[{"role": "user", "content": QUESTION}], max_tokens=32, stream=True)
    try:
        with server.client.stream("POST", path, json=question) as response:
            lines = response.iter_lines()
            assert next(lines) == SIGNS[path]
            yield lines
    finally:
        if turn.locked():
            server.wait(released(turn))


async def released(lock: asyncio.Lock) -> None:
    lock.release()


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_shows_life_while_its_model_is_loaded(cold: Served, path: str) -> None:
    with streamed(cold, path) as lines:
        cold.wait(released(cold.pool._turn))
        told = "".join(lines)
    assert "Japan" in told
    assert '"error"' not in told


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_whose_model_can_not_be_loaded_ends_in_an_error(cold: Served, path: str) -> None:
    with streamed(cold, path) as lines:
        cold.pool.entries[0].path.unlink()
        cold.wait(released(cold.pool._turn))
        (event,) = [json.loads(line[6:]) for line in lines if line.startswith("data: {") and "ping" not in line]
    assert "can't be loaded" in event["error"]["message"]
    assert event.get("type", "error") == "error"


@pytest.fixture(scope="module")
def hasty(small_talk: Path) -> Iterator[Served]:
    """It gives no answer more than a twentieth of a second, and no more than 2,000 tokens."""
    limits = Limits(seconds=0.05, max_tokens=2000)
    with talking(small_talk, settings=ServerSettings(limits=limits), n_ctx=4096) as server:
        assert server.model
        yield server


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_that_takes_too_long_is_an_error(hasty: Served, path: str) -> None:
    response = hasty.client.post(path, json=asked(hasty, max_tokens=2000))
    assert response.status_code == 504
    assert "deadline" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_that_takes_too_long_ends_in_an_error(hasty: Served, path: str) -> None:
    response = hasty.client.post(path, json=asked(hasty, max_tokens=2000, stream=True))
    assert response.status_code in (200, 504)  # it may end before its first token
    assert "was not done by its deadline" in response.text
    assert '"finish_reason":"' not in response.text


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_that_the_server_ends_says_so(talk: Served, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_llama.server.guard._GRACE", 0.2 - talk.app.state.server.settings.limits.seconds)
    response = talk.client.post(path, json=asked(talk, stream=True))
    monkeypatch.undo()
    assert response.status_code == 200
    last = json.loads(response.text.strip().rpartition("data: ")[2])
    assert "the server ended the answer" in last["error"]["message"]
    wait_for_rest(talk)


def test_more_tokens_than_may_be_are_refused(hasty: Served) -> None:
    response = hasty.client.post(PATHS[0], json=asked(hasty, max_tokens=2001))
    assert response.status_code == 400
    assert "2,000" in response.json()["error"]["message"]

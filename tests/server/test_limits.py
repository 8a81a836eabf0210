"""How much one may ask: what is broken, too large, too slow or too much is a 4xx, and the next request works."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
from serving import Served, exchanged, serve

from edge_llama.server.pool import Pool
from edge_llama.server.settings import Limits, ServerSettings

LIMITS = Limits(
    body_bytes=1 << 20,
    header_bytes=8 << 10,
    header_seconds=0.3,
    body_seconds=0.3,
    requests=3,
    held_bytes=3 << 19,
    connections=8,
)
PATHS = ["/v1/chat/completions", "/v1/messages"]


@pytest.fixture(scope="module")
def small(small_talk: Path) -> Iterator[Served]:
    """A server that takes little. It loads no model."""
    with serve(Pool([str(small_talk)], isolate=False), ServerSettings(limits=LIMITS)) as server:
        yield server


@pytest.fixture(autouse=True)
def still_answers(small: Served) -> Iterator[None]:
    """Whatever a test does to it."""
    yield
    assert small.client.get("/health").json()["status"] == "ok"
    traffic = small.app.state.server.traffic
    until = time.monotonic() + 10
    while (traffic.running or traffic.held_bytes) and time.monotonic() < until:
        time.sleep(0.01)
    assert (traffic.running, traffic.held_bytes) == (0, 0)


def post(server: Served, body: bytes, path: str = PATHS[0], **headers: str) -> httpx.Response:
    given = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(path, content=body, headers=given)


def head(length: int | None = None, *more: bytes) -> bytes:
    """That of a request with a body."""
    size = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    lines = (b"POST /v1/messages HTTP/1.1", b"host: localhost", b"content-type: application/json", size, *more)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def status_of(answer: bytes) -> int:
    """The status of a response whose body is an error in Anthropic's form, or OpenAI's."""
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"], answer
    assert b"nosniff" in answer
    return int(answer.split(b" ", 2)[1])


BROKEN = {
    "nothing but a brace": b"{",
    "truncated": b'{"model": "a", "messages": [{"role"',
    "no JSON": b"model=a&messages=b",
    "broken UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "a"}'.encode("utf-16"),
    "half a character": b'{"model": "\\ud83d"}',
    "its other half": b'{"model": "\\ude00\\ud83d"}',
    "NaN": b'{"temperature": NaN}',
    "infinity": b'{"temperature": -Infinity}',
    "too many digits": b'{"seed": ' + b"9" * 10_000 + b"}",
    "a thousand levels": b'{"messages": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "a hundred thousand levels": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "two values": b"{}{}",
    "a control character": b'{"model": "\x00"}',
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_what_is_no_json_is_refused_with_its_place(small: Served, body: bytes, path: str) -> None:
    response = post(small, body, path)
    assert response.status_code == 400
    assert "line 1 column" in response.json()["error"]["message"]
    assert ("type" in response.json()) == (path == "/v1/messages")


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"text"', b"1"])
def test_what_is_no_object_is_refused(small: Served, body: bytes) -> None:
    assert 400 <= post(small, body).status_code < 500


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_a_body_says_that_it_is_json(small: Served, kind: str) -> None:
    response = post(small, b"{}", content_type=kind)
    assert response.status_code == 415
    assert "expected application/json" in response.json()["error"]["message"]


def test_a_compressed_body_is_refused(small: Served) -> None:
    assert post(small, b"{}", content_encoding="gzip").status_code == 415


def test_a_body_that_says_it_is_too_large_is_refused_unread(small: Served) -> None:
    answer = exchanged(small, head(LIMITS.body_bytes + 1))
    assert status_of(answer) == 413
    assert b"1,048,576" in answer


def test_a_client_that_writes_all_of_a_large_body_still_gets_the_answer(small: Served) -> None:
    response = post(small, b'"' + b"a" * (8 * LIMITS.body_bytes) + b'"')
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


def test_a_body_in_chunks_is_counted(small: Served) -> None:
    chunk = b"a" * (1 << 16)
    response = small.client.post(PATHS[0], content=(chunk for _ in range(40)))
    assert response.status_code == 413


def test_a_body_in_chunks_is_taken(small: Served) -> None:
    parts = (b'{"mod', b'el": NaN}')
    response = small.client.post(PATHS[0], content=iter(parts), headers={"content-type": "application/json"})
    assert response.status_code == 400


def test_a_body_that_ends_early_has_no_answer(small: Served) -> None:
    assert exchanged(small, head(100) + b"{", is_ended=True) == b""


def test_a_broken_chunk_is_refused(small: Served) -> None:
    assert status_of(exchanged(small, head() + b"x\r\n{}\r\n")) == 400


def test_a_broken_chunk_of_a_request_whose_answer_has_no_body_is_refused(
    small: Served, caplog: pytest.LogCaptureFixture
) -> None:
    request = b"HEAD /v1/models HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n"
    answer = exchanged(small, request)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\n")
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_slow_body_is_not_waited_for(small: Served) -> None:
    answer = exchanged(small, head(100) + b"{")
    assert status_of(answer) == 408
    assert b"0.3 seconds" in answer


@pytest.mark.parametrize("begun", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: local"])
def test_slow_headers_are_not_waited_for(small: Served, begun: bytes) -> None:
    assert status_of(exchanged(small, begun)) == 408


def test_bytes_that_come_one_by_one_give_no_more_time(small: Served) -> None:
    address = httpx.URL(small.url)
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.settimeout(10)
        begun = time.monotonic()
        answer = b""
        for byte in b"GET /health HTTP/1.1\r\nx: " + b"a" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
            if time.monotonic() - begun > LIMITS.header_seconds + 0.1:
                answer = connection.recv(1 << 16)
                break
    assert status_of(answer) == 408


def test_a_flood_of_headers_is_refused(small: Served) -> None:
    flood = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 100) for number in range(1000))
    answer = exchanged(small, b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + flood + b"\r\n")
    assert status_of(answer) == 431
    assert b"8,192" in answer


def test_a_header_without_an_end_is_refused(small: Served) -> None:
    assert status_of(exchanged(small, b"GET /health HTTP/1.1\r\nx: " + b"a" * (16 << 10))) == 431


def test_a_long_path_is_refused(small: Served) -> None:
    assert small.client.get(f"/{'a' * (8 << 10)}").status_code == 431


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"\xff\xfe GET",
    ],
)
def test_what_is_no_http_is_refused(small: Served, data: bytes) -> None:
    answer = exchanged(small, data + b"\r\n\r\n")
    assert status_of(answer) == 400


class Waiting:
    """Connections that have begun a request and do not end it."""

    def __init__(self, server: Served) -> None:
        self._address = httpx.URL(server.url)
        self._stack = ExitStack()

    def add(self, data: bytes) -> None:
        address = (self._address.host, self._address.port or 80)
        self._stack.enter_context(socket.create_connection(address)).sendall(data)

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def wait_for(done: object, what: str) -> None:
    until = time.monotonic() + 10
    while not done():  # type: ignore[operator] # a function
        assert time.monotonic() < until, what
        time.sleep(0.005)


def test_more_requests_than_may_be_at_once_are_told_to_come_again(small: Served) -> None:
    traffic = small.app.state.server.traffic
    with Waiting(small) as waiting:
        for _ in range(LIMITS.requests):
            waiting.add(head(100) + b"{")
        wait_for(lambda: traffic.running == LIMITS.requests, "they are not there")
        response = post(small, b"{}")
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert small.client.get("/health").status_code == 200


def test_a_request_takes_none_of_the_few_threads_that_all_share(small: Served) -> None:
    async def total(tokens: float) -> float:
        limiter = anyio.to_thread.current_default_thread_limiter()
        before, limiter.total_tokens = limiter.total_tokens, tokens
        return before

    before = small.wait(total(0))
    try:
        assert small.client.get("/v1/models", timeout=5).status_code == 200
    finally:
        small.wait(total(before))


def test_more_bytes_than_may_be_held_at_once_are_told_to_come_again(small: Served) -> None:
    traffic, size = small.app.state.server.traffic, 900_000
    with Waiting(small) as waiting:
        waiting.add(head(size + 1) + b'"' + b"a" * (size - 1))
        wait_for(lambda: traffic.held_bytes == size, "they are not there")
        assert post(small, b'"' + b"a" * size + b'"').status_code == 429


def test_more_connections_than_may_be_open_are_told_to_come_again(small: Served) -> None:
    small.client.get("/health")  # has one open
    with Waiting(small) as waiting:
        for _ in range(LIMITS.connections):
            waiting.add(b"")
        answer = exchanged(small, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert status_of(answer) == 429


def test_many_clients_that_leave_in_the_middle_leave_nothing(small: Served) -> None:
    def leave(begun: bytes) -> None:
        with Waiting(small) as waiting:
            waiting.add(begun)

    data = head(3) + b"{}"
    threads = [threading.Thread(target=leave, args=(data[:at],)) for at in range(0, len(data), 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

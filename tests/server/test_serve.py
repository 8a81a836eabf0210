"""``edge-llama serve`` as a user runs it: a process, its lines on stderr, its signals and its end."""

import asyncio
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from talk import STORY
from terminals import EDGE_LLAMA

from edge_llama.errors import EdgeLlamaError
from edge_llama.server.app import create
from edge_llama.server.listening import bound, needs_key, url
from edge_llama.server.pool import Pool
from edge_llama.server.running import Running
from edge_llama.server.settings import ServerSettings

SECONDS = 60
MODEL = Path(__file__).resolve().parent.parent / "data" / "small_talk.gguf"
HAS_IPV6 = socket.has_ipv6 and Path("/proc/net/if_inet6").is_file() and bool(Path("/proc/net/if_inet6").read_text())


class Command:
    """The verb at work."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [EDGE_LLAMA, "serve", *map(str, arguments), "--port", "0"]
        env = {**os.environ, "NO_COLOR": "1", **environment}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def said(self, pattern: str) -> re.Match[str]:
        """Wait for a line on stderr."""
        until = time.monotonic() + SECONDS
        while True:
            for line in self.lines:
                if match := re.search(pattern, line):
                    return match
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < until, self.lines
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return self.said(r"listens at (http://\S+)")[1]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ended(self) -> int:
        """Its exit code; nothing of it is left."""
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[Command]:
    command = Command(*arguments, **environment)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()
        command._reader.join(SECONDS)
        for pipe in (command.process.stdout, command.process.stderr):
            assert pipe
            pipe.close()


@pytest.mark.parametrize(("files", "connections"), [(100, 50), (1000, 744)])
def test_as_many_connections_may_be_open_as_the_system_lets_it(files: int, connections: int) -> None:
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({min(files, 200)}, {files}))\n"
        "from edge_llama.cli.serve import _allowed_connections; print(_allowed_connections(2000))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == connections


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 3000, reason="so many files can't be open here")
def test_a_thousand_idle_connections_do_not_keep_others_away() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(MODEL, "--no-isolate") as command, ExitStack() as idle:
        address = httpx.URL(command.url)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 3000), limits[1]))
        idle.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):
            idle.enter_context(socket.create_connection((address.host, address.port or 80)))
        assert httpx.get(f"{command.url}/health").status_code == 200


@contextmanager
def half_a_request(url: str) -> Iterator[socket.socket]:
    """One that the server waits for: it runs, and is not done."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=SECONDS) as connection:
        head = "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9"
        connection.sendall(f"{head}\r\n\r\n{{".encode())
        until = time.monotonic() + SECONDS
        while "edge_llama_requests_running 2.0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < until
        yield connection


def test_it_says_where_it_listens_and_what_it_serves_and_ends_by_sigterm() -> None:
    with serving(MODEL, "--n-ctx", "256") as command:
        assert httpx.get(f"{command.url}/health").json()["status"] == "ok"
        command.said(r"^model: small_talk$")
        loaded = command.said(r"^small_talk: 256 tokens of context .*; CPU .*; loaded in [\d.]+ s$")
        assert httpx.get(f"{command.url}/health").json() == {"status": "ok", "models": 1, "loaded": 1}
        assert httpx.get(f"{command.url}/metrics").text.count('{model="small_talk"}') > 5
        children = command.children()
        assert len(children) == 1, loaded
        logged = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GET /health 200 \d+ ms req_[0-9a-f]{24}$"
        assert sum(bool(re.fullmatch(logged, line)) for line in command.lines) == 2, command.lines
        command.process.send_signal(signal.SIGTERM)
        assert command.ended() == 143
        assert command.process.stdout
        assert command.process.stdout.read() == ""
        assert not psutil.wait_procs(children, timeout=5)[1]


def test_what_runs_is_finished_and_nothing_more_is_taken() -> None:
    with serving(MODEL, "--n-ctx", "256", "--no-isolate") as command, httpx.Client(base_url=command.url) as client:
        assert client.get("/health").status_code == 200
        with half_a_request(command.url) as connection:
            command.process.send_signal(signal.SIGINT)
            command.said("1 request is answered first, for 30 s at most")
            assert client.get("/health").status_code == 503
            refused = client.get("/metrics")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            connection.sendall(b'"a": 1 }')
            assert connection.recv(100).startswith(b"HTTP/1.1 4")
        assert command.ended() == 130


def test_an_answer_that_streams_is_finished() -> None:
    fields = {"messages": [{"role": "user", "content": STORY}], "max_tokens": 150, "stream": True, "temperature": 0}
    with serving(MODEL, "--n-ctx", "256", "--no-isolate") as command, httpx.Client(timeout=SECONDS) as client:
        with client.stream("POST", f"{command.url}/v1/chat/completions", json=fields) as stream:
            events = stream.iter_lines()
            first = next(events)
            command.process.send_signal(signal.SIGTERM)
            told = [first, *filter(None, events)]
        assert told[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in told[-2]
        assert command.ended() == 143


def test_what_lasts_too_long_is_broken_off() -> None:
    app = create(Pool([str(MODEL)], isolate=False), ServerSettings(drain_seconds=0.2))
    told: list[str] = []
    running = Running(app, app.state.server, told.append)
    listeners = bound("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(listeners)), daemon=True)
    address = listeners[0].getsockname()
    thread.start()
    with half_a_request(url(*address)) as connection:
        running.handle_exit(signal.SIGTERM, None)
        assert connection.recv(100).startswith(b"HTTP/1.1 503 ")
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert "1 request is answered first, for 0.2 s at most" in told


def test_a_second_signal_ends_it_at_once() -> None:
    with serving(MODEL, "--n-ctx", "256") as command:
        command.said("loaded in")
        children = command.children()
        with half_a_request(command.url):
            command.process.send_signal(signal.SIGTERM)
            command.said("answered first")
            command.process.send_signal(signal.SIGTERM)
            assert command.ended() == 143
        assert not psutil.wait_procs(children, timeout=5)[1]


def test_where_others_can_ask_a_key_is_drawn_and_printed() -> None:
    with serving(MODEL, "--host", "0.0.0.0", "--quiet", "--no-isolate") as command:
        key = command.said(r"^key: (\S{32}) ")[1]
        port = next(
            each.laddr.port
            for each in psutil.Process(command.process.pid).net_connections()
            if each.status == psutil.CONN_LISTEN
        )
        url = f"http://127.0.0.1:{port}/metrics"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"x-api-key": key}).status_code == 200
        assert len(command.lines) == 1  # it says no more than it must


def test_the_key_may_be_in_the_environment_and_names_on_the_command_line() -> None:
    given = ("--alias", "gpt-4o", "--alias", f"sonnet={MODEL.stem}", "--allow-host", "box.lan")
    with serving(MODEL, *given, "--no-isolate", EDGE_LLAMA_API_KEY="sk-secret") as command:
        headers = {"host": "box.lan", "authorization": "Bearer sk-secret"}
        assert httpx.get(f"{command.url}/metrics", headers=headers).status_code == 200
        assert httpx.get(f"{command.url}/metrics").status_code == 401
        assert "sk-secret" not in "\n".join(command.lines)


def test_requests_share_the_cells_that_are_asked_for() -> None:
    with serving(MODEL, "--no-isolate", "--n-ctx", 512, "--kv-cells", 1024, "--cache-memory", "1M") as command:
        command.said("tokens of context")
        assert f'edge_llama_model_cells{{model="{MODEL.stem}"}} 1024.0' in httpx.get(f"{command.url}/metrics").text


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
def test_it_listens_at_an_address_of_ipv6() -> None:
    with serving(MODEL, "--host", "::1", "--no-isolate") as command:
        assert command.url.startswith("http://[::1]:")
        assert httpx.get(f"{command.url}/health").status_code == 200


def refused(*arguments: object, **environment: str) -> str:
    """What ``serve`` says when it does not begin: one line, exit 2."""
    command = [EDGE_LLAMA, "serve", *map(str, arguments)]
    env = {**os.environ, "NO_COLOR": "1", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return done.stderr


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused(MODEL, "--port", port)
    assert said == (
        f"edge-llama: http://127.0.0.1:{port}: cannot listen there: another program listens there; "
        "give another --port, or 0 for any that is free\n"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("no-such-model.gguf",), "no-such-model.gguf"),
        ((MODEL, "--memory", "12X"), "--memory 12X: expected a size such as 500M or 2G"),
        ((MODEL, "--cache-memory", "much"), "--cache-memory much: expected a size such as 500M or 2G"),
        ((MODEL, "--kv-cells", "1"), "kv_cells is 1"),
        ((MODEL, "--alias", "=small_talk"), "--alias =small_talk: expected NAME or NAME=MODEL"),
        ((MODEL, "--allow-origin", "*"), "--allow-origin *: expected SCHEME://HOST"),
        ((MODEL, "--api-key", "two words"), "--api-key: expected letters"),
    ],
)
def test_what_can_not_be_served_is_told_in_one_line(arguments: tuple[object, ...], problem: str) -> None:
    said = refused(*arguments, "--port", "0")
    assert problem in said
    assert said.count("\n") == 1


def test_a_model_that_can_not_be_loaded_ends_it(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:100_000])
    said = refused(broken, "--port", "0").splitlines()
    assert said[-1].startswith(f"edge-llama: {broken}: ")


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text('raise ModuleNotFoundError("No module named", name="fastapi")')
    search = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    said = refused(MODEL, "--port", "0", PYTHONPATH=search)
    assert said == "edge-llama: serving needs the package fastapi; pip install 'edge-llama[serve]'\n"


def test_localhost_is_all_its_addresses_at_one_port() -> None:
    listeners = bound("localhost", 0)
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        assert not needs_key(listeners)
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.parametrize("host", ["203.0.113.7", "a" * 300])
def test_a_host_that_is_not_here_is_refused(host: str) -> None:
    with pytest.raises(EdgeLlamaError, match=r"give a name or an address|no such address"):
        bound(host, 0)

"""Whoever answers many callers: our engine, an older commit of it, and the peers that serve several at once.

Each is a process of its own. Peers are built or installed on first use (peers.py); ``EDGE_LLAMA_LLAMA_SERVER`` names a
llama-server to take instead. All run with the same threads, an f16 KV cache (OpenVINO: its own default) and without
flash attention.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import Answer, Child
from peers import CACHE, at_commit, environment, example_server, packages_of, program, program_environment
from rounds import CALLERS, Ask, Reply

N_CTX = 2048
"""Of each conversation."""
OPENVINO = "openvino-genai==2026.4.1.0"
SERVES = ("fastapi==0.165.0", "openai==3.57.0", "safetensors==0.8.0", "uvicorn==0.54.0", "websockets==17.4")
"""What llama-cpp-python's example server imports beside what is installed here."""
BEFORE = "01201c2"
"""The last commit whose engine serves its callers in turn."""
CONTENT, ENDS = re.compile(rb'"content": ?"[^"]'), re.compile(rb'"finish_reason": ?"')


class ChildSide:
    """A model in a child process that answers the jobs of :mod:`jobs`; ``start_child`` loads it there."""

    def __init__(self, name: str, start_child: Callable[[], Child]) -> None:
        self.name = name
        self._start_child = start_child
        self._child: Child | None = None

    def start(self) -> None:
        self._child = self._start_child()

    @property
    def ready(self) -> Answer:
        """What the child told of itself when the model was loaded."""
        assert self._child
        return self._child.ready

    def call(self, kind: str, **job: Any) -> Answer:
        """One of the child's jobs."""
        assert self._child
        return self._child.call(kind, **job)

    def ask(self, caller: int, ask: Ask, count: int) -> Reply:
        del caller
        found = self.call("ask", system=ask.system, question=ask.question, count=count)
        return Reply(found["first"], found["tokens"], found["seconds"], found.get("cached", -1))

    def stop(self) -> None:
        if self._child:
            self._child.close()


def edge_llama_side(model: Path, threads: int, *, commit: str = "", **options: Any) -> ChildSide:
    """The engine of these files, or of another commit, as a program uses it: threads that share a model.

    ``options`` are those of ``edge_llama.open``.
    """
    given = {"model": str(model), "n_ctx": N_CTX, "threads": threads, "flash_attention": False, **options}

    def start() -> Child:
        path = {"PYTHONPATH": str(at_commit(commit))} if commit else {}
        return Child([sys.executable, Path(__file__).with_name("our_child.py"), json.dumps(given)], path)

    return ChildSide(f"edge-llama at {commit}" if commit else "edge-llama", start)


def openvino_side(model: Path, threads: int) -> ChildSide:
    """openvino-genai's ContinuousBatchingPipeline, with its prefix cache; each step is taken as soon as it can be."""
    job = json.dumps({"model": str(model), "threads": threads, "callers": CALLERS})

    def start() -> Child:
        return Child([environment("openvino-genai", OPENVINO), Path(__file__).with_name("openvino_child.py"), job])

    return ChildSide("openvino-genai", start)


class Server:
    """A program that serves OpenAI's chat completions on this machine, asked with ``more`` fields in each request."""

    def __init__(
        self,
        name: str,
        port: int,
        command: Sequence[object],
        environment: Mapping[str, str],
        *,
        alive: str,
        more: Mapping[str, Any],
    ) -> None:
        """``alive`` is the path that answers with 200 once it serves."""
        self.name = name
        self.more = more
        self._port, self._alive = port, alive
        self._command, self._environment = list(map(str, command)), {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the program runs

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT, env=self._environment
        )
        ends = time.monotonic() + 300
        while not self._is_alive():
            if self._process.poll() is not None or time.monotonic() > ends:
                self.stop()
                raise OSError(f"{self.name} does not serve: {self.log()[-2000:]}")
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of its process, once it was started."""
        assert self._process
        return self._process.pid

    def log(self) -> str:
        """What it printed so far."""
        return os.pread(self._log.fileno(), 2**24, 0).decode("utf-8", "replace")

    def get(self, path: str) -> bytes:
        """OSError unless it answers with 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"{self.name} answered {response.status} to {path}")
        return response.read()

    def _is_alive(self) -> bool:
        try:
            self.get(self._alive)
        except OSError:
            return False
        return True

    def ask(self, caller: int, ask: Ask, count: int) -> Reply:
        del caller
        messages = [{"role": "system", "content": ask.system}, {"role": "user", "content": ask.question}]
        body = {"messages": messages, "max_tokens": count, "temperature": 0, "stream": True, **self.more}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        started = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"{self.name} answered {response.status}: {response.read()[:500]!r}")
        return reply(response, count, started)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def reply(lines: Iterable[bytes], count: int, started: float) -> Reply:
    """Read a stream of server-sent events; what is not needed is not parsed, since it runs beside the peer."""
    first, chunks, last = 0.0, 0, b""
    for line in lines:
        if CONTENT.search(line):
            first = first or time.perf_counter() - started
            chunks += 1
        elif ENDS.search(line):
            last = line
    seconds = time.perf_counter() - started
    end = json.loads(last.removeprefix(b"data:")) if last else {}
    whole = bool(end) and end["choices"][0]["finish_reason"] == "length"
    return Reply(first, count if whole else chunks, seconds, end.get("timings", {}).get("cache_n", -1))


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


# llama.cpp's server, llama-cpp-python's, and ours.


def llama_server(model: Path, threads: int, kind: str, *, slots: int = CALLERS, cells: int = CALLERS * N_CTX) -> Server:
    """With a cache of its own for each slot (``streams``), or ``unified`` cells."""
    port = free_port()
    built = Path(os.environ.get("EDGE_LLAMA_LLAMA_SERVER") or program("llama-server"))
    command = [built, "-m", model, "-np", slots, "-t", threads, "-tb", threads, "-c", cells, "-fa", "off", "--metrics"]
    command += ["--kv-unified" if kind == "unified" else "--no-kv-unified", "--host", "127.0.0.1", "--port", port]
    more = {"model": model.stem, "ignore_eos": True}
    return Server(f"llama-server, {kind}", port, command, program_environment(), alive="/health", more=more)


def python_server(
    model: Path, threads: int, ends: Sequence[int], *, slots: int = CALLERS, cells: int = CALLERS * N_CTX
) -> Server:
    """``examples/server/server.py`` of llama-cpp-python, with the settings of its own example for a small model.

    ``ends`` are the tokens that would end an answer.
    """
    port = free_port()
    settings = {"path": str(model), "alias": "it", "n_ctx": cells, "n_seq_max": slots, "kv_unified": True}
    settings |= {"threads": threads, "threads_batch": threads, "flash_attn": False, "store_logits": False}
    config = CACHE / "llama-cpp-python-server.json"
    config.write_text(json.dumps({"server": {"port": port}, "model": settings}), "utf-8")
    more = {"model": "it", "logit_bias": {str(token): -1e4 for token in ends}}
    path = {"PYTHONPATH": str(packages_of(environment("llama-cpp-python-server", *SERVES)))}
    command = [sys.executable, example_server(), "-C", config]
    return Server("llama-cpp-python's server", port, command, path, alive="/healthz", more=more)


def edge_llama_server(model: Path, threads: int, ends: Sequence[int], **options: Any) -> Server:
    """``edge-llama serve``; ``options`` are its own by their names: ``n_ctx=2048`` is ``--n-ctx 2048``."""
    port = free_port()
    given = {"port": port, "threads": threads, "flash_attn": "off", "kv": "f16", "n_ctx": N_CTX, **options}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    more = {"model": model.stem, "logit_bias": {str(token): -100 for token in ends}}
    command = [Path(sys.executable).with_name("edge-llama"), "serve", model, *flags]
    return Server("edge-llama serve", port, command, {}, alive="/health", more=more)

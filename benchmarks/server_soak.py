"""Clients that come and leave at random on ``edge-llama serve``: none gets an error of ours, and memory stays.

    make test-server-soak                                # 32 clients for 10 minutes
    make test-server-soak ARGS="--minutes 1 --json"

Of the requests, three in ten are left by their client at a random moment (before the answer, amid a stream, or while
they are still sent), and one in twenty is malformed; the others are whole: chats in OpenAI's and Anthropic's form, as
streams and not, completions, tokens counted. Half of the chats begin with one of four system prompts. Printed, and
the exit code too:

errors  a status of 5xx, a stream without its end, a connection that breaks, a malformed request that is not a 4xx
lost    clients that wait a quarter of an hour after the end
memory  growth of the server's own memory and its children's from the second fifth of the time to the last (< 2 %)
left    what the server says that is still running at the end
"""

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import psutil
from comparison import say, started
from concurrency import model_file
from peers import ROOT
from sides import Server, edge_llama_server
from soak import GROWTH, PATIENCE, fifths, growth, told

from edge_llama.host import devices

N_CTX = 2048
WORDS = tuple((ROOT / "README.md").read_text("utf-8").split())
_FILLING = 450
"""Words of a prompt of which eight fill the cells."""
LEAVING, MALFORMED = 0.3, 0.05
"""Parts of all requests."""
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Report:
    """Of a soak: minutes, counts of requests by what came of them, bytes."""

    minutes: float
    requests: dict[str, int]
    errors: list[str]
    lost: int
    left: dict[str, float]
    growth: float
    fifths: dict[str, list[float]]
    """Memory of the server's process and of its children in each fifth of the time."""

    @property
    def is_good(self) -> bool:
        return not self.errors and not self.lost and not any(self.left.values()) and self.growth < GROWTH

    def __str__(self) -> str:
        lines = (
            f"{self.minutes:g} minutes: "
            + ", ".join(f"{count:,} {how}" for how, count in sorted(self.requests.items())),
            f"  errors of ours: {len(self.errors)}",
            *(f"    {error}" for error in self.errors[:10]),
            f"  lost clients: {self.lost}; left in the server: {self.left}",
            f"  memory grew by {self.growth:.1%}; goal < {GROWTH:.0%}; MB by fifths of the time: "
            + ", ".join(f"{name} {told(each)}" for name, each in self.fifths.items()),
        )
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--pause", type=float, default=5, help="mean seconds between a client's requests")
    parser.add_argument("--threads", type=int, default=devices.cpu_threads())
    parser.add_argument("--seed", type=int, default=19)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    given = {"n_ctx": N_CTX, "max_running": 8, "kv_cells": 4 * N_CTX, "cache_memory": "128M"}
    side = edge_llama_server(model_file(options.model), options.threads, (), **given, max_queued=2 * options.clients)
    with started([side]):
        soak = Soak(side, options.seed, options.pause)
        report = soak.run(options.clients, 60 * options.minutes)
    say(str(report))
    if options.json:
        print(json.dumps(asdict(report), indent=1))
    sys.exit(0 if report.is_good else 1)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request's path and body."""

    path: str
    body: bytes


@dataclass(slots=True)
class Soak:
    """Clients of a server, and what becomes of them."""

    side: Server
    seed: int
    pause: float
    """The mean of a client's seconds between requests."""
    came: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def run(self, clients: int, seconds: float) -> Report:
        self._fill()
        threads = [threading.Thread(target=self._client, args=(number,), daemon=True) for number in range(clients)]
        for thread in threads:
            thread.start()
        samples = self._sampled(seconds)
        self._is_over.set()
        ends = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        lost = sum(thread.is_alive() for thread in threads)
        growing = growth([server + children for server, children in samples])
        server, children = (fifths(each) for each in zip(*samples, strict=True))
        medians = {"the server": server, "its children": children}
        return Report(seconds / 60, dict(self.came), self.errors, lost, self._left(), growing, medians)

    def _fill(self) -> None:
        """Have the model loaded, and all cells in use at once: by then the engine has touched what it works in."""
        for _ in range(2):
            prompts = [
                _completion(np.random.default_rng([self.seed, number]), self.side, _FILLING) for number in range(8)
            ]
            threads = [threading.Thread(target=self._whole, args=(prompt,)) for prompt in prompts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _sampled(self, seconds: float) -> list[tuple[float, float]]:
        """Bytes of the server and of its children, until the time is over."""
        samples, ends = [], time.monotonic() + seconds
        while time.monotonic() < ends:
            samples.append(own_bytes(self.side.pid))
            time.sleep(min(2, seconds / 20))
        return samples

    def _left(self) -> dict[str, float]:
        """What still runs or waits ten seconds later, by the server's metrics."""
        ends = time.monotonic() + 10
        while any((left := working(self.side)).values()) and time.monotonic() < ends:
            time.sleep(0.1)
        return left

    def _client(self, number: int) -> None:
        rng = np.random.default_rng([self.seed, number])
        while not self._is_over.wait(rng.exponential(self.pause)):
            drawn = rng.random()
            how = "left" if drawn < LEAVING else "malformed" if drawn < LEAVING + MALFORMED else "whole"
            try:
                what, problem = self._request(rng, how)
            except (OSError, http.client.HTTPException, ValueError) as error:
                what, problem = how, f"{type(error).__name__}: {error}"
            with self._lock:
                self.came[what] += 1
                self.errors += [f"{what}: {problem}"] if problem else []

    def _request(self, rng: np.random.Generator, how: str) -> tuple[str, str]:
        """What became of a request, and what was wrong with that or ''."""
        if how == "malformed":
            name = str(rng.choice(list(WRONG)))
            return f"malformed: {name}", self._refused(WRONG[name](rng, self.side))
        make = KINDS[int(rng.integers(len(KINDS)))]
        sent = make(rng, self.side)
        if how == "left":
            return "left", self._left_alone(rng, sent)
        return sent.path, self._whole(sent)

    def _connection(self) -> http.client.HTTPConnection:
        host, _, port = self.side.url.removeprefix("http://").partition(":")
        return http.client.HTTPConnection(host, int(port), timeout=PATIENCE)

    def _response(self, sent: Sent) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection()
        try:
            connection.request("POST", sent.path, sent.body, JSON)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        return response, body

    def _whole(self, sent: Sent) -> str:
        response, body = self._response(sent)
        if response.status != 200:
            return f"status {response.status}: {body[:300]!r}"
        if "event-stream" not in response.headers["Content-Type"]:
            json.loads(body)
            return ""
        return "" if body.rstrip().endswith((b"[DONE]", b'"type":"message_stop"}')) else f"no end: {body[-200:]!r}"

    def _refused(self, sent: Sent) -> str:
        response, body = self._response(sent)
        is_told = 400 <= response.status < 500 and json.loads(body)["error"]["message"]
        return "" if is_told else f"status {response.status}: {body[:300]!r}"

    def _left_alone(self, rng: np.random.Generator, sent: Sent) -> str:
        """Leave: while the body is sent, before the status, or amid the answer. An error before that is one."""
        connection = self._connection()
        try:
            moment = int(rng.integers(3))
            connection.putrequest("POST", sent.path)
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(sent.body)))
            connection.endheaders(sent.body[: len(sent.body) // 2] if moment == 0 else sent.body)
            if moment == 1:
                time.sleep(float(rng.uniform(0, 3)))
            if moment == 2:
                response = connection.getresponse()
                if response.status >= 500:
                    return f"status {response.status}: {response.read()[:300]!r}"
                response.read(int(rng.integers(1, 2000)))
        finally:
            connection.close()
        return ""


def own_bytes(pid: int) -> tuple[float, float]:
    """Memory of a process and of its children, each alone: what is mapped comes and goes with the page cache."""
    process = psutil.Process(pid)
    memories = [each.memory_info() for each in (process, *process.children(recursive=True))]
    own, *others = (float(memory.rss - memory.shared) for memory in memories)
    return own, sum(others)


def working(side: Server) -> dict[str, float]:
    """How many requests run and wait, by ``/metrics``."""
    found = {}
    for line in side.get("/metrics").decode().splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in ("edge_llama_model_running", "edge_llama_model_queued"):
            found[name] = found.get(name, 0.0) + float(line.split()[-1])
    if len(found) != 2:
        raise OSError("the metrics don't say what runs and waits")
    return found


# What is sent.


def _chat(rng: np.random.Generator, side: Server, *, is_streamed: bool) -> Sent:
    system = {"role": "system", "content": _text(np.random.default_rng(int(rng.integers(4))), 300)}
    messages = [*([system] if rng.random() < 0.5 else []), {"role": "user", "content": _text(rng)}]
    return _sent(side, "/v1/chat/completions", messages=messages, max_tokens=_length(rng), stream=is_streamed)


def _messages(rng: np.random.Generator, side: Server, *, is_streamed: bool) -> Sent:
    system = {"system": _text(np.random.default_rng(int(rng.integers(4))), 300)} if rng.random() < 0.5 else {}
    messages = [{"role": "user", "content": _text(rng)}]
    return _sent(side, "/v1/messages", messages=messages, max_tokens=_length(rng), stream=is_streamed, **system)


def _completion(rng: np.random.Generator, side: Server, words: int | None = None) -> Sent:
    return _sent(side, "/v1/completions", prompt=_text(rng, words), max_tokens=_length(rng))


def _counted(rng: np.random.Generator, side: Server) -> Sent:
    return _sent(side, "/v1/messages/count_tokens", messages=[{"role": "user", "content": _text(rng)}])


def _sent(side: Server, path: str, **fields: Any) -> Sent:
    return Sent(path, json.dumps({"model": side.more["model"], **fields}).encode())


def _text(rng: np.random.Generator, words: int | None = None) -> str:
    return " ".join(rng.choice(WORDS, words or int(rng.integers(20, 400))))


def _length(rng: np.random.Generator) -> int:
    return int(rng.integers(8, 97))


KINDS: tuple[Callable[[np.random.Generator, Server], Sent], ...] = (
    lambda rng, side: _chat(rng, side, is_streamed=True),
    lambda rng, side: _chat(rng, side, is_streamed=False),
    lambda rng, side: _messages(rng, side, is_streamed=True),
    lambda rng, side: _messages(rng, side, is_streamed=False),
    _completion,
    _counted,
)
WRONG: dict[str, Callable[[np.random.Generator, Server], Sent]] = {
    "no JSON": lambda rng, _: Sent("/v1/chat/completions", _text(rng).encode()),
    "no UTF-8": lambda _, side: Sent("/v1/messages", b'{"model": "%s", "messages": "\xff\xfe"}' % _name(side)),
    "deep": lambda _, __: Sent("/v1/chat/completions", b"[" * 100_000 + b"]" * 100_000),
    "no messages": lambda _, side: _sent(side, "/v1/chat/completions"),
    "a wrong type": lambda _, side: _sent(side, "/v1/messages", messages=5, max_tokens=8),
    "an unknown field": lambda rng, side: _sent(side, "/v1/completions", prompt=_text(rng), max_token=8),
    "an unknown model": lambda _, __: Sent("/v1/completions", b'{"model": "no", "prompt": "a"}'),
    "too long": lambda rng, side: _sent(side, "/v1/completions", prompt=_text(rng, 20_000), max_tokens=8),
    "out of range": lambda rng, side: _sent(side, "/v1/completions", prompt=_text(rng), temperature=-1),
}
"""Malformed requests."""


def _name(side: Server) -> bytes:
    return str(side.more["model"]).encode()


if __name__ == "__main__":
    main()

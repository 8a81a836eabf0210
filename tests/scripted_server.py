"""A real HTTP server that lists a model as vLLM, llama-server or ours would, and answers as a test tells it to."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from edge_llama.prompts.tokenizer import Tokenizer

DONE = "[DONE]"
NAME = "scripted"
LISTS: dict[str, dict[str, Any]] = {
    "edge-llama": {"owned_by": "edge-llama", "edge_llama": {"n_ctx": 512, "aliases": [], "max_tokens": None}},
    "vllm": {"owned_by": "vllm", "max_model_len": 512},
    "llamacpp": {"owned_by": "llamacpp", "meta": {"n_ctx": 512, "n_ctx_train": 1024}},
    "other": {"owned_by": "somebody", "max_model_len": 512},
}
"""What these servers say of a model, by what they call themselves."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response. ``parts`` are written one after the other; ``is_cut``: the connection breaks after them."""

    status: int = 200
    parts: Sequence[bytes] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    is_cut: bool = False
    waits_for: threading.Event | None = None
    """What is waited for before the last part."""


def events(*told: object, is_cut: bool = False, waits_for: threading.Event | None = None) -> Reply:
    """An event stream: texts as they stand, objects as JSON."""
    parts = [f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n".encode() for each in told]
    return Reply(200, parts, {"Content-Type": "text/event-stream"}, is_cut, waits_for)


def said(text: str = "", tokens: Sequence[int] | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """An event of a completion."""
    choice = {"index": 0, "text": text, "finish_reason": reason, **more}
    return {"choices": [choice if tokens is None else {**choice, "token_ids": list(tokens)}]}


def as_json(status: int, content: object, **headers: str) -> Reply:
    """A JSON response."""
    return Reply(status, [json.dumps(content).encode()], {"Content-Type": "application/json", **headers})


@dataclass(slots=True)
class Scripted:
    """The server: what came, and what is answered to completions, in turn; the last again and again."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    """Method, path, headers and body of each."""
    replies: list[Reply] = field(default_factory=list)
    places: dict[str, Reply] = field(default_factory=dict)
    """Other answers, by their paths."""

    @property
    def completions(self) -> list[Any]:
        """The bodies of the requests for completions."""
        return [body for _, path, _, body in self.requests if path == "/v1/completions"]

    def answer(self, path: str) -> Reply:
        if path in self.places:
            return self.places[path]
        if path == "/v1/completions":
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return as_json(404, {"error": {"message": "no such endpoint"}})


@contextmanager
def scripted(
    tokenizer: Tokenizer, kind: str = "edge-llama", certificate: tuple[Path, Path] | None = None
) -> Iterator[Scripted]:
    """Serve until the end of the block, with ``tokenizer``'s vocabulary; by https with a certificate and its key."""
    script = Scripted()
    script.places["/v1/models"] = as_json(200, {"object": "list", "data": [{"id": NAME, **LISTS[kind]}]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script, tokenizer, is_vllm=kind == "vllm"))
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    script.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _handler(script: Scripted, tokenizer: Tokenizer, *, is_vllm: bool) -> type[BaseHTTPRequestHandler]:
    names = {token: text for text, token in tokenizer.control_tokens.items()}

    def tokenized(body: Any) -> Reply:
        return as_json(200, {"tokens": tokenizer.encode(body["prompt" if is_vllm else "content"])})

    def detokenized(body: Any) -> Reply:
        text = "".join(names[token] for token in body["tokens"])
        return as_json(200, {"prompt" if is_vllm else "content": text})

    own: dict[str, Callable[[Any], Reply]] = {"/tokenize": tokenized, "/detokenize": detokenized}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            script.requests.append((self.command, self.path, dict(self.headers), body))
            has_own = self.path in own and self.path not in script.places
            reply = own[self.path](body) if has_own else script.answer(self.path)
            with suppress(OSError):
                self._write(reply)

        def _write(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.is_cut:
                self.send_header("Content-Length", str(1 << 40))
            self.end_headers()
            for at, part in enumerate(reply.parts):
                if reply.waits_for and at == len(reply.parts) - 1:
                    reply.waits_for.wait(60)
                self.wfile.write(part)
                self.wfile.flush()

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler

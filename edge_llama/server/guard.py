"""The outermost part of the application: who may ask (:mod:`edge_llama.server.gate`), and how much.

Each request passes in this order: size of the headers, Host, Origin (a preflight is answered here), key, whether the
server takes more, body. What is refused is told in the form of the API that was asked. Every response gets the headers
that keep browsers from doing more with it than they should, and an id that the log's line has too; that line has
numbers, never content.
"""

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_llama.errors import printable
from edge_llama.server import bodies
from edge_llama.server.failures import ANTHROPIC_PATHS, ApiError, error_response
from edge_llama.server.gate import HEALTH, Gate, is_preflight, preflight
from edge_llama.server.handling import LEFT
from edge_llama.server.metrics import Counts, Ended, Metrics
from edge_llama.server.settings import Limits
from edge_llama.server.traffic import Traffic

_log = logging.getLogger("edge_llama.server")
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_GRACE = 10.0
"""Seconds between a request's own deadline, which ends it in the API's form, and its end whatever it does."""
_LONGEST_PATH = 200


class Guard:
    """An ASGI application before another."""

    def __init__(self, app: ASGIApp, *, gate: Gate, limits: Limits, traffic: Traffic, metrics: Metrics) -> None:
        self._app = app
        self._gate = gate
        self._limits = limits
        self._traffic = traffic
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(scope, receive, send, self._limits)
        try:
            await self._answer(scope, receive, reply)
        finally:
            self._tell(scope, reply)

    async def _answer(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        try:
            await self._admit(scope, receive, reply)
        except ApiError as error:
            await reply.respond(error_response(error, scope["path"]))
        except bodies.ClientLeftError:
            reply.status = LEFT
        except asyncio.CancelledError:  # the server ends, and this one did not in time
            if not reply.has_begun:
                await reply.respond(error_response(_ends(), scope["path"]))
            raise
        except Exception as error:
            # Its text may be a client's: the places say enough.
            places = [f"{each.filename}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)]
            _log.error("%s: %s at %s", reply.id, type(error).__name__, " < ".join(places[:-6:-1]))
            if not reply.has_begun:
                failed = ApiError(500, f"the server failed: its log has more under {reply.id}")
                await reply.respond(error_response(failed, scope["path"]))

    async def _admit(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        headers = Headers(scope=scope)
        self._check_size(scope)
        server = scope.get("server")
        host = self._gate.host(headers, server[0] if server else None)
        reply.cors = self._gate.origin(headers, host)
        if is_preflight(scope, headers):
            await reply.respond(preflight(headers))
            return
        self._gate.key(scope, headers)
        if scope["path"] == HEALTH:  # answered whatever else goes on
            await self._app(scope, receive, reply.send)
            return
        with self._place() as hold:
            if size := bodies.announced(headers):
                bodies.check_length(size, self._limits)
                receive = await self._taken(receive, reply, headers, hold)
            await self._within_time(scope, receive, reply)

    def _check_size(self, scope: Scope) -> None:
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._limits.header_bytes:
            text = f"the request's headers have {size:,} bytes, at most {self._limits.header_bytes:,} may be sent"
            raise ApiError(431, text, code="headers_too_large")

    @contextmanager
    def _place(self) -> Iterator[Callable[[int], None]]:
        """One of the places for requests. ApiError if none is free, or no more are given."""
        if self._traffic.is_draining:
            raise _ends()
        if self._traffic.running >= self._limits.requests:
            text = f"the server answers {self._limits.requests:,} requests, as many as it may at once"
            raise ApiError(429, text, code="too_many_requests", headers={"Retry-After": "1"})
        with self._traffic.one_more() as hold:
            yield hold

    async def _taken(self, receive: Receive, reply: "_Reply", headers: Headers, hold: Callable[[int], None]) -> Receive:
        """What gives the request's body to the application, once it is here and is JSON."""

        def count(nbytes: int) -> None:
            hold(nbytes)
            if self._traffic.held_bytes > self._limits.held_bytes:
                text = f"the server holds {self._limits.held_bytes:,} bytes of requests, as many as it may at once"
                raise ApiError(429, text, code="too_many_requests", headers={"Retry-After": "1"})

        body = await bodies.read(receive, self._limits, count)
        reply.is_read = True
        bodies.check_json(body, headers, self._limits)
        return bodies.replayed(body, receive)

    async def _within_time(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        try:
            async with asyncio.timeout(self._limits.seconds + _GRACE) as limit:
                await self._app(scope, receive, reply.send)
        except TimeoutError:
            if not limit.expired():
                raise
            if not reply.has_begun:
                text = f"the request was not answered within {self._limits.seconds:g} seconds"
                raise ApiError(504, text, code="timeout") from None

    def _tell(self, scope: Scope, reply: "_Reply") -> None:
        # A connection keeps the last request's scope, however long it rests: it shall not keep the answers.
        counted: Callable[[], Counts] | None = scope.get("state", {}).pop("counted", None)
        counts = counted() if counted else None
        endpoint = getattr(scope.get("route"), "path", None) or "other"
        seconds = time.monotonic() - reply.began
        self._metrics.ended(Ended(scope["method"], endpoint, reply.status, seconds, counts))
        tokens = f" prompt={counts.prompt} cached={counts.cached} generated={counts.generated}" if counts else ""
        path = printable(scope["raw_path"].decode("latin-1"))[:_LONGEST_PATH]  # as it was sent: without a space
        _log.info("%s %s %d%s %.0f ms %s", scope["method"], path, reply.status, tokens, 1000 * seconds, reply.id)


def _ends() -> ApiError:
    text = "the server is about to end and takes no more requests"
    return ApiError(503, text, code="draining", headers={"Retry-After": "5"})


class _Reply:
    """The response to a request, as it is sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._scope, self._receive, self._send, self._limits = scope, receive, send, limits
        self.id = f"req_{secrets.token_hex(12)}"
        self.began = time.monotonic()
        self.cors: Mapping[str, str] = {}
        self.status = LEFT
        """Until there is another: nobody waited for one."""
        self.has_begun = False
        self.is_read = bodies.announced(Headers(scope=scope)) == 0
        """Whether all of the request was taken."""

    async def respond(self, response: Response) -> None:
        """Send a response of the guard's own."""
        await response(self._scope, self._receive, self.send)

    async def send(self, message: Message) -> None:
        """Send a part of the response, the first with the headers that all have."""
        if message["type"] == "http.response.start":
            self.has_begun, self.status = True, message["status"]
            self._add_headers(MutableHeaders(scope=message))
        elif not self.is_read and not message.get("more_body", False):
            # The client may still be writing. It has the whole answer now, and some time to notice.
            await self._send({**message, "more_body": True})
            await bodies.discard(self._receive, self._limits)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.id
        if self._scope["path"].startswith(ANTHROPIC_PATHS):
            headers["request-id"] = self.id
        for name, value in {**SECURITY, **self.cors}.items():
            headers.setdefault(name, value)
        headers.add_vary_header("Origin")
        if not self.is_read:
            headers["connection"] = "close"

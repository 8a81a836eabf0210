"""Answers as they come (server-sent events), or whole; either way a client that leaves ends them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from edge_llama.errors import EdgeLlamaError
from edge_llama.generation import Answer, FinishReason, Piece, Timings
from edge_llama.server.asking import Answers
from edge_llama.server.failures import ANTHROPIC_PATHS, ApiError, encoded, error_response, failure

_T = TypeVar("_T")
COMMENT = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""Anthropic's sign of life."""
_LAST_SECONDS = 0.5
"""That the last event of a stream may take which is ended."""
_END = {"type": "http.response.body", "body": b"", "more_body": False}


@dataclass(frozen=True, slots=True)
class Event:
    """One event: an object, or a text as it stands; some APIs name them."""

    data: Mapping[str, Any] | str
    name: str | None = None

    def __bytes__(self) -> bytes:
        named = b"" if self.name is None else b"event: %s\n" % self.name.encode()
        return b"%sdata: %s\n\n" % (named, self.data.encode() if isinstance(self.data, str) else encoded(self.data))


class Writer(Protocol):
    """An API's way to tell of answers, as they come or whole."""

    def begin(self, timings: Timings) -> Iterable[Event]:
        """Before the first piece; ``timings`` count the prompt's tokens by then, unless it takes long."""

    def piece(self, choice: int, piece: Piece) -> Iterable[Event]:
        """A piece of the answer number ``choice``; the last one of it has a finish_reason."""

    def end(self, answers: Sequence[Answer]) -> Iterable[Event]:
        """After the last piece of all."""

    def failed(self, error: ApiError) -> Iterable[Event]:
        """Instead of the rest: the status was sent already."""

    def body(self, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """The answers, whole."""


def finish_reason(reason: FinishReason) -> str:
    """Why an answer ended. ApiError if it was not its own end: the model was closed."""
    if reason == "cancelled":
        raise ApiError(503, "the answer was cut off: the model was closed", code="cancelled")
    return reason


class EventStream(Response):
    """A response with the answers' events.

    The status is sent with the first piece, or once a client would take silence for the end, be it that the model is
    still being loaded: what goes wrong before is an error like any other.
    """

    def __init__(
        self,
        begin: Callable[[], Awaitable[Answers]],
        writer: Callable[[Answers], Writer],
        path: str,
        *,
        keep_alive_seconds: float,
        headers: Mapping[str, str],
    ) -> None:
        """``begin`` has the answers begun, ``writer`` gives what tells of them; ``path`` is the request's."""
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}, media_type="text/event-stream"
        )
        del self.headers["content-length"]
        self._beginning, self._writer_of, self._path, self._silence = begin, writer, path, keep_alive_seconds
        self._told: tuple[Answers, Writer] | None = None
        """The answers and who tells of them, once they have begun."""
        self._has_begun = False
        self._is_introduced = False
        """Whether the writer has begun, too."""
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a client that leaves ends the answers."""
        writing = asyncio.create_task(self._write(scope, receive, send))
        others = (asyncio.create_task(left(receive)), asyncio.create_task(self._keep_alive(send)))
        try:
            await asyncio.wait((writing, *others), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _cancelled(writing, *others)
            if writing.cancelled() and self._has_begun:
                await self._cut(send)
            raise
        finally:
            await _cancelled(*others)
            if not writing.done():
                await _cancelled(writing)
        if not writing.cancelled():
            writing.result()

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with await self._beginning() as answers:
                self._told = answers, self._writer_of(answers)
                await self._tell(*self._told, send)
        except (EdgeLlamaError, ApiError) as error:
            told = failure(error) if isinstance(error, EdgeLlamaError) else error
            if not self._has_begun:
                self._has_begun = True
                await error_response(told, self._path)(scope, receive, send)
                return
            await self._fail(told, send)

    async def _tell(self, answers: Answers, writer: Writer, send: Send) -> None:
        async for choice, piece in answers:
            await self._begin(send)
            await self._send(send, writer.piece(choice, piece))
        await self._send(send, writer.end(await answers.whole()))
        await send(_END)

    async def _cut(self, send: Send) -> None:
        """Say that the server ends it, unless the client reads too slowly for that."""
        text = "the server ended the answer before it was whole: it took too long, or the server is about to end"
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._fail(ApiError(503, text, code="ended"), send)

    async def _fail(self, error: ApiError, send: Send) -> None:
        """End with an event of an error."""
        await self._send(send, self._told[1].failed(error) if self._told else [_failed(error, self._path)])
        await send(_END)

    async def _begin(self, send: Send) -> None:
        """Send what comes before the first piece, as far as it is known."""
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if self._told and not self._is_introduced:
            self._is_introduced = True
            answers, writer = self._told
            await self._send(send, writer.begin(answers.timings))

    async def _send(self, send: Send, events: Iterable[Event]) -> None:
        if data := b"".join(map(bytes, events)):
            self._last = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        self._last = time.monotonic()
        while True:
            silent = time.monotonic() - self._last
            if silent < self._silence:
                await asyncio.sleep(self._silence - silent)
                continue
            await self._begin(send)
            sign = PING if self._path.startswith(ANTHROPIC_PATHS) else COMMENT
            await send({"type": "http.response.body", "body": sign, "more_body": True})
            self._last = time.monotonic()


def _failed(error: ApiError, path: str) -> Event:
    """An error where nothing was told before, in the form of the API that ``path`` belongs to."""
    return Event(error.body(path), "error" if path.startswith(ANTHROPIC_PATHS) else None)


async def unless_left(request: Request, work: Awaitable[_T]) -> _T | None:
    """What ``work`` gives; None, and it is cancelled, if the client leaves before."""
    task, leaving = asyncio.ensure_future(work), asyncio.create_task(left(request.receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancelled(leaving)
        if not task.done():
            await _cancelled(task)
    return None if task.cancelled() else task.result()


async def left(receive: Receive) -> None:
    """Wait until the client has left; the request's body was read by then."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

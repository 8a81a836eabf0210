"""A client's connection: uvicorn's, which also ends those that never finish asking, and refuses as the rest does."""

import asyncio
import logging
import sys
from typing import Any

import h11
from starlette.datastructures import MutableHeaders
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_llama.server.failures import ApiError, error_response
from edge_llama.server.guard import SECURITY
from edge_llama.server.settings import Limits

_log = logging.getLogger("edge_llama.server")
_LINGER_SECONDS = 1.0
"""That a refused client may still write: closed at once, its system would drop what it was told."""


class Connection(H11Protocol):
    """What no application ever sees: headers that don't come, are too large or are none, and too many connections."""

    def __init__(self, limits: Limits, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for a request, unless there are too many that do."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            text = f"{self._limits.connections:,} connections are open, as many as may be"
            self._refuse(ApiError(429, text, code="too_many_requests", headers={"Retry-After": "1"}))
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a request must come to the end of its headers in time."""
        if self._is_refused:
            return
        super().data_received(data)
        if self._is_refused:
            return
        if self.conn.their_state is h11.IDLE:
            self._watch()
        else:
            self._stop_watching()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn says the same of all
        """What can't be understood is told as every other error, without a word of it."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        text = "the request is no HTTP/1.1 that can be understood"
        if status == 431:
            text = f"the request's headers have more than {self._limits.header_bytes:,} bytes, which is the limit"
        self._refuse(ApiError(status, text))

    def _watch(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._limits.header_seconds, self._give_up)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        text = f"the request's headers were not whole after {self._limits.header_seconds:g} seconds, which is the limit"
        self._refuse(ApiError(408, text, code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Say why, if nothing was said yet, and close."""
        self._stop_watching()
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        _log.info("refused: %d %s", error.status, error.message)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what the application says of this request comes too late
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        self.transport.write(self._told(error))
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _told(self, error: ApiError) -> bytes:
        response = error_response(error, self.scope["path"] if self.scope else "")
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"  # its answer has no body
        headers = MutableHeaders(raw=response.raw_headers)
        headers.update({**SECURITY, "connection": "close"})
        events = (
            h11.Response(status_code=error.status, headers=headers.raw),
            h11.Data(data=b"" if is_head else bytes(response.body)),
            h11.EndOfMessage(),
        )
        return b"".join(self.conn.send(event) or b"" for event in events)

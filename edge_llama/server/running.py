"""A server at work: uvicorn with our limits, the model loaded in the background, and an end that drops no answer."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from edge_llama.errors import EdgeLlamaError
from edge_llama.server.connection import Connection
from edge_llama.server.handling import Server
from edge_llama.server.settings import ServerSettings

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection: one that the server closes just then fails a request."""


def config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn is to serve: it believes no proxy's headers, and logs nothing, for the guard does."""
    connection: Any = partial(Connection, settings.limits)
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=settings.limits.header_bytes,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )


class Running(uvicorn.Server):
    """A server until a signal ends it, after its answers; a second signal ends the process at once."""

    def __init__(self, app: FastAPI, server: Server, tell: Callable[[str], None]) -> None:
        """``server`` is the application's; ``tell`` gets lines for people."""
        super().__init__(config(app, server.settings))
        self.ended_by: int | None = None
        """The signal."""
        self.failure: EdgeLlamaError | None = None
        """Why the only model can't be loaded."""
        self._server, self._tell = server, tell
        self._until: float | None = None
        """When answers are ended that still run; None while nothing ends."""
        self._loading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer; then load the model, if there is but one."""
        await super().startup(sockets)
        if len(self._server.pool.entries) == 1:
            self._loading = asyncio.create_task(self._load(self._server.pool.entries[0].name))

    async def _load(self, name: str) -> None:
        began = time.monotonic()
        try:
            model = await self._server.pool.load(name)
            seconds = time.monotonic() - began
            self._tell(f"{name}: {model.context}; {model.placement}; loaded in {seconds:.1f} s")
        except EdgeLlamaError as error:
            self.failure = error
            self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal's handler
        """A signal came."""
        if self.ended_by is not None:
            os._exit(128 + self.ended_by)  # models' processes end with this one
        self.ended_by = sig

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end."""
        if self.ended_by is not None:
            self._drain()
        return await super().on_tick(counter)

    def _drain(self) -> None:
        """Take nothing more, and end once nothing runs, or that lasts too long."""
        traffic, seconds = self._server.traffic, self._server.settings.drain_seconds
        if self._until is None:
            traffic.is_draining = True
            self._until = time.monotonic() + seconds
            if count := traffic.running:
                what = "1 request is" if count == 1 else f"{count:,} requests are"
                self._tell(f"{what} answered first, for {seconds:g} s at most")
        if not traffic.running or time.monotonic() > self._until:
            self.should_exit = True


def serve(app: FastAPI, listeners: Sequence[socket.socket], tell: Callable[[str], None]) -> int:
    """Serve until a signal: the exit code, 130 for Ctrl-C and 143 for SIGTERM.

    Raises what loading the only model raises.
    """
    running = Running(app, app.state.server, tell)
    running.run(list(listeners))
    if running.failure:
        raise running.failure
    return 128 + (running.ended_by or signal.SIGTERM)

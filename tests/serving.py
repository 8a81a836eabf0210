"""Real servers for tests: uvicorn in a thread, on a free port of 127.0.0.1."""

import asyncio
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI

import edge_llama
from edge_llama.server.app import create
from edge_llama.server.listening import bound
from edge_llama.server.pool import Pool
from edge_llama.server.running import config
from edge_llama.server.settings import ServerSettings

_T = TypeVar("_T")
_SECONDS = 60
"""More than anything here takes."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    url: str
    """``http://127.0.0.1:PORT``, without a slash at its end."""
    client: httpx.Client
    """Asks it, with the key that it wants."""
    pool: Pool
    app: FastAPI
    _loop: asyncio.AbstractEventLoop

    @property
    def name(self) -> str:
        """What the first model is asked for by."""
        return self.pool.entries[0].name

    @property
    def model(self) -> edge_llama.Model:
        """The first model, loaded."""
        return self.wait(self._leased())

    def wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """What a coroutine gives, run in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_SECONDS)

    async def _leased(self) -> edge_llama.Model:
        async with self.pool.lease(self.name) as lease:
            return lease.model


@contextmanager
def serve(pool: Pool, settings: ServerSettings | None = None) -> Iterator[Served]:
    """Serve ``pool`` until the end of the block, which closes it. The host and port of ``settings`` are not used."""
    settings = settings or ServerSettings()
    app = create(pool, settings)
    server = uvicorn.Server(config(app, settings))
    loops: list[asyncio.AbstractEventLoop] = []

    async def run(listener: socket.socket) -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    with bound("127.0.0.1", 0)[0] as listener:
        thread = threading.Thread(target=lambda: asyncio.run(run(listener)), daemon=True)
        thread.start()
        try:
            _wait_for(server, thread)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
            with httpx.Client(base_url=url, headers=headers, timeout=_SECONDS) as client:
                yield Served(url, client, pool, app, loops[0])
        finally:
            server.should_exit = True
            thread.join(_SECONDS)
    assert not thread.is_alive(), "the server does not end"


def _wait_for(server: uvicorn.Server, thread: threading.Thread) -> None:
    until = time.monotonic() + _SECONDS
    while not server.started:
        assert thread.is_alive(), "the server ended before it began"
        assert time.monotonic() < until, "the server does not begin"
        time.sleep(0.01)


def exchanged(server: Served, data: bytes, *, is_ended: bool = False) -> bytes:
    """Send bytes as they are; what comes back until the server closes. With ``is_ended`` the client stops writing."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=_SECONDS) as connection:
        connection.sendall(data)
        if is_ended:
            connection.shutdown(socket.SHUT_WR)
        parts: list[bytes] = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)

"""A thread in which images are embedded, while the engine goes on with others."""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import AbortedError
from edge_llama.runtime.encoders import ImageEncoder
from edge_llama.runtime.request import Request

Embedded = Future[NDArray[np.float32]]
_NICER = 19
"""A seventieth of the share of a core that a thread of the engine has: between steps the cores are free."""


def _stand_back() -> None:
    """Leave the cores to the engine's threads while both want them, where threads have priorities of their own.

    Those that the encoder starts from this one inherit it. Where the two take turns as equals, the engine's wait for
    each other at each of a step's thousand barriers.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _NICER)


class EncoderThread:
    """Embeds one tile after the other, each for one request.

    The thread ends when none is left. While it lives, OpenMP's threads that llama.cpp started from it count, and with
    more of them than cores those of the engine sleep at each barrier, where they would have spun.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        self._jobs: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # the garbage collector may cancel while this thread is within
        self._current: Request | None = None
        self._is_closed = False

    def embed(self, request: Request, start: int, stop: int, on_done: Callable[[], None]) -> Embedded:
        """The embeddings of positions ``start`` to ``stop`` of the request's prompt; ``on_done`` is called then."""
        future: Embedded = Future()

        def run() -> None:
            try:
                future.set_result(self._embedded(request, start, stop))
            except BaseException as error:  # the scheduler's to tell
                future.set_exception(error)
            on_done()

        with self._lock:
            self._jobs.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="edge-llama-images", daemon=True)
                self._thread.start()
        return future

    def cancel(self, request: Request) -> None:
        """Stop what is being done for the request. Any thread may call it."""
        with self._lock:
            if self._current is request:
                self._encoder.abort()

    def close(self) -> None:
        """Stop everything and free the tower."""
        with self._lock:
            self._is_closed = True
            self._encoder.abort()
            thread = self._thread
        if thread:
            thread.join()
        self._encoder.close()

    def _serve(self) -> None:
        _stand_back()
        while (job := self._next()) is not None:
            job()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            self._thread = None
            return None

    def _embedded(self, request: Request, start: int, stop: int) -> NDArray[np.float32]:
        with self._lock:
            if self._is_closed or request.is_ended:
                raise AbortedError
            self._encoder.resume()
            self._current = request
        before, began = self._encoder.encoded, time.perf_counter()
        try:
            assert request.embed  # noqa: S101 - who makes such ids gives what they stand for
            return request.embed(start, stop)
        finally:
            with self._lock:
                self._current = None
            request.encoded(self._encoder.encoded - before, time.perf_counter() - began)

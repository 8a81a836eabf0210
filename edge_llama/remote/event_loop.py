"""One thread with an event loop for all that a model on a server is asked: no caller needs a thread of its own."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from edge_llama.errors import EngineError

T = TypeVar("T")
_SECONDS_TO_END = 5.0


class Job:
    """Work in the loop, which any thread may stop; the garbage collector, too."""

    def __init__(self, loop: "EventLoop") -> None:
        self._loop = loop
        self.task: asyncio.Task[None] | None = None
        """Used in the loop's thread alone."""
        self.is_cancelled = False
        """Whether it was told to stop."""
        self._was_told = False

    def cancel(self) -> None:
        """Stop it, if it is not over."""
        self.is_cancelled = True
        self._loop.later(self._cancel)

    def _cancel(self) -> None:
        if self.task and not self._was_told:  # a second time would interrupt the closing of its connection
            self._was_told = True
            self.task.cancel()

    def check_process(self) -> None:
        """See :meth:`EventLoop.check_process`."""
        self._loop.check_process()


class EventLoop:
    """Runs coroutines for any thread."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="edge-llama-remote", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What ``coroutine`` gives or raises. Who stops waiting, by Ctrl-C, stops it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def begin(self, work: Callable[[Job], Coroutine[Any, Any, None]], ended: Callable[[], None]) -> Job:
        """Have the coroutine that ``work`` gives for its job run; ``ended`` is called after it, also if it never began.

        Both are called in the loop's thread. EngineError if it was closed.
        """
        if self._is_closed:
            raise EngineError("the model is closed", remedy="open it again")
        job = Job(self)

        def begin() -> None:
            job.task = self._loop.create_task(work(job))
            job.task.add_done_callback(lambda _task: ended())

        self.later(begin)
        return job

    def later(self, work: Callable[[], None]) -> None:
        """Have ``work`` called in the loop's thread, in the order of these calls; not at all once it was closed."""
        if os.getpid() == self._pid:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(work)

    def check_process(self) -> None:
        """EngineError in a fork of the process that opened the model: threads are not copied."""
        if os.getpid() != self._pid:
            raise EngineError(
                f"the model was opened in process {self._pid}, of which this one is a fork",
                remedy="open the model after the fork, or start processes by spawn",
            )

    def at_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Have this awaited after all work has been stopped."""
        self._closers.append(closer)

    def close(self) -> None:
        """Stop all work, and the thread. May be called twice, and by the garbage collector."""
        if self._is_closed or os.getpid() != self._pid:
            return
        self._is_closed = True
        self.later(self._end.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(_SECONDS_TO_END)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())  # it looks up names
        finally:
            self._loop.close()

    async def _main(self) -> None:
        await self._end.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for closer in self._closers:
            await closer()

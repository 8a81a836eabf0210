"""One thread with an event loop for all that a model on a server is asked: no caller needs a thread of its own."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
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
        self._loop.later(self.stop)

    def stop(self) -> None:
        """The same in the loop's thread."""
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
        self._unended: dict[Job, Callable[[], None]] = {}
        """What ends the jobs that have not ended: whoever waits for one is told, whatever comes."""
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
        job = Job(self)

        def end(_task: object = None) -> None:
            self._unended.pop(job, None)
            ended()

        def begin() -> None:
            if self._is_closed:
                end()
                return
            job.task = self._loop.create_task(work(job))
            job.task.add_done_callback(end)

        self._unended[job] = end
        if self._is_closed or not self.later(begin):
            self._unended.pop(job, None)
            raise EngineError("the model is closed", remedy="open it again")
        return job

    def later(self, work: Callable[[], None]) -> bool:
        """Have ``work`` called in the loop's thread, in the order of these calls; False once that has ended."""
        if os.getpid() != self._pid:
            return False
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:
            return False
        return True

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
            for end in list(self._unended.values()):  # what came too late to begin
                end()

    async def _main(self) -> None:
        await self._end.wait()
        jobs = list(self._unended)
        for job in jobs:  # each ends what tasks it has of its own
            job.stop()
        await asyncio.gather(*(job.task for job in jobs if job.task), return_exceptions=True)
        for closer in self._closers:
            await closer()

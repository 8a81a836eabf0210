"""One thread that owns a tower: work is done there in turn, so callers may be many and may leave at any time."""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from edge_llama.backends.base import TextTower
from edge_llama.errors import EdgeLlamaError, EngineError
from edge_llama.runtime.encoders import ImageEncoder
from edge_llama.runtime.session import Session
from edge_llama.runtime.thread_pacer import Pace

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Job:
    """A piece of work for the engine's thread. ``cancel`` may be called from any thread, before, while or after."""

    def __init__(
        self, engine: "Engine", work: Callable[["Job"], None], on_error: Callable[[EdgeLlamaError], None] | None
    ) -> None:
        self.engine = engine
        self.work = work
        self.is_cancelled = False
        self._on_error = on_error

    def cancel(self) -> None:
        """Stop at once if running; never start if still waiting."""
        self.engine.cancel(self)

    def check_process(self) -> None:
        """See :meth:`Engine.check_process`."""
        self.engine.check_process()

    def fail(self, error: BaseException) -> None:
        """Tell who waits for the work that ``error`` ended it."""
        if not isinstance(error, EdgeLlamaError):
            cause = error
            error = EngineError(f"the engine's work failed: {type(cause).__name__}: {cause}")
            error.__cause__ = cause
        if self._on_error:
            self._on_error(error)
        else:
            _log.error("%s", error, exc_info=error)


class Engine:
    """A text tower, its session, perhaps what embeds images for it, and the thread in which all are used."""

    def __init__(
        self,
        tower: TextTower,
        choose_threads: Callable[[], int],
        session_room: Callable[[int], int] = lambda _used: 0,
        pace: Pace | None = None,
        encoder: ImageEncoder | None = None,
    ) -> None:
        """``choose_threads`` is asked before each job how many threads the tower shall use, ``pace`` within it.

        ``session_room`` says how much memory may keep the caches of others: see :mod:`edge_llama.runtime.kv_store`.
        """
        self.tower = tower
        self.encoder = encoder
        self._workers: tuple[TextTower | ImageEncoder, ...] = (tower, encoder) if encoder else (tower,)
        self.session = Session(tower, session_room, pace)
        self._choose_threads = choose_threads
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # Reentrant: the garbage collector or a signal's handler may cancel or close while this thread is within.
        # What is done under it therefore holds if such a call comes between any two steps.
        self._lock = threading.RLock()
        self._current: Job | None = None
        self._is_closed = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="edge-llama", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Job], None], *, on_error: Callable[[EdgeLlamaError], None] | None = None) -> Job:
        """Have ``work(job)`` called in the engine's thread, after what was submitted before.

        ``on_error`` is called there if it can't be done or raises. EngineError if the model is closed.
        """
        self.check_process()
        job = Job(self, work, on_error)
        with self._lock:
            if self._is_closed:
                raise EngineError("the model is closed", remedy="open it again")
            self._jobs.put(job)
        return job

    def call(self, work: Callable[[Session], T]) -> T:
        """What ``work(session)`` gives, done in the engine's thread after what was submitted before.

        Ctrl-C while waiting ends the work too.
        """
        future: Future[T] = Future()

        def run(job: Job) -> None:
            if job.is_cancelled:  # the model is closing
                raise EngineError("the model is closed", remedy="open it again")
            future.set_result(work(self.session))

        job = self.submit(run, on_error=future.set_exception)
        try:
            return future.result()
        except BaseException:
            job.cancel()
            raise

    def check_process(self) -> None:
        """EngineError in a fork of the engine's process: threads are not copied, so nobody would do the work."""
        if os.getpid() != self._pid:
            raise EngineError(
                f"the model was opened in process {self._pid}, of which this one is a fork",
                remedy="open the model after the fork, or start processes by spawn",
            )

    def cancel(self, job: Job) -> None:
        """See :meth:`Job.cancel`."""
        job.is_cancelled = True
        if os.getpid() != self._pid:
            return  # the lock may be held by a thread that does not exist here
        with self._lock:
            if self._current is job:
                self._abort()

    def close(self) -> None:
        """Cancel everything and free the tower. May be called twice, from any thread."""
        if os.getpid() != self._pid:
            return
        is_within: bool = self._lock._is_owned()  # type: ignore[attr-defined] # as threading.Condition asks
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._jobs.put(None)
            if current := self._current:
                current.is_cancelled = True
                self._abort()
        # From within a step under the lock the engine's thread can't be waited for: it needs the lock to end.
        if threading.current_thread() is not self._thread and not is_within:
            self._thread.join()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._begin(job)
                self.tower.use_threads(self._choose_threads())
                job.work(job)
            except BaseException as error:  # whatever it is, the next job's caller waits for this thread
                job.fail(error)
            self._current = None  # a cancel() that has just seen it as current is undone by the next resume()
        for worker in self._workers:
            worker.close()

    def _abort(self) -> None:
        for worker in self._workers:
            worker.abort()

    def _begin(self, job: Job) -> None:
        with self._lock:
            self._current = job
            if self._is_closed:
                job.is_cancelled = True
            for worker in self._workers:
                worker.resume()
            if job.is_cancelled:
                self._abort()

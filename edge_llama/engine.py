"""One thread that owns a tower: work is done there in turn, so callers may be many and may leave at any time."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from edge_llama.backends.base import TextTower
from edge_llama.errors import EngineError
from edge_llama.session import Session


class Job:
    """A piece of work for the engine's thread. ``cancel`` may be called from any thread, before, while or after."""

    def __init__(self, engine: "Engine", work: Callable[["Job"], None]) -> None:
        self.engine = engine
        self.work = work
        self.is_cancelled = False

    def cancel(self) -> None:
        """Stop at once if running; never start if still waiting."""
        self.engine.cancel(self)


class Engine:
    """A tower, its session, and the thread in which both are used."""

    def __init__(self, tower: TextTower, choose_threads: Callable[[], int]) -> None:
        """``choose_threads`` is asked before each job how many threads the tower shall use."""
        self.tower = tower
        self.session = Session(tower)
        self._choose_threads = choose_threads
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._current: Job | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="edge-llama", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Job], None]) -> Job:
        """Have ``work(job)`` called in the engine's thread, after what was submitted before."""
        with self._lock:
            if self._is_closed:
                raise EngineError("the model is closed", remedy="open it again")
            job = Job(self, work)
            self._jobs.put(job)
        return job

    def cancel(self, job: Job) -> None:
        """See :meth:`Job.cancel`."""
        with self._lock:
            job.is_cancelled = True
            if self._current is job:
                self.tower.abort()

    def close(self) -> None:
        """Cancel everything and free the tower. May be called twice, from any thread."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._jobs.put(None)
            if self._current:
                self._current.is_cancelled = True
                self.tower.abort()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                self._current = job
                job.is_cancelled |= self._is_closed
                self.tower.resume()
                if job.is_cancelled:
                    self.tower.abort()
            self.tower.use_threads(self._choose_threads())
            job.work(job)
            with self._lock:
                self._current = None
        self.tower.close()

"""The child that a model has now: when one dies, the next call starts another with the same options."""

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edge_llama.backends.load_progress import Listener
from edge_llama.errors import EngineError, OptionError
from edge_llama.generation import Answer, Generation, Progress, Timings
from edge_llama.isolation import wire
from edge_llama.isolation.logprob_table import LogprobTable, table_bytes
from edge_llama.isolation.process import Asked, Child, closed
from edge_llama.media.images import Image
from edge_llama.runtime.cache_entries import CacheOwner


@dataclass(eq=False, slots=True)
class _RemoteWork:
    """An answer that a child generates, for its :class:`Generation`."""

    child: Child
    number: int
    progress: Progress
    check_process: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True
        if not self.progress.ended.is_set():
            self.child.cancel(self.number)


class Worker:
    """Calls for a model in a process of its own. Any thread may use it."""

    def __init__(self, model: str, options: Mapping[str, Any], on_progress: Listener | None = None) -> None:
        """``model``: an absolute path; ``options``: those of ``open``. The child begins to open it at once.

        ``on_progress`` hears of this opening, and of none of a later child.
        """
        self._opening: dict[str, Any] = {"model": model, "options": dict(options)}
        self._pid = os.getpid()
        # Reentrant: the garbage collector may close the model that a thread within has just dropped.
        self._lock = threading.RLock()
        self._is_closed = False
        self._identity: str | None = None
        self._numbers: weakref.WeakKeyDictionary[CacheOwner, int] = weakref.WeakKeyDictionary()
        self._count = itertools.count()
        self._gone: deque[int] = deque()
        """Numbers of owners that are no more, which the child is yet to be told."""
        self._child = Child(self._opening, on_progress)

    def opened(self) -> wire.Facts:
        """Wait for the model; what was decided. From then on every child opens it with that much context."""
        facts = self._child.opened()
        self._identity = facts.identity
        self._opening["options"]["n_ctx"] = facts.context.n_ctx
        return facts

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def has_died(self) -> bool:
        """Whether the child has ended and no other took its place."""
        return self._child.is_dead

    def check_process(self) -> None:
        """EngineError in a fork of the process that opened the model: threads are not copied."""
        if os.getpid() != self._pid:
            raise EngineError(
                f"the model was opened in process {self._pid}, of which this one is a fork",
                remedy="open the model after the fork, or start processes by spawn",
            )

    def call(self, name: str, images: Iterable[Image] | None = None, **given: Any) -> Any:
        """What the child's call gives. Raises what it raises, or EngineDiedError."""
        return self.call_with_bytes(name, images, **given)[0]

    def call_with_bytes(self, name: str, images: Iterable[Image] | None = None, **given: Any) -> tuple[Any, bytes]:
        """:meth:`call`, and the bytes that come with the result."""
        asked = Asked()
        self._ask(self._living(), name, given, images, asked)
        return asked.reply.result()

    def begin(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        images: Iterable[Image] | None = None,
        on_finish: Callable[[Answer], None] | None = None,
        keep_alive: object = None,
        **given: Any,
    ) -> Generation:
        """An answer by the child's call; ``on_finish`` and ``keep_alive`` are :class:`Generation`'s.

        OptionError for options that are out of range or can't leave this process; what the call itself raises.
        """
        given["options"], params = wire.options_to_json(options)
        child, progress = self._living(), Progress(Timings())
        asked = Asked(progress=progress)
        given["table"] = self._table(child, asked, params.logprobs, params.max_tokens)
        self._ask(child, name, given, images, asked)
        work = _RemoteWork(child, asked.number, progress, self.check_process)
        try:
            asked.reply.result()
        except BaseException:  # Ctrl-C, or what the call raised: then there is nothing to stop
            work.cancel()
            raise
        return Generation(progress, work, on_finish=on_finish, keep_alive=keep_alive)

    def owner(self, owner: CacheOwner) -> tuple[int, str]:
        """What the child knows ``owner`` by, while ``owner`` lives, and its tag."""
        with self._lock:
            if (number := self._numbers.get(owner)) is None:
                number = self._numbers[owner] = next(self._count)
                weakref.finalize(owner, self._gone.append, number).atexit = False
            return number, owner.tag

    def close(self) -> None:
        """End the child; the next call is an error. May be called twice, by the garbage collector too."""
        if os.getpid() != self._pid:
            return
        self._is_closed = True
        self._child.close()

    def _living(self) -> Child:
        """The child, or another if it has died. Raises what opening the model raises."""
        self.check_process()
        with self._lock:
            if self._is_closed:
                raise closed()
            if self._child.is_dead:
                self._child = child = Child(self._opening)
                try:
                    self._check_same(child)
                except BaseException:
                    child.close()
                    raise
            return self._child

    def _check_same(self, child: Child) -> None:
        """EngineError if the file is another model by now, or this one was closed meanwhile."""
        identity = child.opened().identity
        if self._is_closed:
            raise closed()
        if identity != self._identity:
            raise EngineError(
                f"{self._opening['model']}: another model than before the engine died", remedy="open it again"
            )

    def _ask(
        self, child: Child, name: str, given: dict[str, Any], images: Iterable[Image] | None, asked: Asked
    ) -> None:
        try:
            if images is not None:
                given["images"] = _placed(child, images, asked)
            child.ask(name, given, list(self._forgotten()), asked)
        except (TypeError, ValueError, RecursionError) as error:
            child.drop(asked)
            raise OptionError(f"{name} is given what JSON can't express: {error}") from error
        except BaseException:
            child.drop(asked)
            raise

    def _forgotten(self) -> Iterator[int]:
        with suppress(IndexError):
            while True:
                yield self._gone.popleft()

    def _table(self, child: Child, asked: Asked, count: int | None, most: int | None) -> Sequence[int] | None:
        """Room for the logprobs of an answer, if it asks for them: a row for each token that can come."""
        if count is None:
            return None
        n_ctx: int = self._opening["options"]["n_ctx"]
        rows = min(most or n_ctx, n_ctx) + 1
        region = child.take(table_bytes(rows, count))
        asked.kept.append(region)
        asked.table = LogprobTable(region.memory, rows, count)
        return region.start, rows, count


def _placed(child: Child, images: Iterable[Image], asked: Asked) -> list[Sequence[Any]]:
    """The images as the child finds them in the memory that it shares; those without data go without."""
    placed: list[Sequence[Any]] = []
    for image in images:
        start, size = None, len(image.data)
        if size:
            region = child.take(size)
            asked.regions.append(region)
            region.memory[:size] = image.data
            start = region.start
        placed.append((start, size, image.name, image.width, image.height, image.digest, image.notes))
    return placed

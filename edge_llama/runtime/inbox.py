"""What callers send to the engine's thread, and how it waits for that."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from edge_llama.runtime.request import Request

GATHER = 0.05
"""Seconds that who begins first waits for those who are about to submit: together they take fewer steps."""


@dataclass(eq=False, slots=True)
class Call:
    """Work for the engine's thread, between two steps."""

    work: Callable[[], None]
    is_alone: bool = False


NUDGE = Call(lambda: None)
"""Nothing to do, but to look again: something was cancelled, or an image is embedded."""

Item = tuple[object, Request] | Call | None
"""A request with its caller, a call, or None when the model is closed."""


class Inbox:
    """Any thread may put into it, also the garbage collector within a call."""

    def __init__(self) -> None:
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._preparing: set[object] = set()
        """Callers that are about to submit."""
        self._is_gathering = False

    def put(self, item: Item) -> None:
        """Send it."""
        self._items.put(item)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around what leads to a request: see :meth:`take`."""
        caller = object()
        try:
            self._preparing.add(caller)
            yield
        finally:
            self._preparing.discard(caller)
            if self._is_gathering:
                self.put(NUDGE)

    def take(self, seconds: float | None, may_gather: Callable[[], bool]) -> Iterator[Item]:
        """What was sent, after up to ``seconds`` without anything (None: as long as it takes).

        While ``may_gather()``, a moment longer for those who are preparing something.
        """
        try:
            yield self._items.get(timeout=seconds)
            gathered = time.monotonic() + GATHER
            while True:
                left = gathered - time.monotonic()
                self._is_gathering = left > 0 and may_gather()
                yield self._items.get(timeout=left if self._is_gathering and self._preparing else 0)
        except Empty:
            return

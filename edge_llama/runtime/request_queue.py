"""Requests that wait for their turn."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edge_llama.runtime.request import Request


@dataclass(slots=True)
class RequestQueue:
    """Requests that wait, callers in turn: who has many waits behind who has few."""

    callers: "OrderedDict[object, deque[Request]]" = field(default_factory=OrderedDict)

    def put(self, caller: object, request: Request) -> None:
        """It waits behind what its caller asked before."""
        self.callers.setdefault(caller, deque()).append(request)

    def __iter__(self) -> Iterator[Request]:
        """The next of each caller."""
        return iter([waiting[0] for waiting in self.callers.values()])

    def take(self, request: Request) -> None:
        """Remove one of those that iterating gives; its caller is the last now."""
        caller = next(caller for caller, waiting in self.callers.items() if waiting[0] is request)
        waiting = self.callers.pop(caller)
        waiting.popleft()
        if waiting:
            self.callers[caller] = waiting

    def remove_ended(self) -> int:
        """Remove those that wait no more; how many they are."""
        gone = sum(request.is_ended for request in self.all())
        for caller, waiting in list(self.callers.items()):
            kept = deque(request for request in waiting if not request.is_ended)
            if kept:
                self.callers[caller] = kept
            else:
                del self.callers[caller]
        return gone

    def all(self) -> list[Request]:
        """All that wait."""
        return [request for waiting in self.callers.values() for request in waiting]

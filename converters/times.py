"""Where a conversion's time goes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Part = Literal["read", "compute", "write"]


class Times:
    """Seconds spent reading and computing, summed over the threads that do both, and writing (hashing included)."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.seconds: dict[Part, float] = {"read": 0.0, "compute": 0.0, "write": 0.0}
        self._lock = threading.Lock()

    @contextmanager
    def measured(self, part: Part) -> Iterator[None]:
        """Count the time within as ``part``'s."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[part] += time.perf_counter() - started

    def __str__(self) -> str:
        read, compute, write = self.seconds["read"], self.seconds["compute"], self.seconds["write"]
        shared = {"reading": read / self.threads, "computing": compute / self.threads, "writing": write}
        bound = max(shared, key=lambda part: shared[part])
        return (
            f"reading {read:.1f} s and computing {compute:.1f} s on {self.threads} threads, "
            f"writing and hashing {write:.1f} s on one: {bound} bounds it"
        )

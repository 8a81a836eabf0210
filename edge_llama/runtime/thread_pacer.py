"""How many threads the next tokens get, while others come and go on the machine.

llama.cpp's threads wait for each other hundreds of times a token: if one of them loses its core to another process, all
wait until it gets it back, and two threads are then many times slower than one. An answer therefore begins with as many
threads as there are free cores, and goes on with fewer at the first token that had to wait, with more when cores come
free. With flash attention off the logits are the same, bit for bit, whatever the number of threads; with it on they are
not (ggml divides the context among the threads): who needs the same answers then fixes the number.

Measured on a shared machine with two more busy processes on its two cores, 48 tokens each, interleaved: begun with one
thread 10 tokens/s; begun with two in error, 10 with this and 0.9 without (8.5 and 2.4 where GOMP_SPINCOUNT is 3000).
"""

import time
from collections.abc import Callable

from edge_llama.host import devices

_WAITED = 0.5  # share of a decode's time that its thread ran: below this, another process had its core
_UNDISTURBED = 0.85
_SLOWER = 4  # times the best token: a thread that spins while it waits for another looks busy
_WINDOW = 8  # tokens between two looks at whether more cores are free
_FADING = 1.02  # the best time is forgotten slowly: tokens get slower as the context fills


class Pace:
    """The number of threads for each decode. Used by the engine's thread alone."""

    def __init__(
        self, most: int, free: Callable[[], int] = devices.free_threads, glance: Callable[[], int] = devices.free_now
    ) -> None:
        """``most`` threads at most; ``free`` is asked when an answer begins, the cheaper ``glance`` within it."""
        self._most = most
        self._free = free
        self._glance = glance
        self._threads = most
        self._best: dict[tuple[int, int], float] = {}  # by threads and rows
        self._undisturbed = 0
        self._free_glances = 0

    def begin(self) -> int:
        """Threads for the first decode of an answer."""
        self._use(min(self._most, self._free()))
        return self._threads

    def after(self, seconds: float, cpu_seconds: float, count: int, *, is_decode: bool) -> int:
        """Threads for the next decode, after one of ``count`` rows took ``seconds``, its thread ``cpu_seconds``.

        ``is_decode``: of answers, a row for each, not of prompts.
        """
        share = cpu_seconds / max(seconds, 1e-9)
        is_slow = is_decode and self._is_slow(seconds, count)
        if self._threads > 1 and (is_slow or share < _WAITED):
            self._look_down(is_slow=is_slow)
        elif self._threads < self._most and is_decode and share > _UNDISTURBED:
            self._look_up()
        else:
            self._undisturbed = 0
        return self._threads

    def _is_slow(self, seconds: float, count: int) -> bool:
        best = min(seconds, _FADING * self._best.get((self._threads, count), seconds))
        self._best[self._threads, count] = best
        return seconds > _SLOWER * best

    def _look_down(self, *, is_slow: bool) -> None:
        """Fewer threads; but where there are many, one may sleep for want of work alone: then as many as before."""
        free = self._glance()
        if is_slow or free < self._threads:
            self._use(max(1, min(self._threads - 1, free)))

    def _look_up(self) -> None:
        """After each window of undisturbed tokens, look; more threads when cores were free twice in a row."""
        self._undisturbed += 1
        if self._undisturbed < _WINDOW:
            return
        self._undisturbed = 0
        free = min(self._most, self._glance())
        self._free_glances = self._free_glances + 1 if free > self._threads else 0
        if self._free_glances == 2:
            self._use(free)

    def _use(self, threads: int) -> None:
        self._threads = threads
        self._undisturbed = self._free_glances = 0


class Stopwatch:
    """Wall time and this thread's own processor time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def elapsed(self) -> tuple[float, float]:
        """(seconds, processor seconds)."""
        return time.perf_counter() - self._wall, time.thread_time() - self._cpu

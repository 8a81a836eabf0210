"""One thread that owns the towers and brings many requests to their ends, all of them in every step.

A step decodes a token for each answer that is running, and as much of the prompts that wait as goes unnoticed
(:mod:`edge_llama.runtime.step_budget`). Requests join and leave between steps: callers may be many and may leave at any
time. What they have in common is in the engine's cache once (:mod:`edge_llama.runtime.prompt_cache`).
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import takewhile
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import AbortedError, TextTower
from edge_llama.errors import BusyError, DeadlineError, EngineError
from edge_llama.host import devices
from edge_llama.runtime.adapter_turns import AdapterTurns
from edge_llama.runtime.batch import Batch, Running, batches
from edge_llama.runtime.disk_cache import DiskCache
from edge_llama.runtime.encoder_thread import EncoderThread
from edge_llama.runtime.encoders import ImageEncoder
from edge_llama.runtime.inbox import NUDGE, Call, Inbox
from edge_llama.runtime.prompt_cache import PromptCache
from edge_llama.runtime.radix_tree import shared_length
from edge_llama.runtime.request import Request
from edge_llama.runtime.request_queue import RequestQueue
from edge_llama.runtime.stats import Counts, Stats
from edge_llama.runtime.step_budget import StepBudget
from edge_llama.runtime.thread_pacer import Pace, Stopwatch
from edge_llama.sampling.sampler import LogitsRow

T = TypeVar("T")
_log = logging.getLogger(__name__)
MAX_QUEUED = 64
_WORTH_WAITING = 32
"""Tokens that another request is prefilling, from which on it is better to wait for them than to prefill them too."""
_TOGETHER = 0.05
"""Seconds of answers that reach their callers at once. Nobody sees so little, and to wake callers for each token costs
cores that decode: through the server 0.9 ms of a token's 20, and as much again while llama.cpp's other thread waits."""
_REST = 0.2
"""Seconds without a request, after which what is idle in the cache is copied out: it comes back at once otherwise."""
_RELIEF, _RELIEF_BEFORE = 0.02, 0.4
"""Seconds that a step may take for copying out what is idle; one sequence is copied in any case. The second where
nobody is being answered: who begins then would get cells beyond the idle ones, and attend over all of them."""
_WORTH_ABORTING = 32
"""Rows of a cancelled request, from which on the decode is stopped and done again without them."""


class Scheduler:
    """A text tower, what is in its cache, perhaps what embeds images for it, and the thread in which all are used."""

    def __init__(
        self,
        tower: TextTower,
        choose_threads: Callable[[], int],
        room: Callable[[int], int] = lambda _used: 0,
        pace: Pace | None = None,
        encoder: ImageEncoder | None = None,
        *,
        max_running: int = 8,
        max_queued: int = MAX_QUEUED,
        is_deterministic: bool = False,
        disk: DiskCache | None = None,
    ) -> None:
        """``choose_threads`` is asked how many threads the tower shall use when work begins, ``pace`` within it.

        ``room`` says how much memory copies of sequences may take: see :class:`PromptCache`. With ``is_deterministic``
        requests are served one after the other, their prompts in slices that depend on nothing else.
        """
        self.tower = tower
        self.encoder = encoder
        self.cache = PromptCache(tower, room, tower.n_batch if is_deterministic else 0, disk)
        self.max_running = 1 if is_deterministic else min(max_running, tower.n_sequences)
        self.max_queued = max_queued
        self._samplers: ThreadPoolExecutor | None = None
        self._encoders = EncoderThread(encoder) if encoder else None
        self._choose_threads = choose_threads
        self._pace = pace
        self._budget = StepBudget()
        self._turns = AdapterTurns(tower)
        self._has_pictures_turn = False
        """Whether prompts of this step are parts of pictures, where there are both."""
        self._inbox = Inbox()
        self._queue = RequestQueue()
        self._calls: deque[Call] = deque()
        self._running: list[Running] = []  # the first that came first
        self._undelivered: dict[Request, None] = {}
        """Requests with pieces for their callers, who are woken where they disturb least: between two decodes."""
        self._last_delivered = 0.0
        """When that was, in seconds of the monotonic clock."""
        self._decode_seconds = 0.0
        """That the last decode took."""
        self._counts = Counts()
        # Reentrant: the garbage collector or a signal's handler may cancel or close while this thread is within.
        # What is done under it therefore holds if such a call comes between any two steps.
        self._lock = threading.RLock()
        self._current: dict[Request, int] = {}
        """The requests of the decode that is running, and their rows."""
        self._last_worked = 0.0
        """When the engine last did something, in seconds of the monotonic clock."""
        self._is_tidy = True
        """Whether the cache was tidied up since."""
        self._waiting = 0
        """Requests that were submitted and have not begun."""
        self._current_call: Call | None = None
        self._is_closed = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="edge-llama", daemon=True)
        self._thread.start()

    def preparing(self) -> AbstractContextManager[None]:
        """Around what leads to :meth:`submit`: who begins while nothing is running waits a moment for those within."""
        return self._inbox.preparing()

    def submit(self, request: Request) -> None:
        """Bring the request to its end. EngineError if the model is closed, BusyError if too many wait already.

        Callers take turns: who submits for the same owner, or from the same thread, is one.
        """
        self.check_process()
        caller: object = request.owner if request.owner else threading.get_ident()
        with self._lock:
            if self._is_closed:
                raise EngineError("the model is closed", remedy="open it again")
            if self._waiting >= self.max_queued + self.max_running - len(self._running):
                raise BusyError(len(self._running), self._waiting, self.max_queued)
            self._waiting += 1
            self._inbox.put((caller, request))

    def call(self, work: Callable[[], T], *, is_alone: bool = False) -> T:
        """What ``work()`` gives, called in the engine's thread between steps; alone: when no request is running.

        Who stops waiting, by Ctrl-C, stops what the tower does for it.
        """
        self.check_process()
        future: Future[T] = Future()

        def run() -> None:
            try:
                if self._is_closed:
                    raise EngineError("the model is closed", remedy="open it again")
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        call = Call(run, is_alone)
        with self._lock:
            if self._is_closed:
                raise EngineError("the model is closed", remedy="open it again")
            self._inbox.put(call)
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._current_call is call and not future.done():
                    self.tower.abort()
            raise

    def check_process(self) -> None:
        """EngineError in a fork of the engine's process: threads are not copied, so nobody would do the work."""
        if os.getpid() != self._pid:
            raise EngineError(
                f"the model was opened in process {self._pid}, of which this one is a fork",
                remedy="open the model after the fork, or start processes by spawn",
            )

    def cancel(self, request: Request) -> None:
        """Release the request's caller, and do no more for it. Any thread may call it, any number of times."""
        request.cancel()
        if os.getpid() != self._pid:
            return  # the lock may be held by a thread that does not exist here
        with self._lock:
            if self._is_worth_aborting(request):
                self.tower.abort()
            if self._encoders:
                self._encoders.cancel(request)
        self._inbox.put(NUDGE)

    def close(self) -> None:
        """Cancel everything and free the tower. May be called twice, from any thread."""
        if os.getpid() != self._pid:
            return
        is_within: bool = self._lock._is_owned()  # type: ignore[attr-defined] # as threading.Condition asks
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._inbox.put(None)
            self.tower.abort()
        # From within a step under the lock the engine's thread can't be waited for: it needs the lock to end.
        if threading.current_thread() is not self._thread and not is_within:
            self._thread.join()

    def stats(self) -> Stats:
        """What it is doing now. Any thread may ask."""
        counts, cache = self._counts, self.cache
        return Stats(
            running=sum(not running.request.is_ended for running in tuple(self._running)),
            max_running=self.max_running,
            queued=self._waiting,
            used_cells=cache.used_cells,
            cells=self.tower.n_cells,
            cached_bytes=cache.copies.nbytes + (self.encoder.kept_bytes if self.encoder else 0),
            prompt_tokens=counts.prompt_tokens,
            generated_tokens=counts.generated_tokens,
            seconds=counts.seconds,
        )

    def _is_worth_aborting(self, request: Request) -> bool:
        """Whether the decode that is running is for nobody else, or much of it is for this request."""
        if request not in self._current:
            return False
        return self._current[request] >= _WORTH_ABORTING or all(each.is_cancelled for each in self._current)

    def _serve(self) -> None:
        has_moved = False
        while self._take_in(is_patient=not has_moved):
            began = time.perf_counter()
            try:
                has_moved = self._step()
            except BaseException as error:  # whatever it is, callers wait for this thread
                _log.error("the engine's work failed: %s", error, exc_info=error)
                has_moved = True
                for running in self._running:
                    running.request.fail(error)
            self._counts.seconds += time.perf_counter() - began
        self._take_in(is_patient=False)  # what came just before it was closed
        for request in (*self._queue.all(), *(running.request for running in self._running)):
            request.cancel()
        self._leave()
        for call in self._calls:
            call.work()
        self.cache.close()
        if self._samplers:
            self._samplers.shutdown()
        if self._encoders:
            self._encoders.close()
        self.tower.close()

    def _take_in(self, *, is_patient: bool) -> bool:
        """Take what was sent; wait for it where a step would change nothing. False when the model was closed."""
        for item in self._inbox.take(self._seconds_left() if is_patient else 0.0, self._may_gather):
            if isinstance(item, Call):
                self._calls.extend([item] if item is not NUDGE else [])
            elif item is not None:
                self._queue.put(*item)
        return not self._is_closed

    def _may_gather(self) -> bool:
        """Whether who waits could begin together with others."""
        return bool(self._queue.callers and not self._running and self.max_running > 1 and not self._is_closed)

    def _seconds_left(self) -> float | None:
        """Until the first deadline of a request, or until there is something to tidy up."""
        requests = (*(running.request for running in self._running), *self._queue.all())
        moments = [request.deadline for request in requests if request.deadline is not None]
        if not requests and not self._is_tidy:
            moments.append(self._last_worked + _REST)
        left = min(moments, default=None)
        return None if left is None else min(max(0.0, left - time.monotonic()), threading.TIMEOUT_MAX)

    def _step(self) -> bool:
        """Bring everything on by a decode; whether anything changed."""
        has_left = self._leave()
        if self._calls or self._queue.callers or any(running.suspended for running in self._running):
            self._deliver()  # what comes may take its time
        has_worked = self._do_calls()
        has_worked |= self._admit()
        self._embed()
        is_crowded = bool(self._running) and self._relieve()
        before = self._answered()
        for batch in self._batches(with_prompts=not is_crowded):
            if self._answered() - before:  # not only their number: others may have ended
                break  # the rest was planned when nobody waited for a second token
            self._decode(batch)
            has_worked = True
        if not any(running.is_ready for running in self._running):
            self._deliver()
        if has_worked or self._running:
            self._is_tidy, self._last_worked = False, time.monotonic()
        elif not has_left and self._may_tidy():
            return self._tidy()
        return has_left or has_worked

    def _answered(self) -> set[Running]:
        return {running for running in self._running if running.is_decoding}

    def _relieve(self) -> bool:
        """Copy out what is idle and slows the others; whether some of it is still there.

        One sequence in a step, or more if that takes no time and no other copy has to leave, or if nobody waits for a
        second token.
        """
        prompt_tokens = sum(len(running.todo) for running in self._running if not running.is_decoding)
        is_quiet = not self._answered()
        latest = time.monotonic() + (_RELIEF_BEFORE if is_quiet else _RELIEF)
        may_relieve = True
        while (is_crowded := self.cache.is_crowded(prompt_tokens)) and may_relieve:
            self._deliver()
            has_room = self.cache.relieve()
            may_relieve = (has_room or is_quiet) and time.monotonic() < latest
        return is_crowded

    def _may_tidy(self) -> bool:
        return not self._is_tidy and time.monotonic() >= self._last_worked + _REST

    def _tidy(self) -> bool:
        self._is_tidy = True  # also if it fails
        self._is_tidy = not self.cache.tidy()
        return not self._is_tidy

    def _leave(self) -> bool:
        """Let go of requests that were cancelled or are late; their sequences stay in the cache."""
        for request in (*(running.request for running in self._running), *self._queue.all()):
            request.release()
            if request.deadline is not None and time.monotonic() >= request.deadline and not request.is_ended:
                request.fail(DeadlineError())
        gone = [running for running in self._running if running.request.is_ended]
        for running in gone:
            self._end(running)
        unbegun = self._queue.remove_ended()
        self._waiting -= unbegun
        return bool(gone or unbegun)

    def _end(self, running: Running, logits: NDArray[np.float32] | None = None) -> None:
        self._running.remove(running)
        if running.suspended:
            self.cache.copies.keep(running.suspended)
        else:
            self.cache.end(running.held, logits)

    def _do_calls(self) -> bool:
        has_called = False
        while self._calls and not (self._calls[0].is_alone and self._running):
            call = self._calls.popleft()
            with self._lock:
                self._current_call = call
                self.tower.resume()
            call.work()
            self._current_call = None
            has_called = True
        return has_called

    def _admit(self) -> bool:
        """Let requests begin while there is a place and there are cells for their prompts; whether one did."""
        has_begun = False
        for running in self._running:
            if running.suspended:
                if not self._resume(running):
                    return has_begun
                has_begun = True
        while len(self._running) < self.max_running and not any(call.is_alone for call in self._calls):
            request = next((each for each in self._queue if not each.is_cancelled and self._may_begin(each)), None)
            if request is None or not self._begin(request):
                break
            has_begun = True
        return has_begun

    def _may_begin(self, request: Request) -> bool:
        """Not while another prefills what it can have then, or it is read from disk."""
        ids = request.prompt_ids
        coming = 0
        for running in self._running:
            is_same = running.request.adapters == request.adapters
            if is_same and not running.is_decoding and not running.suspended:  # of one that must wait nobody waits
                shared = shared_length(running.request.prompt_ids, ids)
                coming = max(coming, shared if shared > len(running.held.tokens) else 0)
        if coming >= _WORTH_WAITING and coming - self.cache.known(ids, request.adapters) >= _WORTH_WAITING:
            return False
        return not self.cache.is_loading(ids, request.adapters, partial(self._inbox.put, NUDGE))

    def _begin(self, request: Request) -> bool:
        """Give the request a sequence; False while there is no room for it."""
        if self._running:
            left = sum(len(running.todo) for running in self._running)
            new = len(request.prompt) - self.cache.known(request.prompt_ids, request.adapters)
            if not self.cache.make_cells(left + new + 1 + len(self._running)):
                return False
        beginning = self.cache.begin(request.prompt_ids, request.owner, request.adapters)
        if beginning is None:
            return False
        self._queue.take(request)
        self._waiting -= 1
        held = beginning.held
        running = Running(request, held, request.prompt[beginning.reused :])
        is_first = not self._running
        self._running.append(running)
        try:
            if is_first:
                self.tower.use_threads(self._choose_threads())
            request.started(beginning.reused, beginning.divergence)
        except BaseException as error:
            request.fail(error)
            return True
        if not running.todo:  # all of it is there, with its last logits
            assert held.logits is not None  # noqa: S101 - see PromptCache.begin
            self._advance([(running, LogitsRow(held.logits.copy()))])
        return True

    def _resume(self, running: Running) -> bool:
        """Bring back a request that had to leave; False while there are no cells for it."""
        assert running.suspended  # noqa: S101 - it had to leave
        others = sum(not each.suspended for each in self._running)
        if others and not self.cache.make_cells(len(running.suspended.tokens) + len(running.todo) + 8 * (1 + others)):
            return False
        request = running.request
        held = self.cache.resume(running.suspended, request.prompt_ids, request.owner)
        if held is None:
            return False
        running.held, running.suspended = held, None
        return True

    def _embed(self) -> None:
        """Have the tiles embedded that are decoded next."""
        for running in self._running:
            if running.embedded and running.embedded.done() and (error := running.embedded.exception()):
                running.embedded = None
                if not isinstance(error, AbortedError):
                    running.request.fail(error)
            if running.todo and running.todo[0] < 0 and running.embedded is None and not running.request.is_ended:
                assert self._encoders  # noqa: S101 - there are no such ids without
                start = len(running.request.prompt) - len(running.todo)
                running.embedded_left = sum(1 for _ in takewhile(lambda token: token < 0, running.todo))
                stop = start + running.embedded_left
                running.embedded = self._encoders.embed(running.request, start, stop, partial(self._inbox.put, NUDGE))

    def _batches(self, *, with_prompts: bool) -> list[Batch]:
        """The decodes of a step, of those whose turn it is. Without prompts only where something is being answered."""
        ready = [running for running in self._running if running.is_ready]
        answering = sum(running.is_decoding for running in ready)
        for group in self._turns.order(ready):
            others = answering - sum(running.is_decoding for running in group)
            if found := self._batches_of(group, others, with_prompts=with_prompts):
                return found
        return []

    def _batches_of(self, ready: list[Running], others: int, *, with_prompts: bool) -> list[Batch]:
        """Those of requests with the same adapters, while so many ``others`` are being answered.

        Where cells are short, the last that came leaves for a while.
        """
        n_batch = self.tower.n_batch
        while ready:
            wanted = sum(min(len(running.todo), n_batch) for running in ready)
            if wanted > self.cache.free_cells:
                self._deliver()
                self.cache.make_cells(wanted)
            answering = sum(running.is_decoding for running in ready)
            is_short = answering and not with_prompts
            budget = 0 if is_short else self._budget.tokens(answering + others, len(ready) - answering)
            free, self._has_pictures_turn = self.cache.free_cells, not self._has_pictures_turn
            if found := batches(ready, n_batch, free, budget, with_pictures=self._has_pictures_turn):
                return found
            self._deliver()
            youngest = ready.pop()
            try:
                youngest.suspended = self.cache.suspend(youngest.held)
            except (EngineError, MemoryError) as error:
                youngest.request.fail(error)
                self._end(youngest)
        return []

    def _decode(self, batch: Batch) -> None:
        """Decode the rows and let each request go on. Where it fails for many, each is tried alone."""
        if not self._begin_decode(batch):
            return
        if self._must_deliver(batch):
            self._deliver()
        watch = Stopwatch()
        try:
            self._turns.begin(batch)
            logits = self.tower.decode([rows for _, rows in batch])
        except BaseException as error:
            for running, _ in batch:
                self.cache.synchronize(running.held)
            self._failed(batch, error)
            return
        finally:
            self._current = {}  # a cancel() that has just seen it is undone before the next decode
        self._decoded(batch, watch)
        if self._is_due(_TOGETHER):
            self._deliver()
            time.sleep(0)  # whoever tells a caller does so now, while a core is idle, not beside the next decode
        answers = iter(logits)
        self._advance([(running, next(answers)) for running, rows in batch if rows.needs_logits])

    def _begin_decode(self, batch: Batch) -> bool:
        """Whether all of it is still wanted: else the next step plans another."""
        with self._lock:
            self._current = {running.request: len(rows.tokens) for running, rows in batch}
            self.tower.resume()
            if self._is_closed or any(request.is_cancelled for request in self._current):
                self._current = {}
                return False
            return True

    def _failed(self, batch: Batch, error: BaseException) -> None:
        if isinstance(error, AbortedError):
            return  # those that stay are decoded again in the next step
        if len(batch) == 1:
            batch[0][0].request.fail(error)
            return
        for each in batch:
            self._decode([each])

    def _decoded(self, batch: Batch, watch: Stopwatch) -> None:
        seconds, cpu_seconds = watch.elapsed()
        self._decode_seconds = seconds
        answers = prompts = 0
        for running, rows in batch:
            count = len(rows.tokens)
            self.cache.appended(running.held, rows.tokens)
            running.decoded(rows)
            answers, prompts = (answers + count, prompts) if running.is_decoding else (answers, prompts + count)
        self._counts.prompt_tokens += prompts
        self._counts.generated_tokens += answers
        self._budget.measured(answers, prompts, seconds)
        if self._pace:
            self.tower.use_threads(self._pace.after(seconds, cpu_seconds, answers + prompts, is_decode=not prompts))

    def _advance(self, ready: Sequence[tuple[Running, LogitsRow]]) -> None:
        """Have each request choose its next tokens, several threads at once where that takes its time."""

        def advance(one: tuple[Running, LogitsRow]) -> Sequence[int]:
            running, row = one
            return running.request.advance(row, self.tower.n_ctx - len(running.held.tokens))

        apart = [one for one in ready if one[0].request.samples_apart]
        if len(apart) > 1:
            self._samplers = self._samplers or ThreadPoolExecutor(devices.cpu_threads(), "edge-llama-sampler")
            found = dict(zip(apart, self._samplers.map(advance, apart), strict=True))
        else:
            found = {}
        self._undelivered |= {running.request: None for running, _ in ready}
        for one in ready:
            running, row = one
            running.is_decoding = True
            running.todo = found[one] if one in found else advance(one)
            if running.request.is_ended:
                self._end(running, row.values.copy())

    def _must_deliver(self, batch: Batch) -> bool:
        """Whether callers would wait too long if told after the decode: one with a prompt, or of a slow model."""
        is_short = self._decode_seconds < _TOGETHER and all(len(rows.tokens) == 1 for _, rows in batch)
        return not is_short or self._is_due(2 * _TOGETHER)

    def _is_due(self, seconds: float) -> bool:
        return bool(self._undelivered) and time.monotonic() - self._last_delivered >= seconds

    def _deliver(self) -> None:
        if not self._undelivered:
            return
        for request in self._undelivered:
            request.deliver()
        self._undelivered.clear()
        self._last_delivered = time.monotonic()

"""An answer as it is made: pieces of text, and the whole in the end."""

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Literal

from edge_llama.backends.base import AbortedError
from edge_llama.engine import Engine, Job
from edge_llama.sampling import SamplingParams, StopStrings

FinishReason = Literal["stop", "length", "cancelled"]
"""``stop``: the model ended or a stop string was reached; ``length``: max_tokens or a full context; or cancelled."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer: whole characters, and the tokens since the last piece.

    The last piece has a ``finish_reason`` and perhaps no text.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Timings:
    """What the work took: tokens, and seconds on the engine's thread."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the KV cache already held."""
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of reading what was not cached."""
        return (self.prompt_tokens - self.cached_tokens) / max(self.prompt_seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Speed of writing."""
        return self.generated_tokens / max(self.generation_seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    text: str
    tokens: tuple[int, ...]
    timings: Timings
    finish_reason: FinishReason


@dataclass(slots=True)
class _Outcome:
    pieces: list[Piece] = field(default_factory=list)
    is_done: bool = False


class Generation(Iterator[Piece]):
    """Iterate it for pieces as they come, or ask for the whole :meth:`result`.

    The work runs in the model's own thread from the start. It stops at once, also within a long prompt, on
    :meth:`cancel`, :meth:`close`, Ctrl-C while waiting, or when the object is no longer referenced.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        on_finish: Callable[[Answer], None] | None = None,
        owner: object = None,
    ) -> None:
        """``owner`` is kept alive as long as the generation; ``on_finish`` is called once, where pieces are taken."""
        self.timings = Timings(prompt_tokens=len(prompt))
        self._queue: SimpleQueue[Piece | BaseException] = SimpleQueue()
        self._outcome = _Outcome()
        self._on_finish = on_finish
        self._owner = owner
        work = _Work(engine, tuple(prompt), params, self.timings, self._queue)
        self._job = engine.submit(work.run)

    def __next__(self) -> Piece:
        if self._outcome.is_done:
            raise StopIteration
        try:
            piece = self._queue.get()
        except BaseException:  # Ctrl-C: the work ends with the wait for it
            self._job.cancel()
            raise
        if isinstance(piece, BaseException):
            self._outcome.is_done = True
            raise piece
        self._outcome.pieces.append(piece)
        if piece.finish_reason:
            self._outcome.is_done = True
            if self._on_finish:
                self._on_finish(self._answer())
        return piece

    def result(self) -> Answer:
        """Wait for the end; the whole answer, also what was iterated before. Raises what the work raised."""
        for _ in self:
            pass
        return self._answer()

    def cancel(self) -> None:
        """Stop the work; the pieces made so far can still be taken. Any thread may call it, any number of times."""
        self._job.cancel()

    def close(self) -> None:
        """Stop the work and take what remains, so that the answer so far is settled."""
        self._job.cancel()
        if not self._outcome.is_done:
            self.result()

    @property
    def is_finished(self) -> bool:
        """Whether all pieces were taken."""
        return self._outcome.is_done

    def _answer(self) -> Answer:
        pieces = self._outcome.pieces
        reason = pieces[-1].finish_reason if pieces else None
        tokens = tuple(token for piece in pieces for token in piece.token_ids)
        return Answer("".join(piece.text for piece in pieces), tokens, self.timings, reason or "cancelled")

    def __enter__(self) -> "Generation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_job"):
            self._job.cancel()


class _Work:
    """The generation loop, in the engine's thread. It holds no reference to the Generation, which may be dropped."""

    def __init__(
        self,
        engine: Engine,
        prompt: tuple[int, ...],
        params: SamplingParams,
        timings: Timings,
        out: "SimpleQueue[Piece | BaseException]",
    ) -> None:
        self.engine = engine
        self.prompt = prompt
        self.params = params
        self.timings = timings
        self.out = out
        self.stops = StopStrings(params.stop)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending: list[int] = []

    def run(self, _job: Job) -> None:
        try:
            self._emit("", self._generate())
        except AbortedError:
            self._emit("", "cancelled")
        except Exception as error:
            self.out.put(error)

    def _generate(self) -> FinishReason:
        started = time.perf_counter()
        try:
            self.timings.cached_tokens = self.engine.session.read(self.prompt)
        finally:
            self.timings.prompt_seconds = time.perf_counter() - started
        sampler = self.engine.tower.sampler(self.params, self.prompt)
        started = time.perf_counter()
        try:
            return self._sample(sampler.sample)
        finally:
            self.timings.generation_seconds = time.perf_counter() - started
            sampler.close()

    def _sample(self, sample: Callable[[], int]) -> FinishReason:
        tokenizer, session = self.engine.tower.tokenizer, self.engine.session
        while True:
            token = sample()
            if tokenizer.is_end(token):
                return "stop"
            self.timings.generated_tokens += 1
            self.pending.append(token)
            text, is_stopped = self.stops.feed(self.decoder.decode(tokenizer.piece(token)))
            if is_stopped:
                self._put(text)
                self.decoder.reset()
                return "stop"
            if text:
                self._put(text)
            if self.timings.generated_tokens == self.params.max_tokens or session.is_full:
                return "length"
            session.append(token)

    def _put(self, text: str) -> None:
        self.out.put(Piece(text, tuple(self.pending)))
        self.pending.clear()

    def _emit(self, text: str, reason: FinishReason) -> None:
        """The last piece: what was held back as the beginning of a stop string, and an unfinished character's mark."""
        text += self.stops.feed(self.decoder.decode(b"", final=True))[0] + self.stops.flush()
        self.out.put(Piece(text, tuple(self.pending), reason))

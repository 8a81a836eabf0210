"""An answer as it is generated: pieces of text, and the whole in the end."""

import codecs
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Protocol

from edge_llama.backends.base import AbortedError
from edge_llama.errors import EdgeLlamaError
from edge_llama.prompts.messages import ToolCall
from edge_llama.prompts.tool_parser import Parsed, ToolCallParser
from edge_llama.prompts.tools import Tool, Tools
from edge_llama.runtime.encoders import ImageEmbeddings
from edge_llama.runtime.kv_store import CacheOwner
from edge_llama.runtime.scheduler import Engine, Job
from edge_llama.sampling.constraint import Constraint, constraint
from edge_llama.sampling.logprobs import TokenLogprobs
from edge_llama.sampling.params import SamplingOptions, SamplingParams, check_biases
from edge_llama.sampling.stop_strings import StopStrings
from edge_llama.sampling.token_choice import TokenChoice

FinishReason = Literal["stop", "tool_calls", "length", "cancelled"]
"""``stop``: the model ended, a stop string was reached, or nothing can follow by the schema, regex or grammar;
``tool_calls``: the same, and it wants tools to be called; ``length``: max_tokens or a full context, and an answer by a
schema is not whole; or cancelled."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer: whole characters, tool calls that are complete, and the tokens since the last piece.

    ``logprobs`` has an entry for each token, or none if they were not asked for.
    The last piece has a ``finish_reason`` and perhaps no text.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class AnswerOptions(SamplingOptions, total=False):
    """The options of an answer in a chat: those of sampling, and what stands in its prompt.

    ``tools`` are functions or JSON schemas (:data:`edge_llama.prompts.tools.Tool`). The model is told of them, and
    calls that it writes are taken out of the text, in any form or in ``tool_format`` alone (``json``, ``pythonic``,
    ``bare``, ``tag``). ``template_variables`` are what the template asks for besides: ``date_string``,
    ``tools_in_user_message``, ``builtin_tools``, ...
    """

    tools: Iterable[Tool] | Tools | None
    tool_format: str | None
    template_variables: Mapping[str, Any] | None


@dataclass(slots=True)
class Timings:
    """What the work took: tokens, and seconds on the engine's thread."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the KV cache already held."""
    prompt_seconds: float = 0.0
    tiles: int = 0
    """Tiles of images that the vision tower embedded for this answer: none for what was known."""
    image_seconds: float = 0.0
    """Of ``prompt_seconds``, those that preparing and embedding them took."""
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prefilling what was not cached."""
        return (self.prompt_tokens - self.cached_tokens) / max(self.prompt_seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Speed of writing."""
        return self.generated_tokens / max(self.generation_seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer; ``logprobs`` has an entry for each token, or none if they were not asked for.

    ``notes`` say why a part of ``text`` that looks like a tool call is none. ``stop_string`` is the one that was
    reached, if one ended the answer; it is not in ``text``.
    """

    text: str
    tokens: tuple[int, ...]
    timings: Timings
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    notes: tuple[str, ...] = ()
    stop_string: str | None = None


@dataclass(eq=False, slots=True)
class Progress:
    """How far an answer has come. Who generates it writes here, from one thread; a :class:`Generation` reads."""

    timings: Timings
    pieces: list[Piece] = field(default_factory=list)
    end: Piece | EdgeLlamaError | None = None
    """The last piece or what ended the work instead; set before it is put into the queue."""
    ended: threading.Event = field(default_factory=threading.Event)
    notes: tuple[str, ...] = ()
    stop_string: str | None = None
    queue: "SimpleQueue[Piece | EdgeLlamaError]" = field(default_factory=SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _wake: Callable[[], object] | None = None
    _count: int = 0

    def put(self, piece: Piece) -> None:
        """A piece more."""
        self.pieces.append(piece)
        self._queue(piece)

    def finish(self, end: Piece | EdgeLlamaError) -> None:
        """The last piece, or what ended the work instead."""
        if isinstance(end, Piece):
            self.pieces.append(end)
        self.end = end
        self._queue(end)
        self.ended.set()

    def watch(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called once for each piece, and for an error: for those that are there, and as others come.

        It is called in the thread that puts them, which it must not keep.
        """
        with self._lock:
            self._wake, count = wake, self._count
        for _ in range(count):
            wake()

    def _queue(self, item: Piece | EdgeLlamaError) -> None:
        with self._lock:
            self.queue.put(item)
            self._count += 1
            wake = self._wake
        if wake:
            wake()

    def answer(self) -> Answer:
        """What there is, as a whole."""
        text = "".join(piece.text for piece in self.pieces)
        tokens = tuple(token for piece in self.pieces for token in piece.token_ids)
        logprobs = tuple(entry for piece in self.pieces for entry in piece.logprobs)
        calls = tuple(call for piece in self.pieces for call in piece.tool_calls)
        reason = (self.pieces[-1].finish_reason if self.pieces else None) or "cancelled"
        return Answer(text, tokens, self.timings, reason, logprobs, calls, self.notes, self.stop_string)


class Work(Protocol):
    """What generates an answer: in the engine's thread, or in another process."""

    @property
    def is_cancelled(self) -> bool:
        """Whether it was told to stop."""

    def cancel(self) -> None:
        """Stop it. Any thread may call this, any number of times, the garbage collector within one too."""

    def check_process(self) -> None:
        """EngineError in a fork of the process that began it: nobody would do the work."""


class Generation(Iterator[Piece]):
    """Iterate it for pieces as they come, or ask for the whole :meth:`result`.

    The work runs in the model's own thread from the start. It stops at once, also within a long prompt, on
    :meth:`cancel`, :meth:`close`, Ctrl-C while waiting, or when the object is no longer referenced.

    Threads may share it: each piece is given to one of them, :meth:`result` is the whole for all.
    """

    def __init__(
        self,
        progress: Progress,
        work: Work,
        *,
        on_finish: Callable[[Answer], None] | None = None,
        keep_alive: object = None,
    ) -> None:
        """``keep_alive`` is kept alive until the end; ``on_finish`` is called once, where pieces are taken."""
        self.timings = progress.timings
        self.taken: list[Piece] = []
        """The pieces that were iterated so far."""
        self._progress = progress
        self._queue = progress.queue
        self._lock = threading.RLock()
        self._is_finished = False
        self._on_finish = on_finish
        self._keep_alive = keep_alive
        self._job = work

    def __next__(self) -> Piece:
        if self._is_finished:
            raise StopIteration
        self._job.check_process()
        piece = self._take()
        if piece is self._progress.end:
            return self._finish(piece)
        assert isinstance(piece, Piece)  # noqa: S101 - an error is always the end
        self.taken.append(piece)
        return piece

    def _take(self) -> Piece | EdgeLlamaError:
        # A Ctrl-C may have come between an earlier taking of the end and its handling.
        if (end := self._progress.end) is not None and self._queue.empty():
            return end
        try:
            return self._queue.get()
        except BaseException:  # Ctrl-C: the work ends with the wait for it
            self._job.cancel()
            raise

    def _finish(self, end: Piece | EdgeLlamaError) -> Piece:
        self._queue.put(end)  # for whoever else waits: another thread, or the code that a signal interrupted
        with self._lock:
            if self._is_finished:
                raise StopIteration
            self._is_finished = True
            self._keep_alive = None
            if isinstance(end, EdgeLlamaError):
                # Its traceback will refer to this object and this frame, in a circle: neither may hold more.
                self._on_finish = None
                raise end
            self.taken.append(end)
            on_finish, self._on_finish = self._on_finish, None
            if on_finish:
                on_finish(self._progress.answer())
            return end

    def result(self) -> Answer:
        """Wait for the end; the whole answer, also what was iterated before. Raises what the work raised."""
        self._await_end()
        for _ in self:
            pass
        with self._lock:  # another thread may be in on_finish
            if isinstance(self._progress.end, EdgeLlamaError):
                raise self._progress.end
            return self._progress.answer()

    def _await_end(self) -> None:
        """Sleep until all pieces are there: to wake for each would take a core from the engine, token for token."""
        self._job.check_process()
        try:
            self._progress.ended.wait()
        except BaseException:  # Ctrl-C: the work ends with the wait for it
            self._job.cancel()
            raise

    def cancel(self) -> None:
        """Stop the work; the pieces so far can still be taken. Any thread may call it, any number of times."""
        self._job.cancel()

    def close(self) -> None:
        """Stop the work and take what remains, so that the answer so far is settled. Any thread may call it."""
        self._job.cancel()
        if not self._is_finished:
            self.result()

    @property
    def is_finished(self) -> bool:
        """Whether all pieces were taken."""
        return self._is_finished

    @property
    def is_cancelled(self) -> bool:
        """Whether the work was told to stop."""
        return self._job.is_cancelled

    def watch(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called once for each piece, and for an error: for those that are there, and as others come.

        So ``next`` need not be waited for. It is called in the thread that generates, which it must not keep.
        """
        self._progress.watch(wake)

    def __enter__(self) -> "Generation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_job"):
            self._job.cancel()


def generate(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    parser: ToolCallParser | None = None,
    on_finish: Callable[[Answer], None] | None = None,
    keep_alive: object = None,
    owner: CacheOwner | None = None,
    image_embeddings: ImageEmbeddings | None = None,
) -> Generation:
    """An answer to ``prompt`` from ``engine``; ``on_finish`` and ``keep_alive`` are :class:`Generation`'s.

    ``parser`` takes the tool calls out of the text; None: all is text.
    OptionError for params that the model's vocabulary can't follow, or a schema, regex or grammar that can't be.
    ``image_embeddings`` has what the prompt's negative ids stand for.
    For ``owner`` the KV cache of this prompt and answer is kept when others displace it.
    """
    check_biases(params, engine.tower.tokenizer)
    found = constraint(params, engine.tower.tokenizer)
    progress = Progress(Timings(prompt_tokens=len(prompt)))
    work = _Work(engine, tuple(prompt), params, found, progress, parser, owner, image_embeddings)
    job = engine.submit(work.run, on_error=progress.finish)
    return Generation(progress, job, on_finish=on_finish, keep_alive=keep_alive)


class _Work:
    """The generation loop, in the engine's thread. It holds no reference to the Generation, which may be dropped."""

    def __init__(
        self,
        engine: Engine,
        prompt: tuple[int, ...],
        params: SamplingParams,
        constraint: Constraint | None,
        progress: Progress,
        parser: ToolCallParser | None,
        owner: CacheOwner | None,
        image_embeddings: ImageEmbeddings | None,
    ) -> None:
        self.engine = engine
        self.prompt = prompt
        self.params = params
        self.constraint = constraint
        self.timings = progress.timings
        self.progress = progress
        self.parser = parser
        self.owner = owner
        self.image_embeddings = image_embeddings
        self.stops = StopStrings(params.stop)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        """Those of ``pending``, and perhaps of an end token after them."""

    def run(self, _job: Job) -> None:
        try:
            reason = self._generate()
        except AbortedError:
            reason = "cancelled"
        # What was held back: an unfinished character's mark, the beginning of a stop string or a tool call.
        rest = self._parse(self._flushed())
        end = self.parser.finish() if self.parser else Parsed()
        self.progress.notes = tuple(self.parser.notes) if self.parser else ()
        calls = rest.calls + end.calls
        if reason == "stop" and (calls or any(piece.tool_calls for piece in self.progress.pieces)):
            reason = "tool_calls"
        self.progress.finish(self._piece(Parsed(rest.text + end.text, calls), reason))

    def _generate(self) -> FinishReason:
        self._prefill()
        tower = self.engine.tower
        prompt = [token for token in self.prompt if token >= 0]
        sampler = tower.sampler(self.params, prompt)
        choose = TokenChoice(
            sampler.sample,
            tower.logits_view,
            self.params,
            self.constraint,
            tower.tokenizer,
            prompt,
            self.logprobs.append,
        )
        started = time.perf_counter()
        try:
            return self._decode(choose)
        finally:
            self.timings.generation_seconds = time.perf_counter() - started
            sampler.close()
            if choose.changes_logits:
                self.engine.session.has_logits = False  # neither a waiting cache nor a saved one may have them

    def _prefill(self) -> None:
        encoder, timings = self.engine.encoder, self.timings
        before = (encoder.encoded, encoder.seconds) if encoder else (0, 0.0)
        started = time.perf_counter()
        try:
            embed = self.image_embeddings.embed if self.image_embeddings else None
            timings.cached_tokens = self.engine.session.prefill(self.prompt, self.owner, embed)
        finally:
            timings.prompt_seconds = time.perf_counter() - started
            if encoder:
                timings.tiles, timings.image_seconds = encoder.encoded - before[0], encoder.seconds - before[1]

    def _decode(self, choose: TokenChoice) -> FinishReason:
        tokenizer, session = self.engine.tower.tokenizer, self.engine.session
        while True:
            token = choose()
            if tokenizer.is_end(token):
                return "stop"
            self.timings.generated_tokens += 1
            self.pending.append(token)
            if self.parser and token in self.parser.tags:
                self._put(self._parse(self._flushed()))
                self._put(self.parser.tag(token))
                text, is_stopped = "", False
            else:
                text, is_stopped = self.stops.feed(self.decoder.decode(tokenizer.piece(token)))
            self._put(self._parse(text))
            if is_stopped:
                self.progress.stop_string = self.stops.reached
                self.decoder.reset()
                return "stop"
            if choose.is_complete:
                return "stop"
            if self.timings.generated_tokens == self.params.max_tokens or session.is_full:
                return "length"
            session.append(token)

    def _flushed(self) -> str:
        """What was held back as an unfinished character or the beginning of a stop string: nothing completes it."""
        return self.stops.feed(self.decoder.decode(b"", final=True))[0] + self.stops.flush()

    def _parse(self, text: str) -> Parsed:
        return self.parser.feed(text) if self.parser else Parsed(text)

    def _put(self, parsed: Parsed) -> None:
        if not parsed.text and not parsed.calls:
            return
        self.progress.put(self._piece(parsed))

    def _piece(self, parsed: Parsed, reason: FinishReason | None = None) -> Piece:
        logprobs = tuple(self.logprobs[: len(self.pending)])
        piece = Piece(parsed.text, tuple(self.pending), logprobs, reason, parsed.calls)
        self.pending.clear()
        self.logprobs.clear()
        return piece

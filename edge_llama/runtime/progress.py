"""What a caller gets of an answer: pieces as they come, and the whole in the end; and how it waits for them."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal

from edge_llama.errors import EdgeLlamaError
from edge_llama.prompts.messages import ToolCall
from edge_llama.sampling.logprobs import TokenLogprobs

_log = logging.getLogger(__name__)
FinishReason = Literal["stop", "tool_calls", "length", "cancelled"]
"""``stop``: the model ended, a stop string was reached, or nothing can follow by the schema, regex or grammar;
``tool_calls``: the same, and it wants tools to be called; ``length``: max_tokens or a full context, and an answer by a
schema is not whole; or cancelled.

Examples:
    >>> model.generate("1 2 3 4", max_tokens=1).result().finish_reason
    'length'
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer: whole characters, tool calls that are complete, and the tokens since the last piece.

    ``thinking`` is what the model thinks before it answers, between tags that are part of neither text.
    ``logprobs`` has an entry for each token, or none if they were not asked for.
    The last piece has a ``finish_reason`` and perhaps no text.

    Examples:
        >>> pieces = list(model.chat(temperature=0).send("What is the capital of Japan?"))
        >>> "".join(piece.text for piece in pieces)
        'The capital of Japan is Tokyo.'
        >>> pieces[0].finish_reason, pieces[-1].finish_reason
        (None, 'stop')
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Diverged:
    """Where a prompt left what was in the cache: at its token ``position``, which would have been ``cached``.

    Both are the text of the next few tokens; what stands for an image is empty.

    Examples:
        >>> chat = model.chat(system="Be brief.")
        >>> _ = chat.send("Hello!").result()
        >>> chat.system = "Be polite."
        >>> timings = chat.send("Thanks!").result().timings
        >>> timings.diverged.cached, timings.diverged.wanted
        (' brief...', ' polite...')
    """

    position: int
    cached: str
    wanted: str


@dataclass(slots=True)
class Timings:
    """What the work took: tokens, and seconds, in which the engine may have worked for others too.

    Examples:
        >>> timings = model.chat().send("Hello!", temperature=0).result().timings
        >>> timings.prompt_tokens >= timings.cached_tokens
        True
        >>> timings.tokens_per_second > 0
        True
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the KV cache already held."""
    diverged: Diverged | None = None
    """Why it held no more, if something like the prompt was there."""
    queued_seconds: float = 0.0
    """Time before the engine began with it."""
    prompt_seconds: float = 0.0
    tiles: int = 0
    """Tiles of images that the vision tower embedded for this answer: none for what was known."""
    image_seconds: float = 0.0
    """Of ``prompt_seconds``, those that preparing and embedding them took."""
    generated_tokens: int = 0
    thinking_tokens: int = 0
    """Of ``generated_tokens``, those of what the model thought before it answered."""
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

    Examples:
        >>> answer = model.chat(temperature=0).send("What is the capital of Japan?").result()
        >>> answer.text, answer.finish_reason
        ('The capital of Japan is Tokyo.', 'stop')
        >>> len(answer.tokens) == answer.timings.generated_tokens
        True
    """

    text: str
    tokens: tuple[int, ...]
    timings: Timings
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    notes: tuple[str, ...] = ()
    stop_string: str | None = None
    thinking: str = ""
    """What the model thought before it answered."""


@dataclass(slots=True)
class Progress:
    """How far an answer has come. Who generates it writes here, one thread at a time; callers wait for it."""

    timings: Timings
    pieces: list[Piece] = field(default_factory=list)
    queue: SimpleQueue[Piece | EdgeLlamaError] = field(default_factory=SimpleQueue)
    """The pieces that were not taken yet."""
    end: Piece | EdgeLlamaError | None = None
    """The last piece or what ended the work instead; set before it is put into the queue."""
    ended: threading.Event = field(default_factory=threading.Event)
    notes: tuple[str, ...] = ()
    stop_string: str | None = None
    _unsent: deque[Piece] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _watch: Callable[[], object] | None = None
    _count: int = 0
    """What was put into the queue so far."""
    _listeners: deque[Callable[[], None]] = field(default_factory=deque)
    _end_listeners: deque[Callable[[], None]] = field(default_factory=deque)

    def put(self, piece: Piece) -> None:
        """There is more, which :meth:`send` gives to who waits."""
        self.pieces.append(piece)
        self._unsent.append(piece)

    def send(self) -> None:
        """Wake who waits for what was put."""
        while self._unsent:
            self._queue(self._unsent.popleft())

    def finish(self, end: Piece | EdgeLlamaError) -> None:
        """Nothing comes after ``end``."""
        self.send()
        if isinstance(end, Piece):
            self.pieces.append(end)
        self.end = end
        self._queue(end)
        self.ended.set()
        _tell(self._end_listeners)

    def listen(self, told: Callable[[], None], *, to_end: bool = False) -> None:
        """Have ``told`` called once, by the thread that writes, when there is more than now, or not before the end."""
        (self._end_listeners if to_end else self._listeners).append(told)

    def watch(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called once for each piece, and for an error: for those that are there, and as others come."""
        with self._lock:
            self._watch, count = wake, self._count
        for _ in range(count):
            wake()

    def _queue(self, item: Piece | EdgeLlamaError) -> None:
        with self._lock:
            self.queue.put(item)
            self._count += 1
            watch = self._watch
        if watch:
            self._call(watch)
        _tell(self._listeners)

    def _call(self, watch: Callable[[], object]) -> None:
        """A caller's function that fails is not called again: others are served by this thread too."""
        try:
            watch()
        except Exception as error:
            _log.error("what watches an answer failed: %s", error, exc_info=error)
            with self._lock:
                self._watch = None

    def answer(self) -> Answer:
        """The answer as far as it came."""
        text = "".join(piece.text for piece in self.pieces)
        tokens = tuple(token for piece in self.pieces for token in piece.token_ids)
        logprobs = tuple(entry for piece in self.pieces for entry in piece.logprobs)
        calls = tuple(call for piece in self.pieces for call in piece.tool_calls)
        reason = self.pieces[-1].finish_reason if self.pieces else None
        return Answer(
            text,
            tokens,
            self.timings,
            reason or "cancelled",
            logprobs,
            calls,
            self.notes,
            stop_string=self.stop_string,
            thinking="".join(piece.thinking for piece in self.pieces),
        )


def _tell(listeners: deque[Callable[[], None]]) -> None:
    while listeners:
        listeners.popleft()()

"""An answer as it is generated: pieces of text, and the whole in the end."""

import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import Empty
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, SupportsIndex, TypedDict

from edge_llama.backends.adapters import AdapterSet
from edge_llama.errors import CopyError, EdgeLlamaError
from edge_llama.planning.adapters import AskedAdapters
from edge_llama.prompts.thinking import ThinkingParser
from edge_llama.prompts.tool_choice import ToolChoice
from edge_llama.prompts.tool_grammar import CallGrammar
from edge_llama.prompts.tool_parser import ToolCallParser
from edge_llama.prompts.tools import Tool, Tools
from edge_llama.runtime.answering import Answering
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.encoders import ImageEmbeddings
from edge_llama.runtime.progress import Answer, Diverged, FinishReason, Piece, Progress, Timings
from edge_llama.runtime.request import Request
from edge_llama.runtime.scheduler import Scheduler
from edge_llama.sampling.params import SamplingOptions, SamplingParams

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "Answer",
    "AnswerOptions",
    "Diverged",
    "FinishReason",
    "Generation",
    "Piece",
    "Progress",
    "RequestOptions",
    "Timings",
]


class RequestOptions(SamplingOptions, total=False):
    """The options of a generation: those of sampling, and two more.

    ``deadline``: seconds until DeadlineError ends it. ``adapters``: which of those that the model was opened with are
    added to it, names or weights by name (``{"legal": 0.5}``); None: the model alone answers.

    Examples:
        >>> options: edge_llama.RequestOptions = {"max_tokens": 4, "temperature": 0, "deadline": 60}
        >>> model.generate("1 2 3 4", **options).result().finish_reason
        'length'
    """

    deadline: float | None
    adapters: AskedAdapters | None


class AnswerOptions(RequestOptions, total=False):
    """The options of an answer in a chat: those of a generation, and what stands in its prompt.

    ``tools`` are functions or JSON schemas (:data:`edge_llama.prompts.tools.Tool`). The model is told of them, and
    calls that it writes are taken out of the text, in any form or in ``tool_format`` alone (``json``, ``pythonic``,
    ``bare``, ``tag``). ``tool_choice`` says whether it calls some: ``auto`` or None (it decides; with a
    ``json_schema``, between calls and what fits it), ``none`` (all is text), ``required`` (the answer is one to 16
    calls, whose arguments fit the tools' schemas) or a tool's name (one call of it; also as ``{"type": "function",
    "function": {"name": ...}}``). Without ``parallel_tool_calls`` the answer ends after one call.
    ``template_variables`` are what the template asks for besides: ``date_string``, ``tools_in_user_message``,
    ``builtin_tools``, ...

    Examples:
        >>> def ask(text: str, **options: Unpack[edge_llama.AnswerOptions]) -> str:
        ...     return model.chat().send(text, **options).result().text
        >>> ask("Who are you?", temperature=0, max_tokens=20)
        'I am SmolLM.'
    """

    tools: Iterable[Tool] | Tools | None
    tool_format: str | None
    tool_choice: ToolChoice | None
    parallel_tool_calls: bool
    template_variables: Mapping[str, Any] | None


class AnswerParts(TypedDict, total=False):
    """What an answer is generated with beside its prompt and sampling: see :func:`generate`."""

    thinking: ThinkingParser | None
    parser: ToolCallParser | None
    calls: CallGrammar | None
    on_finish: Callable[[Answer], None] | None
    owner: CacheOwner | None
    image_embeddings: ImageEmbeddings | None
    deadline: float | None
    adapters: AdapterSet


class Work(Protocol):
    """What generates an answer: a request in the scheduler, or another process."""

    @property
    def is_cancelled(self) -> bool:
        """Whether it was told to stop."""

    def cancel(self) -> None:
        """Stop it, and end the answer at once. Any thread may call it, the garbage collector within a call too."""

    def check_process(self) -> None:
        """EngineError in a fork of the process that began it: nobody would do the work."""


class _Requested:
    """A request in a scheduler, as the work for an answer."""

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        """Submit it. EngineError if the model is closed, BusyError if too many wait."""
        self._scheduler = scheduler
        self._request = request
        scheduler.submit(request)

    @property
    def is_cancelled(self) -> bool:
        """Whether it was told to stop."""
        return self._request.is_cancelled

    def cancel(self) -> None:
        """See :meth:`Scheduler.cancel`."""
        self._scheduler.cancel(self._request)

    def check_process(self) -> None:
        """See :meth:`Scheduler.check_process`."""
        self._scheduler.check_process()


class Generation(Iterator[Piece], AsyncIterator[Piece]):
    """Iterate it for pieces as they come, or ask for the whole :meth:`result`.

    In an event loop ``async for`` and ``await`` do the same; no thread waits then. The work runs in the model's own
    thread from the start. It stops at once, also within a long prompt, on :meth:`cancel`, :meth:`close`, Ctrl-C while
    waiting, when the task that waits is cancelled, or when the object is no longer referenced.

    Threads and tasks may share it: each piece is given to one of them, :meth:`result` is the whole for all.

    Examples:
        >>> with model.chat(temperature=0).send("What is the capital of Japan?") as answer:
        ...     first = next(answer)
        ...     whole = answer.result()
        >>> whole.text.startswith(first.text), answer.is_finished, answer.taken[0] == first
        (True, True, True)
        >>> story = model.chat().send("Tell a very long story.")
        >>> story.cancel()
        >>> story.result().finish_reason, story.is_cancelled
        ('cancelled', True)

        In an event loop:

        >>> async def main():
        ...     answer = model.chat(temperature=0).send("Say 5.")
        ...     return [piece.text async for piece in answer], (await answer).text
        >>> asyncio.run(main())[1]
        '5'
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
        self.taken: list[Piece] = []
        """The pieces that were iterated so far."""
        self._progress = progress
        self._lock = threading.RLock()
        self._is_finished = False
        self._on_finish = on_finish
        self._keep_alive = keep_alive
        self._work = work

    @property
    def timings(self) -> Timings:
        """What the work took so far."""
        return self._progress.timings

    def __next__(self) -> Piece:
        if self._is_finished:
            raise StopIteration
        self._work.check_process()
        return self._taken(self._take())

    def _take(self) -> Piece | EdgeLlamaError:
        # A Ctrl-C may have come between an earlier taking of the end and its handling.
        if (end := self._progress.end) is not None and self._progress.queue.empty():
            return end
        try:
            return self._progress.queue.get()
        except BaseException:  # Ctrl-C: the work ends with the wait for it
            self._work.cancel()
            raise

    def _taken(self, piece: Piece | EdgeLlamaError) -> Piece:
        if piece is self._progress.end:
            return self._finish(piece)
        assert isinstance(piece, Piece)  # noqa: S101 - an error is always the end
        self.taken.append(piece)
        return piece

    def _finish(self, end: Piece | EdgeLlamaError) -> Piece:
        self._progress.queue.put(end)  # for whoever else waits: another thread, or the code that a signal interrupted
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

    async def __anext__(self) -> Piece:
        while not self._is_finished:
            try:
                piece = self._progress.queue.get_nowait()
            except Empty:
                await self._news(self._progress.queue.empty)
                continue
            try:
                return self._taken(piece)
            except StopIteration:
                break
        raise StopAsyncIteration

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._awaited().__await__()

    async def _awaited(self) -> Answer:
        while not self._progress.ended.is_set():
            await self._news(lambda: not self._progress.ended.is_set(), to_end=True)
        return self.result()

    async def _news(self, is_old: Callable[[], bool], *, to_end: bool = False) -> None:
        """Wait until there is more, as ``is_old`` says; the work ends with the wait for it."""
        import asyncio  # noqa: PLC0415 - takes longer to load than all of edge_llama's own

        loop = asyncio.get_running_loop()
        self._work.check_process()
        told: asyncio.Future[None] = loop.create_future()
        self._progress.listen(lambda: _wake(loop, told), to_end=to_end)
        if is_old():
            try:
                await told
            except asyncio.CancelledError:
                self._work.cancel()
                raise

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
        self._work.check_process()
        try:
            self._progress.ended.wait()
        except BaseException:  # Ctrl-C: the work ends with the wait for it
            self._work.cancel()
            raise

    def watch(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called once for each piece, and for an error: for those that are there, and as others come.

        So ``next`` need not be waited for. It is called in the thread that generates, which it must not keep.
        """
        self._progress.watch(wake)

    def cancel(self) -> None:
        """Stop the work; the pieces so far can still be taken. Any thread may call it, any number of times."""
        self._work.cancel()

    def close(self) -> None:
        """Stop the work and take what remains, so that the answer so far is settled. Any thread may call it."""
        self._work.cancel()
        if not self._is_finished:
            self.result()

    @property
    def is_finished(self) -> bool:
        """Whether all pieces were taken."""
        return self._is_finished

    @property
    def is_cancelled(self) -> bool:
        """Whether the work was told to stop."""
        return self._work.is_cancelled

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        """CopyError, from pickle and copy: the answer is being generated in this process."""
        raise CopyError(
            "a Generation can't be pickled or copied",
            remedy="threads and tasks share it; what can be is its answer: generation.result()",
        )

    def __enter__(self) -> "Generation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_work"):
            self._work.cancel()


def generate(
    scheduler: Scheduler,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    thinking: ThinkingParser | None = None,
    parser: ToolCallParser | None = None,
    calls: CallGrammar | None = None,
    on_finish: Callable[[Answer], None] | None = None,
    keep_alive: object = None,
    owner: CacheOwner | None = None,
    image_embeddings: ImageEmbeddings | None = None,
    deadline: float | None = None,
    adapters: AdapterSet = (),
) -> Generation:
    """An answer to ``prompt``: ``on_finish`` and ``keep_alive`` are :class:`Generation`'s, the others Answering's."""
    request = Answering(
        scheduler.tower,
        prompt,
        params,
        thinking=thinking,
        parser=parser,
        calls=calls,
        owner=owner,
        image_embeddings=image_embeddings,
        deadline=deadline,
        adapters=adapters,
    )
    work = _Requested(scheduler, request)
    return Generation(request.progress, work, on_finish=on_finish, keep_alive=keep_alive)


def _wake(loop: "asyncio.AbstractEventLoop", told: "asyncio.Future[None]") -> None:
    """Called by the thread that writes the answer; the loop may be closed by now."""

    def wake() -> None:
        if not told.done():
            told.set_result(None)

    with suppress(RuntimeError):
        loop.call_soon_threadsafe(wake)

"""A conversation: messages, and answers that follow them."""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol, SupportsIndex, Unpack

from edge_llama.backends.adapters import AdapterSet
from edge_llama.errors import (
    ContextFullError,
    CopyError,
    EdgeLlamaError,
    EngineError,
    OptionError,
    check_known,
)
from edge_llama.generation import Answer, AnswerOptions, Generation, Piece
from edge_llama.media.documents.document import Document, DocumentSource, open_documents
from edge_llama.media.images import Image, ImageSource, open_images
from edge_llama.planning.adapters import AskedAdapters
from edge_llama.prompts.context_overflow import (
    Shortened,
    Shortening,
    WhenFull,
    check_when_full,
    exchanges_of,
    least_of,
)
from edge_llama.prompts.messages import (
    QUESTIONS,
    Message,
    ToolCall,
    images_of,
    open_calls,
    tool_result,
    up_to_last_question,
)
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.prompts.tool_choice import AUTO
from edge_llama.prompts.tools import Tool, Tools, tools_of
from edge_llama.retrieval.attaching import Attaching
from edge_llama.retrieval.passages import Passage
from edge_llama.retrieval.ranking import Embedder
from edge_llama.retrieval.search import PassageSearch
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.encoders import ImageEncoder, check_room
from edge_llama.sampling.params import SamplingParams, check_whole

_log = logging.getLogger(__name__)


class Sessions(Protocol):
    """What an engine holds of a model's chats; :class:`edge_llama.runtime.chat_sessions.ChatSessions` has it."""

    def share(self, owner: CacheOwner, other: CacheOwner) -> None:
        """Keep for ``other`` what is kept for ``owner``."""

    def tag(self, owner: CacheOwner, conversation: str) -> None:
        """What the owner's answers leave is kept on disk as this conversation's."""

    def forget(self, conversation: str) -> None:
        """Keep nothing of a conversation any more, in memory or on disk."""

    def store(self, owner: CacheOwner) -> None:
        """Write what the owner's last answer left to disk now. OutputError if that fails."""

    def why_not_kept(self, conversation: str) -> str | None:
        """Why what there is of a conversation on disk can't be used, if so."""

    def save(self, path: str | os.PathLike[str], messages: Sequence[Message], owner: CacheOwner) -> None:
        """Write ``messages`` and what is kept for ``owner`` to a session file."""

    def resume(
        self, path: str | os.PathLike[str], owner: CacheOwner, adapters: AdapterSet = ()
    ) -> tuple[tuple[Message, ...], str | None]:
        """The messages of a session file, whose cache is taken over for ``owner``; why it can't be, if so.

        ``owner`` goes on with ``adapters``.
        """


class ChatModel(Protocol):
    """What a chat needs of its model; :class:`edge_llama.Model` has it."""

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may take together."""

    @property
    def sessions(self) -> Sessions:
        """What the engine holds of the model's chats."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of texts."""

    def require_vision(self) -> ImageEncoder:
        """What embeds images; InputError if the model sees none."""

    def answer(
        self,
        messages: Sequence[Message],
        *,
        on_finish: Callable[[Answer], None] | None = None,
        owner: CacheOwner | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """Answer a conversation: see :meth:`edge_llama.Model.answer`."""

    def prefetch(
        self,
        messages: Sequence[Message],
        owner: CacheOwner,
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        adapters: AskedAdapters | None = None,
    ) -> int:
        """Have what is kept of a conversation in the engine: see :meth:`edge_llama.Model.prefetch`."""

    def count_tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Tool] | Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        n_ctx: int | None = None,
    ) -> int:
        """How many tokens the conversation takes: see :meth:`edge_llama.Model.count_tokens`."""


class ChatOptions(AnswerOptions, total=False):
    """The options of a chat: those of all its answers, and what is done when it no longer fits the context.

    ``when_full`` says what happens when a message leaves no room for an answer: ``error`` refuses it once it does not
    fit at all, ``drop-oldest`` leaves out the oldest exchanges, ``compact`` has the model summarise them; never the
    system message. ``on_shortened`` is called with what was done, which ``Chat.shortened`` keeps.

    Examples:
        >>> told = []
        >>> with edge_llama.open(n_ctx=256) as model:
        ...     chat = model.chat(when_full="drop-oldest", on_shortened=told.append, temperature=0, max_tokens=20)
        ...     while not told:
        ...         answer = chat.send("What is the capital of Japan?").result()
        >>> told[0].dropped > 0, told[0].n_ctx
        (True, 256)
    """

    when_full: WhenFull
    on_shortened: Callable[[Shortened], None] | None


@dataclass(eq=False, slots=True)
class _Exchange:
    """An answer that is being generated, what it answers, and the message in whose place that comes: often itself.

    The chat holds the generation weakly: who drops it has left, and nothing refers to itself in a circle.
    """

    question: Message
    replaced: Message
    generation: "weakref.ref[Generation]"
    taken: list[Piece]
    is_settled: bool = False


class Chat:
    """Messages so far. What was prefilled once is not prefilled again, while there is memory to keep its KV cache.

    Examples:
        >>> chat = model.chat(system="Answer briefly.", temperature=0)
        >>> for piece in chat.send("What is the capital of Japan?"):
        ...     print(piece.text, end="")
        The capital of Japan is Tokyo.
        >>> chat.send("And of Egypt?").result().text
        'The capital of Egypt is Cairo.'
        >>> other = chat.fork()  # goes on from here by itself; nothing is prefilled again
        >>> other.rewind()  # takes the last exchange back
        >>> [message.role for message in other.messages], len(chat.messages)
        (['system', 'user', 'assistant'], 5)
        >>> other.retry(seed=1).result().text == chat.messages[2].content
        True
        >>> other.edit("What is the capital of France?").result().text  # in place of the last question
        'The capital of France is Paris.'
        >>> chat.save("capitals.session")
        >>> model.load_chat("capitals.session").messages == chat.messages
        True
        >>> chat.clear()
        >>> chat.system
        'Answer briefly.'
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        system: str | None = None,
        when_full: WhenFull = "error",
        on_shortened: Callable[[Shortened], None] | None = None,
        **options: Unpack[AnswerOptions],
    ) -> None:
        """See :meth:`edge_llama.Model.chat`."""
        _check_options(options, "chat", Chat.__init__)
        self.when_full = check_when_full(when_full)
        self.reread_reason: str | None = None
        """Why a loaded conversation is prefilled again, with the first message; None if it is not."""
        self.shortened: Shortened | None = None
        """What was last done to make the conversation fit."""
        self.frames_shown = 0
        """Frames of the last video that were shown to the model."""
        self.passages: tuple[Passage, ...] = ()
        """The passages that stand in the last message for its files; none if these stand there whole."""
        self._passage_search = PassageSearch()
        self._model = model
        self.options: AnswerOptions = {**options, "tools": tools_of(options.get("tools"))}
        """What :meth:`Model.answer` gets with each message, unless a message has its own."""
        self.cache_owner = CacheOwner()
        """For whom the engine keeps the KV cache of this conversation."""
        self._on_shortened = on_shortened
        self._summary: Generation | None = None
        # Never held while another answer's end is awaited: that one's taker needs it to settle.
        self._lock = threading.RLock()
        self._exchange: _Exchange | None = None
        self.messages: list[Message] = []
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message; setting it keeps the conversation, None removes it.

        An answer that is being generated joins the conversation under the new one.
        """
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        first = [Message("system", text)] if text is not None else []
        with self._lock:
            self.messages = first + [message for message in self.messages if message.role != "system"]

    def send(
        self,
        text: str,
        *,
        images: Iterable[ImageSource] = (),
        video: str | os.PathLike[str] | None = None,
        files: Iterable[DocumentSource] = (),
        retrieve: bool = False,
        embedding_model: Embedder | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """Say ``text`` and get the answer, streamed; ``options`` are those of :meth:`edge_llama.Model.answer`.

        ``images`` stand before the text, in order; after them frames of ``video`` with their times, two a second or as
        many as the context holds with room for an answer (``frames_shown`` says how many). InputError for what is none,
        or if the model sees no images.

        The text of ``files`` stands before all that, each under its name; ContextFullError with its tokens and the room
        that is left if they don't fit. With ``retrieve`` the passages nearest to ``text`` are then taken that leave
        room for an answer (``passages`` says which): nearest by words, and with an ``embedding_model`` (any open model
        that embeds) by its vectors too, which takes its time before this returns, once for each file. DocumentError
        for a file whose text can't be had.

        The exchange joins ``messages`` when the answer ends. A cancelled answer stays as far as it came, one that
        was dropped as far as it was taken; if it had not begun, or an error ended it, the conversation is as it was
        before. EngineError while the last answer is neither ended, cancelled nor dropped.

        If it leaves too little of the context for an answer, the conversation is shortened first as ``when_full``
        says, which is told; summarising takes its time before this returns. ContextFullError if it can't fit.
        """
        _check_options(options, "send", Chat.send)
        self._end_last()
        question = self._question(text, open_images(images), video, options)
        documents = open_documents(files)
        question, passages = self._with_files(question, documents, options, is_searched=retrieve, by=embedding_model)
        with self._lock:
            generation = self._answer([*self.messages, question], options)
            self.passages = passages
            return generation

    def file_tokens(self, files: Iterable[DocumentSource]) -> list[int]:
        """What each file takes of the context before the next message, exactly.

        ContextFullError if together they don't fit, DocumentError as :meth:`send`.
        """
        question, _ = self._with_files(Message("user", "?"), open_documents(files), {})
        return [document.tokens or 0 for document in question.documents]

    def retry(self, **options: Unpack[AnswerOptions]) -> Generation:
        """Answer the last user message or tool results again, in place of the last answer."""
        _check_options(options, "retry", Chat.retry)
        self._end_last()
        with self._lock:
            messages = up_to_last_question(self.messages)
            if not messages:
                raise OptionError("there is nothing to answer again", remedy="send a message first")
            return self._answer(messages, options)

    def edit(self, text: str, **options: Unpack[AnswerOptions]) -> Generation:
        """Say ``text`` in place of the last user message's, and get another answer in place of all that followed it.

        Images and whatever else that message holds stay. Until the answer joins, the conversation is as it was; so it
        remains after an error. OptionError if there is no user message.
        """
        _check_options(options, "edit", Chat.edit)
        self._end_last()
        with self._lock:
            at = max((at for at, message in enumerate(self.messages) if message.role == "user"), default=None)
            if at is None:
                raise OptionError("there is no message to edit", remedy="send one first")
            old = self.messages[at]
            return self._answer([*self.messages[:at], old.with_last_text(text)], options, replaced=old)

    def fork(self) -> "Chat":
        """A second chat that goes on from here. Neither prefills again what was said so far."""
        self._end_last()
        with self._lock:
            self._check_idle()
            other = Chat(self._model, when_full=self.when_full, on_shortened=self._on_shortened, **self.options)
            other.messages = list(self.messages)
            other._passage_search = self._passage_search
            self._model.sessions.share(self.cache_owner, other.cache_owner)
        return other

    def rewind(self, exchanges: int = 1) -> None:
        """Take back the last exchanges: what was asked and answered. OptionError if there are not so many."""
        self._end_last()
        with self._lock:
            self._check_idle()
            head, said = exchanges_of(self.messages)
            count = check_whole("exchanges", exchanges, 1, 2**31 - 1)
            if count > len(said):
                raise OptionError(f"there are {len(said):,} exchanges to take back, not {count:,}")
            self.messages = [*head, *(message for exchange in said[:-count] for message in exchange)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation and its KV cache to one file, for :meth:`edge_llama.Model.load_chat`.

        The file appears whole or not at all, readable by its owner only, in place of an older session. Raises
        OutputError; EngineError while an answer is being generated.
        """
        self._end_last()
        with self._lock:
            self._check_idle()
            self._model.sessions.save(path, self.messages, self.cache_owner)

    def compact(self) -> Shortened | None:
        """Have the model summarise all exchanges but the last, in their place; None if there are none.

        It takes the time of prefilling what is not in the KV cache and of generating the summary.
        """
        self._end_last()
        with self._lock:
            self._check_idle()
            if len(exchanges_of(self.messages)[1]) < 2:
                return None
            self.messages, told = self._shortening(self.options).compact(self.messages, keep=1)
            self._tell(told)
            return told

    def add_tool_result(self, call: ToolCall, result: Any) -> None:
        """Answer a call of the last message: with text as it is, with anything else as JSON.

        OptionError if the last message has no such call, it was answered, or JSON can't express the result.
        """
        self._end_last()
        message = tool_result(call, result)
        with self._lock:
            if call not in self.open_calls:
                raise OptionError(f"no call {call.id} of {call.name} waits for a result")
            self.messages = [*self.messages, message]

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """Tool calls of the last answer that have no result yet."""
        return open_calls(self.messages)

    def answer(self, **options: Unpack[AnswerOptions]) -> Generation:
        """Have the model go on after the results of its tool calls, as :meth:`send` does after a message.

        OptionError if a call has no result yet, or the last message is the model's own.
        """
        _check_options(options, "answer", Chat.answer)
        self._end_last()
        with self._lock:
            if waiting := self.open_calls:
                raise OptionError(f"no result for the call of {waiting[0].name}", remedy="give it by add_tool_result")
            if not self.messages or self.messages[-1].role not in QUESTIONS:
                raise OptionError("there is nothing to answer", remedy="send a message")
            return self._answer(self.messages, options)

    def run_tools(self, text: str, *, max_rounds: int = 5, **options: Unpack[AnswerOptions]) -> Answer:
        """Say ``text``, call the Python functions that the model asks for, and let it go on; its last answer.

        After ``max_rounds`` of calls the answer may be one that asks for more. A function whose arguments the model
        gets wrong is not called: the model is told. What a function raises comes through, and the call stays open.
        A ``tool_choice`` is for the first answer: those to results are the model's own, or it would call for ever.
        """
        rounds = check_whole("max_rounds", max_rounds, 0, 1000)
        _check_options(options, "run_tools", Chat.run_tools)
        options["tools"] = tools = tools_of(options.get("tools", self.options["tools"]))
        answer = self.send(text, **options).result()
        while answer.tool_calls and rounds:
            rounds -= 1
            options["tool_choice"] = AUTO
            for call in answer.tool_calls:
                self.add_tool_result(call, tools.run(call))
            answer = self.answer(**options).result()
        return answer

    def clear(self) -> None:
        """Forget all but the system message, also the answer that is being generated: it goes on, but joins no more."""
        with self._lock:
            if self._exchange:
                self._exchange.is_settled = True
            self.messages = [message for message in self.messages if message.role == "system"]
            self.cache_owner = CacheOwner()

    def prefetch(self) -> bool:
        """Have what is kept of the conversation in the engine; whether that is all up to the last answer at least."""
        options, asked = self.options, up_to_last_question(self.messages)
        tools, variables = options["tools"], options.get("template_variables")
        known = self._model.prefetch(
            self.messages,
            self.cache_owner,
            tools=tools,
            template_variables=variables,
            adapters=options.get("adapters"),
        )
        return not asked or known >= self._counter({})(asked)

    def cancel(self) -> None:
        """Stop the answer or summary that is being generated, if any. Any thread may call it."""
        if summary := self._summary:
            summary.cancel()
        exchange = self._exchange
        if exchange and (generation := exchange.generation()):
            generation.cancel()

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        """CopyError, from pickle and copy: its KV cache is in the model's memory."""
        raise CopyError(
            "a Chat can't be pickled or copied",
            remedy="fork() is a second one, save() a file for another process; chat.messages can be pickled",
        )

    def _question(
        self, text: str, images: Sequence[Image], video: str | os.PathLike[str] | None, options: AnswerOptions
    ) -> Message:
        if images or video is not None:
            self._model.require_vision()
        if video is None:
            return Message("user", [*images, text]) if images else Message("user", text)
        from edge_llama.media import video as clips  # noqa: PLC0415 - an extra, and PyAV takes its time

        spec, clip = self._model.require_vision().spec, clips.probe(video)
        used = self._counter(options)([*self.messages, Message("user", [*images, text])])
        frames = clips.frames(video, clips.frames_to_show(clip, spec, self._model.n_ctx, used), spec)
        self.frames_shown = len(frames)
        _log.info("%s: %s frames of %.1f seconds are shown", os.fsdecode(video), len(frames), clip.duration)
        return Message("user", [*images, *clips.as_parts(frames), text])

    def _with_files(
        self,
        question: Message,
        documents: Sequence[Document],
        options: AnswerOptions,
        *,
        is_searched: bool = False,
        by: Embedder | None = None,
    ) -> tuple[Message, tuple[Passage, ...]]:
        """The question with the documents before it, or with the passages that are given with it."""
        if not documents:
            return question, ()
        count, max_tokens = self._counter(options), options.get("max_tokens", self.options.get("max_tokens"))

        def attached(before: Sequence[Message]) -> tuple[Message, tuple[Passage, ...]]:
            attaching = Attaching(
                self._model.n_ctx,
                lambda asked: count([*before, asked], n_ctx=self._model.n_ctx),
                lambda text: len(self._model.tokenizer.encode(text)),
                SamplingParams(max_tokens=max_tokens).max_tokens,
            )
            if is_searched:
                return attaching.retrieved(question, documents, self._passage_search, by)
            return attaching.whole(question, documents), ()

        try:
            return attached(self.messages)
        except ContextFullError:
            if self.when_full == "error":
                raise
        return attached([message for message in self.messages if message.role == "system"])

    def _answer(
        self, messages: Sequence[Message], options: AnswerOptions, *, replaced: Message | None = None
    ) -> Generation:
        self._check_idle()  # again, under the lock: another thread may have been faster
        options = {**self.options, **options}
        messages = self._with_room(messages, options)

        def settle(answer: Answer) -> None:
            said = Message("assistant", answer.text, answer.tool_calls, thinking=answer.thinking)
            self._settle(exchange, said, is_whole=answer.finish_reason != "cancelled")

        generation = self._model.answer(messages, on_finish=settle, owner=self.cache_owner, **options)
        question = messages[-1]
        self._exchange = exchange = _Exchange(question, replaced or question, weakref.ref(generation), generation.taken)
        return generation

    def _with_room(self, messages: Sequence[Message], options: AnswerOptions) -> Sequence[Message]:
        """``messages``, the last of which is a question, or fewer: such as leave room for an answer."""
        if self.when_full == "error":
            return messages
        # Before the model summarises: the question has to fit with nothing but the system message before it.
        self._check_fits(least_of(messages), options)
        max_tokens = SamplingParams(max_tokens=options.get("max_tokens")).max_tokens
        shorter, told = self._shortening(options).fit(messages, self.when_full, max_tokens)
        if told:
            # With a retry's question, and its answer.
            self.messages = [*shorter[:-1], *self.messages[len(messages) - 1 :]]
            self._tell(told)
        return shorter

    def _check_fits(self, messages: Sequence[Message], options: AnswerOptions) -> None:
        """ContextFullError if these messages alone are more than the context holds."""
        n_ctx, images = self._model.n_ctx, images_of(messages)
        needed = self._counter(options)(messages, n_ctx=n_ctx)
        check_room(needed, n_ctx, images, self._model.require_vision() if images else None)

    def _shortening(self, options: AnswerOptions) -> Shortening:
        summarize = partial(self._summarize, options.get("adapters"))
        return Shortening(self._model.n_ctx, self._counter(options), summarize)

    def _counter(self, options: AnswerOptions) -> Callable[..., int]:
        """``count_tokens`` of the model with those options of the chat and of an answer that stand in its prompt."""
        options = {**self.options, **options}
        variables = options.get("template_variables")
        return partial(self._model.count_tokens, tools=options["tools"], template_variables=variables)

    def _summarize(self, adapters: AskedAdapters | None, messages: Sequence[Message], max_tokens: int) -> str:
        self._summary = summary = self._model.answer(
            messages,
            owner=self.cache_owner,
            adapters=adapters,
            temperature=0,
            max_tokens=max_tokens,
            thinking_budget=0,
        )
        try:
            answer = summary.result()
        finally:
            self._summary = None
        if answer.finish_reason == "cancelled":
            raise EngineError("the summary was cancelled: the conversation is as it was", remedy="send it again")
        return answer.text

    def _tell(self, told: Shortened) -> None:
        self.shortened = told
        _log.info("%s", told)
        if self._on_shortened:
            self._on_shortened(told)

    def _check_idle(self) -> None:
        generation = self._exchange.generation() if self._exchange else None
        if generation and not generation.is_finished:
            raise EngineError("an answer is still being made", remedy="take it to its end, or close it")

    def _end_last(self) -> None:
        """Settle the last answer if it was cancelled or dropped; EngineError if it is still in use."""
        exchange = self._exchange
        generation = exchange.generation() if exchange else None
        if generation and generation.is_cancelled:
            try:
                generation.close()
            except EdgeLlamaError as error:
                _log.warning("the last answer, which was cancelled, had failed: %s", error)
        elif generation:
            self._check_idle()
        elif exchange:
            text = "".join(piece.text for piece in exchange.taken)
            calls = tuple(call for piece in exchange.taken for call in piece.tool_calls)
            thinking = "".join(piece.thinking for piece in exchange.taken)
            self._settle(exchange, Message("assistant", text, calls, thinking=thinking), is_whole=False)

    def _settle(self, exchange: _Exchange, said: Message, *, is_whole: bool) -> None:
        """Let the exchange join the messages as they are now; once, and not if they were cleared meanwhile."""
        with self._lock:
            if exchange.is_settled:
                return
            exchange.is_settled = True
            if not said.content and not said.tool_calls and not said.thinking and not is_whole:
                return
            places = [at for at, message in enumerate(self.messages) if message is exchange.replaced]
            before = self.messages[: places[-1]] if places else self.messages  # a new one is not there yet
            self.messages = [*before, exchange.question, said]


def _check_options(options: Mapping[str, Any], where: str, method: Callable[..., Any]) -> None:
    """UnknownOptionError for one that no answer has; ``method`` has keywords of its own, which may be meant."""
    check_known(options, AnswerOptions.__optional_keys__, where, getattr(method, "__kwdefaults__", None) or ())

"""A conversation: messages, and answers that follow them."""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_llama.errors import ContextFullError, EdgeLlamaError, EngineError, OptionError
from edge_llama.generation import Answer, Generation, Piece
from edge_llama.messages import Message
from edge_llama.parking import Keeper
from edge_llama.sampling import check_whole
from edge_llama.shortening import Shortened, Shortening, WhenFull, check_when_full, exchanges_of

if TYPE_CHECKING:
    from edge_llama.model import Model

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Exchange:
    """An answer that is being made, and what it answers.

    The chat holds the generation weakly: who drops it has left, and nothing refers to itself in a circle.
    """

    question: Message
    generation: "weakref.ref[Generation]"
    taken: list[Piece]
    is_settled: bool = False


class Chat:
    """Messages so far. What the model has read once it does not read again, while there is memory to keep it."""

    def __init__(
        self,
        model: "Model",
        *,
        system: str | None = None,
        when_full: WhenFull = "error",
        on_shortened: Callable[[Shortened], None] | None = None,
    ) -> None:
        """See :meth:`edge_llama.Model.chat`."""
        self.when_full = check_when_full(when_full)
        self.reread_reason: str | None = None
        """Why the model has to read a loaded conversation again, with the first message; None if it has not."""
        self.shortened: Shortened | None = None
        """What was last done to make the conversation fit."""
        self._model = model
        self.keeper = Keeper()
        """For whom the engine keeps what it has read."""
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

        An answer that is being made joins the conversation under the new one.
        """
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        first = [Message("system", text)] if text is not None else []
        with self._lock:
            self.messages = first + [message for message in self.messages if message.role != "system"]

    def send(self, text: str, **params: Any) -> Generation:
        """Say ``text`` and get the answer, streamed; ``params`` are those of SamplingParams.

        The exchange joins ``messages`` when the answer ends. A cancelled answer stays as far as it came, one that
        was dropped as far as it was taken; if it had not begun, or an error ended it, the conversation is as it was
        before. EngineError while the last answer is neither ended, cancelled nor dropped.

        If it leaves too little of the context for an answer, the conversation is shortened first as ``when_full``
        says, which is told; summarising takes its time before this returns. ContextFullError if it can't fit.
        """
        self._end_last()
        with self._lock:
            return self._answer([*self.messages, Message("user", text)], params)

    def retry(self, **params: Any) -> Generation:
        """Answer the last user message again, in place of the last answer."""
        self._end_last()
        with self._lock:
            messages = _up_to_last_question(self.messages)
            if not messages:
                raise OptionError("there is nothing to answer again", remedy="send a message first")
            return self._answer(messages, params)

    def fork(self) -> "Chat":
        """A second chat that goes on from here. Neither reads again what was said so far."""
        self._end_last()
        with self._lock:
            self._check_idle()
            other = Chat(self._model, when_full=self.when_full, on_shortened=self._on_shortened)
            other.messages = list(self.messages)
            self._model.share(self.keeper, other.keeper)
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
        OutputError; EngineError while an answer is being made.
        """
        self._end_last()
        with self._lock:
            self._check_idle()
            self._model.save_chat(path, self.messages, self.keeper)

    def compact(self) -> Shortened | None:
        """Have the model summarise all exchanges but the last, in their place; None if there are none.

        It takes the time of reading what is not in the KV cache and writing the summary.
        """
        self._end_last()
        with self._lock:
            self._check_idle()
            if len(exchanges_of(self.messages)[1]) < 2:
                return None
            self.messages, told = self._shortening().compact(self.messages, keep=1)
            self._tell(told)
            return told

    def clear(self) -> None:
        """Forget all but the system message, also the answer that is being made: it goes on, but joins no more."""
        with self._lock:
            if self._exchange:
                self._exchange.is_settled = True
            self.messages = [message for message in self.messages if message.role == "system"]

    def cancel(self) -> None:
        """Stop the answer or summary that is being made, if any. Any thread may call it."""
        if summary := self._summary:
            summary.cancel()
        exchange = self._exchange
        if exchange and (generation := exchange.generation()):
            generation.cancel()

    def _answer(self, messages: Sequence[Message], params: dict[str, Any]) -> Generation:
        self._check_idle()  # again, under the lock: another thread may have been faster
        messages = self._with_room(messages, params)

        def settle(answer: Answer) -> None:
            self._settle(exchange, answer.text, is_whole=answer.finish_reason != "cancelled")

        generation = self._model.answer(messages, on_finish=settle, keeper=self.keeper, **params)
        self._exchange = exchange = _Exchange(messages[-1], weakref.ref(generation), generation.taken)
        return generation

    def _with_room(self, messages: Sequence[Message], params: dict[str, Any]) -> Sequence[Message]:
        """``messages``, the last of which is a question, or fewer: such as leave room for an answer."""
        if self.when_full == "error":
            return messages
        head, exchanges = exchanges_of(messages)
        # Before a summary is made: the question has to fit with nothing but the system message before it.
        least = len(self._model.template.tokens([*head, *exchanges[-1]], n_ctx=self._model.n_ctx))
        if least >= self._model.n_ctx:
            raise ContextFullError(least, self._model.n_ctx)
        shortening = self._shortening()
        room = shortening.room(self._model.sampling(params).max_tokens)
        if len(exchanges) < 2 or self._model.count_tokens(messages) + room <= self._model.n_ctx:
            return messages
        shorten = shortening.compact if self.when_full == "compact" else shortening.drop_oldest
        shorter, told = shorten(messages)
        self.messages = [*shorter[:-1], *self.messages[len(messages) - 1 :]]  # with a retry's question, and its answer
        self._tell(told)
        return shorter

    def _shortening(self) -> Shortening:
        return Shortening(self._model.n_ctx, self._model.count_tokens, self._summarize)

    def _summarize(self, messages: Sequence[Message], max_tokens: int) -> str:
        self._summary = summary = self._model.answer(messages, keeper=self.keeper, temperature=0, max_tokens=max_tokens)
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
            self._settle(exchange, "".join(piece.text for piece in exchange.taken), is_whole=False)

    def _settle(self, exchange: _Exchange, text: str, *, is_whole: bool) -> None:
        """Let the exchange join the messages as they are now; once, and not if they were cleared meanwhile."""
        with self._lock:
            if exchange.is_settled:
                return
            exchange.is_settled = True
            if not text and not is_whole:
                return
            before = _up_to_last_question(self.messages)
            if not before or before[-1] is not exchange.question:  # a retry's question is in the messages already
                before = [*self.messages, exchange.question]
            self.messages = [*before, Message("assistant", text)]


def _up_to_last_question(messages: Sequence[Message]) -> list[Message]:
    last = max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)
    return list(messages[: last + 1])

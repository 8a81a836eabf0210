"""A conversation: messages, and answers that follow them."""

import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_llama.errors import EdgeLlamaError, EngineError, OptionError
from edge_llama.generation import Answer, Generation, Piece
from edge_llama.messages import Message

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
    """Messages so far. What the model has read once it does not read again."""

    def __init__(self, model: "Model", *, system: str | None = None) -> None:
        self._model = model
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

    def clear(self) -> None:
        """Forget all but the system message, also the answer that is being made: it goes on, but joins no more."""
        with self._lock:
            if self._exchange:
                self._exchange.is_settled = True
            self.messages = [message for message in self.messages if message.role == "system"]

    def cancel(self) -> None:
        """Stop the answer that is being made, if any. Any thread may call it."""
        exchange = self._exchange
        if exchange and (generation := exchange.generation()):
            generation.cancel()

    def _answer(self, messages: Sequence[Message], params: dict[str, Any]) -> Generation:
        self._check_idle()  # again, under the lock: another thread may have been faster

        def settle(answer: Answer) -> None:
            self._settle(exchange, answer.text, is_whole=answer.finish_reason != "cancelled")

        generation = self._model.answer(messages, on_finish=settle, **params)
        self._exchange = exchange = _Exchange(messages[-1], weakref.ref(generation), generation.taken)
        return generation

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

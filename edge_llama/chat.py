"""A conversation: messages, and answers that follow them."""

import json
import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_llama.errors import EdgeLlamaError, EngineError, OptionError
from edge_llama.generation import Answer, Generation, Piece
from edge_llama.messages import Message, ToolCall, as_json
from edge_llama.sampling import check_whole
from edge_llama.tools import tools_of

if TYPE_CHECKING:
    from edge_llama.model import Model

_log = logging.getLogger(__name__)
_QUESTIONS = ("user", "tool")
"""Who the model answers."""


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

    def __init__(self, model: "Model", *, system: str | None = None, **options: Any) -> None:
        self._model = model
        self.options = {**options, "tools": tools_of(options.get("tools"))}
        """What :meth:`Model.answer` gets with each message, unless a message has its own."""
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
        """Say ``text`` and get the answer, streamed; ``params`` are those of :meth:`Model.answer`.

        The exchange joins ``messages`` when the answer ends. A cancelled answer stays as far as it came, one that
        was dropped as far as it was taken; if it had not begun, or an error ended it, the conversation is as it was
        before. EngineError while the last answer is neither ended, cancelled nor dropped.
        """
        self._end_last()
        with self._lock:
            return self._answer([*self.messages, Message("user", text)], params)

    def retry(self, **params: Any) -> Generation:
        """Answer the last user message or tool results again, in place of the last answer."""
        self._end_last()
        with self._lock:
            messages = _up_to_last_question(self.messages)
            if not messages:
                raise OptionError("there is nothing to answer again", remedy="send a message first")
            return self._answer(messages, params)

    def add_tool_result(self, call: ToolCall, result: Any) -> None:
        """Answer a call of the last message: with text as it is, with anything else as JSON.

        OptionError if the last message has no such call, it was answered, or JSON can't express the result.
        """
        self._end_last()
        if not isinstance(call, ToolCall):
            raise OptionError(
                f"the call is {type(call).__name__}, expected ToolCall", remedy="answer.tool_calls has them"
            )
        if not isinstance(result, str):
            result = json.dumps(as_json(result, f"the result of {call.name}"), ensure_ascii=False)
        with self._lock:
            if call not in self.open_calls:
                raise OptionError(f"no call {call.id} of {call.name} waits for a result")
            self.messages = [*self.messages, Message("tool", result, tool_call_id=call.id, name=call.name)]

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """Tool calls of the last answer that have no result yet."""
        at = max((at for at, message in enumerate(self.messages) if message.role != "tool"), default=0)
        answered = {message.tool_call_id for message in self.messages[at + 1 :]}
        calls = self.messages[at].tool_calls if self.messages else ()
        return tuple(call for call in calls if call.id not in answered)

    def answer(self, **params: Any) -> Generation:
        """Have the model go on after the results of its tool calls, as :meth:`send` does after a message.

        OptionError if a call has no result yet, or the last message is the model's own.
        """
        self._end_last()
        with self._lock:
            if waiting := self.open_calls:
                raise OptionError(f"no result for the call of {waiting[0].name}", remedy="give it by add_tool_result")
            if not self.messages or self.messages[-1].role not in _QUESTIONS:
                raise OptionError("there is nothing to answer", remedy="send a message")
            return self._answer(self.messages, params)

    def run_tools(self, text: str, *, max_rounds: int = 5, **params: Any) -> Answer:
        """Say ``text``, call the Python functions that the model asks for, and let it go on; its last answer.

        After ``max_rounds`` of calls the answer may be one that asks for more. A function whose arguments the model
        gets wrong is not called: the model is told. What a function raises comes through, and the call stays open.
        """
        rounds = check_whole("max_rounds", max_rounds, 0, 1000)
        params["tools"] = tools = tools_of(params.get("tools", self.options["tools"]))
        answer = self.send(text, **params).result()
        while answer.tool_calls and rounds:
            rounds -= 1
            for call in answer.tool_calls:
                self.add_tool_result(call, tools.run(call))
            answer = self.answer(**params).result()
        return answer

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
            self._settle(exchange, answer.text, answer.tool_calls, is_whole=answer.finish_reason != "cancelled")

        generation = self._model.answer(messages, on_finish=settle, **{**self.options, **params})
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
            text = "".join(piece.text for piece in exchange.taken)
            calls = tuple(call for piece in exchange.taken for call in piece.tool_calls)
            self._settle(exchange, text, calls, is_whole=False)

    def _settle(self, exchange: _Exchange, text: str, calls: tuple[ToolCall, ...], *, is_whole: bool) -> None:
        """Let the exchange join the messages as they are now; once, and not if they were cleared meanwhile."""
        with self._lock:
            if exchange.is_settled:
                return
            exchange.is_settled = True
            if not text and not calls and not is_whole:
                return
            before = _up_to_last_question(self.messages)
            if not before or before[-1] is not exchange.question:  # that of retry and answer is there already
                before = [*self.messages, exchange.question]
            self.messages = [*before, Message("assistant", text, calls)]


def _up_to_last_question(messages: Sequence[Message]) -> list[Message]:
    last = max((at for at, message in enumerate(messages) if message.role in _QUESTIONS), default=-1)
    return list(messages[: last + 1])

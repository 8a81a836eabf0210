"""A conversation: messages, and answers that follow them."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge_llama.errors import EngineError, OptionError
from edge_llama.generation import Answer, Generation
from edge_llama.messages import Message

if TYPE_CHECKING:
    from edge_llama.model import Model


class Chat:
    """Messages so far. What the model has read once it does not read again."""

    def __init__(self, model: "Model", *, system: str | None = None) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._answering: Generation | None = None
        self.messages: list[Message] = []
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message; setting it keeps the conversation, None removes it."""
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = [message for message in self.messages if message.role != "system"]
        self.messages = [Message("system", text), *rest] if text is not None else rest

    def send(self, text: str, **params: Any) -> Generation:
        """Say ``text`` and get the answer, streamed; ``params`` are those of SamplingParams.

        The exchange joins ``messages`` when the answer ends. A cancelled answer stays as far as it came; if it had
        not begun, or an error ended it, the conversation is as it was before.
        """
        return self._answer([*self.messages, Message("user", text)], params)

    def retry(self, **params: Any) -> Generation:
        """Answer the last user message again, in place of the last answer."""
        messages = list(self.messages)
        while messages and messages[-1].role != "user":
            messages.pop()
        if not messages:
            raise OptionError("there is nothing to answer again", remedy="send a message first")
        return self._answer(messages, params)

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = [message for message in self.messages if message.role == "system"]

    def cancel(self) -> None:
        """Stop the answer that is being made, if any. Any thread may call it."""
        if self._answering:
            self._answering.cancel()

    def _answer(self, messages: Sequence[Message], params: dict[str, Any]) -> Generation:
        def settle(answer: Answer) -> None:
            if answer.text or answer.finish_reason != "cancelled":
                self.messages = [*messages, Message("assistant", answer.text)]

        with self._lock:
            if self._answering and not self._answering.is_finished:
                raise EngineError("an answer is still being made", remedy="take it to its end, or close it")
            self._answering = self._model.answer(messages, on_finish=settle, **params)
            return self._answering

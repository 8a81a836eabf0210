"""Answers as Anthropic's messages: blocks that open, grow and close, or the message whole."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edge_llama.generation import Answer, Piece, Timings
from edge_llama.prompts.messages import ToolCall
from edge_llama.server.events import Event, finish_reason
from edge_llama.server.failures import ApiError
from edge_llama.server.measured import measured

SIGNATURE = "edge-llama"
"""Of thoughts: nothing checks it, but clients keep no thoughts that have none."""
Kind = Literal["text", "thinking"]
_DELTAS: dict[Kind, str] = {"text": "text_delta", "thinking": "thinking_delta"}


@dataclass(slots=True)
class MessageWriter:
    """Tells of one answer."""

    model: str
    max_tokens: int
    """0: the prompt alone was to be read, and nothing is told of what was written."""
    shows_thinking: bool = True
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    _index: int = -1
    """Of the last block that was opened."""
    _open: Kind | None = None
    """What kind of block is open."""

    def begin(self, timings: Timings) -> Iterable[Event]:
        """Before the first piece: the message without content."""
        yield _event(
            "message_start", message=self._message([], None, None, _input_usage(timings) | {"output_tokens": 0})
        )

    def piece(self, _choice: int, piece: Piece) -> Iterable[Event]:
        """What a piece adds."""
        if not self.max_tokens:
            return
        if piece.thinking:
            yield from self._more("thinking", piece.thinking)
        if piece.text:
            yield from self._more("text", piece.text)
        for call in piece.tool_calls:
            yield from self._called(call)

    def end(self, answers: Sequence[Answer]) -> Iterable[Event]:
        """After the last piece: why it ended, and the counts."""
        yield from self._closed()
        reason, stop = self._ending(answers[0])
        delta = {"stop_reason": reason, "stop_sequence": stop}
        yield _event("message_delta", delta=delta, usage=self._usage(answers))
        yield _event("message_stop")

    def failed(self, error: ApiError) -> Iterable[Event]:
        """An error amid the answer."""
        yield Event(error.anthropic(), "error")

    def body(self, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """The message, whole."""
        answer = answers[0]
        content = list(self._content(answer)) if self.max_tokens else []
        return self._message(content, *self._ending(answer), self._usage(answers))

    def _more(self, kind: Kind, text: str) -> Iterator[Event]:
        if self._open != kind:
            yield from self._closed()
            block = _thinking("", "") if kind == "thinking" else _text("")
            yield self._opened(block, kind)
        if kind == "text" or self.shows_thinking:
            yield self._delta(_DELTAS[kind], **{kind: text})

    def _called(self, call: ToolCall) -> Iterator[Event]:
        yield from self._closed()
        yield self._opened(_tool_use(call, {}), None)
        yield self._delta("input_json_delta", partial_json=json.dumps(call.arguments, ensure_ascii=False))
        yield _event("content_block_stop", index=self._index)

    def _opened(self, block: Mapping[str, Any], kind: Kind | None) -> Event:
        self._index, self._open = self._index + 1, kind
        return _event("content_block_start", index=self._index, content_block=block)

    def _closed(self) -> Iterator[Event]:
        if self._open == "thinking":
            yield self._delta("signature_delta", signature=SIGNATURE)
        if self._open:
            yield _event("content_block_stop", index=self._index)
        self._open = None

    def _delta(self, kind: str, **delta: str) -> Event:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **delta})

    def _content(self, answer: Answer) -> Iterator[dict[str, Any]]:
        if answer.thinking:
            yield _thinking(answer.thinking if self.shows_thinking else "", SIGNATURE)
        if answer.text:
            yield _text(answer.text)
        for call in answer.tool_calls:
            yield _tool_use(call, call.arguments)

    def _ending(self, answer: Answer) -> tuple[str, str | None]:
        """Why the answer ended, and by which stop sequence. ApiError if it was cut off."""
        reason = finish_reason(answer.finish_reason)
        if reason == "tool_calls":
            return "tool_use", None
        if reason == "length":
            is_full = answer.timings.generated_tokens < self.max_tokens
            return "model_context_window_exceeded" if is_full else "max_tokens", None
        if answer.stop_string is not None:
            return "stop_sequence", answer.stop_string
        return "end_turn", None

    def _usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        timings = answers[0].timings
        written = timings.generated_tokens if self.max_tokens else 0
        thought = timings.thinking_tokens if self.max_tokens else 0
        return {
            **_input_usage(timings),
            "output_tokens": written,
            "output_tokens_details": {"thinking_tokens": thought},
            "edge_llama": measured(answers),
        }

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, stop: str | None, usage: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }


def _event(kind: str, **data: Any) -> Event:
    return Event({"type": kind, **data}, kind)


def _input_usage(timings: Timings) -> dict[str, int]:
    """The prompt's tokens as Anthropic counts them: those of ``input_tokens`` are none of the cache's.

    Nothing is written to a cache for a price, so none are counted as such.
    """
    return {
        "input_tokens": timings.prompt_tokens - timings.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": timings.cached_tokens,
    }


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _thinking(text: str, signature: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": signature}


def _tool_use(call: ToolCall, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}

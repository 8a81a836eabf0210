"""Answers as OpenAI's responses: items that begin, grow and end, or the response whole."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edge_llama.generation import Answer, Piece, Timings
from edge_llama.prompts.messages import ToolCall
from edge_llama.server.events import Event, finish_reason
from edge_llama.server.failures import ApiError
from edge_llama.server.measured import measured
from edge_llama.server.openai.responses_messages import Namespaces, new_id
from edge_llama.server.openai.token_texts import TokenTexts

Kind = Literal["reasoning", "message"]
Ended = Literal["completed", "incomplete"]


@dataclass(slots=True)
class _OpenItem:
    """An item that grows: thoughts or a message, of one part."""

    kind: Kind
    id: str
    texts: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    def item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        """As it is told of."""
        own: dict[str, Any] = {"summary": []} if self.kind == "reasoning" else {"role": "assistant"}
        return {"id": self.id, "type": self.kind, "status": status, **own, "content": content}

    def part(self, *, is_whole: bool) -> dict[str, Any]:
        """Its content so far, or none of it."""
        text = "".join(self.texts) if is_whole else ""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = self.logprobs if is_whole else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


@dataclass(slots=True)
class ResponseWriter:
    """Tells of one answer."""

    head: Mapping[str, Any]
    """What the response says of its request."""
    namespaces: Namespaces
    texts: TokenTexts | None
    """None: log-probabilities were not asked for."""
    keep: Callable[[Mapping[str, Any]], None] | None
    """Gets the response that is whole."""
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    _count: int = 0
    """Of events so far."""
    _output: list[dict[str, Any]] = field(default_factory=list)
    """The items that are whole."""
    _open: _OpenItem | None = None
    _logprobs: list[Any] = field(default_factory=list)
    """Of tokens whose text is still to come."""

    def begin(self, _timings: Timings) -> Iterable[Event]:
        """Before the first piece."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def piece(self, _choice: int, piece: Piece) -> Iterable[Event]:
        """What a piece adds."""
        if self.texts:
            self._logprobs += _entries(self.texts, piece)
        if piece.thinking:
            yield from self._more("reasoning", piece.thinking)
        if piece.text:
            yield from self._more("message", piece.text)
        for call in piece.tool_calls:
            yield from self._called(call)

    def end(self, answers: Sequence[Answer]) -> Iterable[Event]:
        """After the last piece: the response, whole."""
        status = _status(answers[0])
        yield from self._closed(status)
        yield self._event(f"response.{status}", response=self._whole(answers, status))

    def failed(self, error: ApiError) -> Iterable[Event]:
        """The response as far as it came."""
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        told = {"code": code, "message": error.message}
        yield self._event("response.failed", response=self._response("failed", error=told))

    def body(self, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """The response: the same items that the events would tell of, were it one piece."""
        answer = answers[0]
        status = _status(answer)
        whole = Piece(
            answer.text, answer.tokens, answer.logprobs, tool_calls=answer.tool_calls, thinking=answer.thinking
        )
        for _ in [*self.piece(0, whole), *self._closed(status)]:
            pass
        return self._whole(answers, status)

    def _whole(self, answers: Sequence[Answer], status: Ended) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        response = self._response(status, incomplete_details=cut, completed_at=int(time.time()), usage=usage(answers))
        if self.keep:
            self.keep(response)
        return response

    def _response(self, status: str, **others: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": list(self._output),
            "usage": None,
            **self.head,
            **others,
        }

    def _more(self, kind: Kind, text: str) -> Iterator[Event]:
        if not self._open or self._open.kind != kind:
            yield from self._closed("completed")
            yield from self._begun(kind)
        assert self._open  # noqa: S101 - it was begun
        self._open.texts.append(text)
        if kind == "reasoning":
            yield self._within("response.reasoning_text.delta", delta=text)
            return
        logprobs, self._logprobs = self._logprobs, []
        self._open.logprobs += logprobs
        yield self._within("response.output_text.delta", delta=text, logprobs=logprobs)

    def _begun(self, kind: Kind) -> Iterator[Event]:
        self._open = _OpenItem(kind, new_id(kind))
        yield self._item("added", self._open.item([], "in_progress"))
        yield self._within("response.content_part.added", part=self._open.part(is_whole=False))

    def _closed(self, status: Ended) -> Iterator[Event]:
        if not self._open:
            return
        part = self._open.part(is_whole=True)
        if self._open.kind == "reasoning":
            yield self._within("response.reasoning_text.done", text=part["text"])
        else:
            yield self._within("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
        yield self._within("response.content_part.done", part=part)
        item = self._open.item([part], status)
        yield self._item("done", item)
        self._output.append(item)
        self._open = None

    def _called(self, call: ToolCall) -> Iterator[Event]:
        yield from self._closed("completed")
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        item = self._call(call, arguments)
        yield self._item("added", {**item, "arguments": "", "status": "in_progress"})
        place = {"item_id": item["id"], "output_index": len(self._output)}
        yield self._event("response.function_call_arguments.delta", **place, delta=arguments)
        yield self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=arguments)
        yield self._item("done", item)
        self._output.append(item)

    def _call(self, call: ToolCall, arguments: str) -> dict[str, Any]:
        space, name = self.namespaces.get(call.name, (None, call.name))
        named = {"name": name} if space is None else {"name": name, "namespace": space}
        own = {"id": new_id("function_call"), "type": "function_call", "status": "completed"}
        return {**own, "call_id": call.id, **named, "arguments": arguments}

    def _item(self, what: str, item: Mapping[str, Any]) -> Event:
        return self._event(f"response.output_item.{what}", output_index=len(self._output), item=item)

    def _within(self, kind: str, **data: Any) -> Event:
        """An event of the open item's part."""
        assert self._open  # noqa: S101 - there is one
        place = {"item_id": self._open.id, "output_index": len(self._output), "content_index": 0}
        return self._event(kind, **place, **data)

    def _event(self, kind: str, **data: Any) -> Event:
        number, self._count = self._count, self._count + 1
        return Event({"type": kind, "sequence_number": number, **data}, kind)


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """A :class:`~edge_llama.server.openai.responses_objects.ResponseUsage`."""
    timings = answers[0].timings
    return {
        "input_tokens": timings.prompt_tokens,
        "input_tokens_details": {"cached_tokens": timings.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": timings.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": timings.thinking_tokens},
        "total_tokens": timings.prompt_tokens + timings.generated_tokens,
        "edge_llama": measured(answers),
    }


def _status(answer: Answer) -> Ended:
    """ApiError if the answer was cut off."""
    return "incomplete" if finish_reason(answer.finish_reason) == "length" else "completed"


def _entries(texts: TokenTexts, piece: Piece) -> list[Any]:
    """Log-probabilities as the chat has them; what has no bytes has none of them here."""
    entries: list[dict[str, Any]] = texts.chat(piece.logprobs)["content"]
    for entry in entries:
        for each in (entry, *entry["top_logprobs"]):
            each["bytes"] = each["bytes"] or []
    return entries

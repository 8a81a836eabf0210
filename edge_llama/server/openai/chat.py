"""``/v1/chat/completions``."""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from edge_llama.generation import Answer, Piece, Timings
from edge_llama.model import Model
from edge_llama.prompts.messages import ToolCall
from edge_llama.server.asking import Answers, Ask
from edge_llama.server.events import Event, finish_reason
from edge_llama.server.failures import ApiError
from edge_llama.server.handling import Here, answer, model_name
from edge_llama.server.openai.answer_options import ANY_OBJECT, form_options, tool_options
from edge_llama.server.openai.chat_fields import ChatFields, JsonObjectFormat, JsonSchemaFormat
from edge_llama.server.openai.chat_messages import messages_of, tool_choice_of, tools_of
from edge_llama.server.openai.chat_objects import ChatCompletion, ChatCompletionChunk
from edge_llama.server.openai.objects import DONE, responses, usage
from edge_llama.server.openai.token_texts import TokenTexts
from edge_llama.server.template_places import fitted
from edge_llama.server.thinking_effort import THINKING_BUDGETS

router = APIRouter()


@router.post("/v1/chat/completions", responses=responses(ChatCompletion, streamed=ChatCompletionChunk))
async def chat_completions(request: Request, fields: ChatFields, server: Here) -> Response:
    """Answer a conversation."""
    options = options_of(fields)
    limits = server.settings.limits

    texts: TokenTexts | None = None

    def ask(model: Model) -> Ask:
        nonlocal texts
        texts = TokenTexts.of(model.tokenizer) if fields.logprobs else None
        messages = fitted(model, messages_of(fields, limits.images), options.get("tools", ()))
        return Ask(messages, options, fields.n or 1)

    return await answer(
        request,
        fields,
        model_name(server, fields.model),
        ask,
        lambda answers: ChatWriter.of(fields, texts, answers),
        is_streamed=bool(fields.stream),
    )


def options_of(fields: ChatFields) -> dict[str, Any]:
    """:class:`edge_llama.AnswerOptions`. ApiError for fields that don't go together."""
    options = fields.options()
    most = [count for count in (fields.max_tokens, fields.max_completion_tokens) if count is not None]
    if most:
        options["max_tokens"] = min(most)
    if fields.top_logprobs and not fields.logprobs:
        raise ApiError(400, "top_logprobs asks for logprobs: set that to true", param="top_logprobs")
    if fields.logprobs:
        options["logprobs"] = fields.top_logprobs or 0
    if fields.thinking_budget is not None or fields.reasoning_effort is not None:
        options["thinking_budget"] = _thinking_budget(fields)
    if fields.chat_template_kwargs:
        options["template_variables"] = fields.chat_template_kwargs
    choice = tool_choice_of(fields)
    options |= tool_options(tools_of(fields), choice, fields.parallel_tool_calls)
    return options | form_options(choice, _schema(fields))


def _thinking_budget(fields: ChatFields) -> int | None:
    if fields.thinking_budget is not None or fields.reasoning_effort is None:
        return fields.thinking_budget
    return THINKING_BUDGETS[fields.reasoning_effort]


def _schema(fields: ChatFields) -> Mapping[str, Any] | None:
    match fields.response_format:
        case JsonObjectFormat():
            return ANY_OBJECT
        case JsonSchemaFormat(json_schema=given):
            return ANY_OBJECT if given.schema_ is None else given.schema_
    return None


@dataclass(slots=True)
class ChatWriter:
    """Tells of answers as chat completions."""

    model: str
    fingerprint: str
    choices: int
    texts: TokenTexts | None
    """None: log-probabilities were not asked for."""
    tells_usage: bool
    """In a stream."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _calls: dict[int, int] = field(default_factory=dict)
    """How many tool calls each choice has so far."""

    @classmethod
    def of(cls, fields: ChatFields, texts: TokenTexts | None, answers: Answers) -> "ChatWriter":
        """For the answers to a request."""
        model = answers.lease.model
        tells_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        return cls(answers.lease.name, fingerprint(model), fields.n or 1, texts, tells_usage)

    def begin(self, timings: Timings) -> Iterable[Event]:  # noqa: ARG002 - the Protocol's
        """Who speaks, in each choice."""
        for choice in range(self.choices):
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def piece(self, choice: int, piece: Piece) -> Iterable[Event]:
        """What is new: thoughts, then text with its log-probabilities, then calls; an end of its own."""
        if piece.thinking:
            yield self._chunk(choice, {"reasoning_content": piece.thinking})
        logprobs = self.texts.chat(piece.logprobs) if self.texts and piece.logprobs else None
        if piece.text or logprobs:
            yield self._chunk(choice, {"content": piece.text}, logprobs)
        if piece.tool_calls:
            yield self._chunk(choice, {"tool_calls": [self._call(choice, call) for call in piece.tool_calls]})
        if piece.finish_reason:
            yield self._chunk(choice, {}, reason=finish_reason(piece.finish_reason))

    def end(self, answers: Sequence[Answer]) -> Iterable[Event]:
        """The usage, if it was asked for."""
        if self.tells_usage:
            yield Event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answers, self.choices)})
        yield DONE

    def failed(self, error: ApiError) -> Iterable[Event]:
        """As OpenAI's clients know it."""
        yield Event(error.openai())

    def body(self, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """A :class:`~edge_llama.server.openai.chat_objects.ChatCompletion`."""
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(*each) for each in enumerate(answers)],
            "usage": usage(answers, self.choices),
        }

    def _choice(self, index: int, answer: Answer) -> Mapping[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thinking:
            message["reasoning_content"] = answer.thinking
        if answer.tool_calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [call.to_json() for call in answer.tool_calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self.texts.chat(answer.logprobs) if self.texts else None,
            "finish_reason": finish_reason(answer.finish_reason),
        }

    def _call(self, choice: int, call: ToolCall) -> Mapping[str, Any]:
        index = self._calls.get(choice, 0)
        self._calls[choice] = index + 1
        return {"index": index, **call.to_json()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _chunk(
        self,
        choice: int,
        delta: Mapping[str, Any],
        logprobs: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> Event:
        told = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [told]}
        return Event({**chunk, "usage": None} if self.tells_usage else chunk)


def fingerprint(model: Model) -> str:
    """Which weights answered."""
    return f"fp_{model.identity[:12]}"

"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from edge_llama.model import Model
from edge_llama.prompts.tools import DEFERRED, tool_schema
from edge_llama.server.anthropic.conversation import BILLING, has_billing_line, messages_of
from edge_llama.server.anthropic.fields import (
    AnyChoice,
    CountFields,
    DisabledThinking,
    EnabledThinking,
    MessageFields,
    Tool,
    ToolChoice,
)
from edge_llama.server.anthropic.objects import FAILURES, STREAM, MessageOut, TokenCount
from edge_llama.server.anthropic.writer import MessageWriter
from edge_llama.server.asking import Answers, Ask
from edge_llama.server.handling import Here, answer, worked
from edge_llama.server.template_places import fitted
from edge_llama.server.thinking_effort import THINKING_BUDGETS

router = APIRouter(tags=["Anthropic"])
Beta = Annotated[str | None, Header(alias="anthropic-beta", description="Without effect.")]
Version = Annotated[str | None, Header(alias="anthropic-version", description="Without effect.")]


@router.post("/v1/messages", response_model=MessageOut, responses={200: STREAM, **FAILURES})
async def create_message(
    request: Request, fields: MessageFields, server: Here, beta: Beta = None, version: Version = None
) -> Response:
    """Answer a conversation."""
    max_images = server.settings.limits.images

    def told(answers: Answers) -> MessageWriter:
        return MessageWriter(answers.lease.name, fields.max_tokens, shows_thinking=_shows_thinking(fields))

    return await answer(
        request,
        fields,
        fields.model,
        lambda model: asked(model, fields, max_images),
        told,
        is_streamed=bool(fields.stream),
        ignored=_ignored(fields, beta, version),
    )


@router.post("/v1/messages/count_tokens", response_model=TokenCount, responses=FAILURES)
async def count_tokens(
    request: Request, fields: CountFields, server: Here, beta: Beta = None, version: Version = None
) -> Response:
    """Count the tokens of a request's prompt, all that its usage will count as input.

    One so long that it clearly does not fit is an error, with both numbers.
    """
    max_images = server.settings.limits.images

    def counted(model: Model) -> dict[str, int]:
        tools = _tools(fields.tools)
        messages = fitted(model, messages_of(fields, max_images), tools)
        return {"input_tokens": model.count_tokens(messages, tools=tools, n_ctx=model.n_ctx)}

    return await worked(request, fields, fields.model, counted, ignored=_ignored(fields, beta, version))


def asked(model: Model, fields: MessageFields, max_images: int) -> Ask:
    """What a request asks of a model. It decodes images: call it in a thread. Raises what :func:`messages_of` does."""
    tools = _tools(fields.tools)
    options = {
        "tools": tools or None,
        "tool_choice": _choice(fields),
        "parallel_tool_calls": not getattr(fields.tool_choice, "disable_parallel_tool_use", False),
        "max_tokens": max(fields.max_tokens, 1),
        "stop": fields.stop_sequences,
        "temperature": fields.temperature,
        "top_k": fields.top_k,
        "top_p": fields.top_p,
        "thinking_budget": _budget(fields),
        "json_schema": _schema(fields),
    }
    messages = fitted(model, messages_of(fields, max_images), tools)
    return Ask(messages, {name: value for name, value in options.items() if value is not None})


def _tools(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """The tools as chat templates know them."""
    return [_tool(tool) for tool in tools or ()]


def _tool(tool: Tool) -> dict[str, Any]:
    schema = tool_schema(tool.name, tool.description, tool.input_schema)
    return {**schema, DEFERRED: True} if tool.defer_loading else schema


def _choice(fields: MessageFields) -> Any:
    """As :data:`edge_llama.prompts.tool_choice.ToolChoice`."""
    match choice := fields.tool_choice:
        case None:
            return None
        case AnyChoice():
            return "required"
        case ToolChoice():
            return {"type": "function", "function": {"name": choice.name}}
    return choice.type


def _budget(fields: CountFields) -> int | None:
    match thinking := fields.thinking:
        case EnabledThinking():
            return thinking.budget_tokens
        case DisabledThinking():
            return 0
    effort = fields.output_config and fields.output_config.effort
    return THINKING_BUDGETS[effort] if effort else None


def _schema(fields: CountFields) -> dict[str, Any] | None:
    if isinstance(fields.tool_choice, AnyChoice | ToolChoice):
        return None  # the answer is calls
    form = (fields.output_config and fields.output_config.format) or fields.output_format
    return form.json_schema if form else None


def _shows_thinking(fields: CountFields) -> bool:
    return getattr(fields.thinking, "display", None) != "omitted"


def _ignored(fields: CountFields, beta: str | None, version: str | None) -> list[str]:
    """What had no effect beside fields."""
    given = {"anthropic-beta": beta, "anthropic-version": version, BILLING: has_billing_line(fields) or None}
    return [name for name, value in given.items() if value is not None]

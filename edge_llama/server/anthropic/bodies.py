"""What Anthropic's endpoints answer, for the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from edge_llama.server.measured import Measured


class TextOut(BaseModel):
    """Text."""

    type: Literal["text"]
    text: str
    citations: None


class ThinkingOut(BaseModel):
    """What the model thought first."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseOut(BaseModel):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class OutputDetails(BaseModel):
    """Of the output's tokens."""

    thinking_tokens: int


class MessageUsage(BaseModel):
    """Tokens. Those of the prompt are input_tokens and cache_read_input_tokens together."""

    input_tokens: int = Field(description="Of the prompt, neither read from the cache nor written to it.")
    cache_creation_input_tokens: int = Field(description="Always 0: what is cached costs nothing.")
    cache_read_input_tokens: int = Field(description="Of the prompt, read from the cache.")
    output_tokens: int
    output_tokens_details: OutputDetails
    edge_llama: Measured


class MessageOut(BaseModel):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Annotated[TextOut | ThinkingOut | ToolUseOut, Field(discriminator="type")]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """The tokens of a request's prompt."""

    input_tokens: int


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "timeout_error",
        "api_error",
        "overloaded_error",
    ]
    message: str


class ErrorOut(BaseModel):
    """An error in Anthropic's form."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str | None


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": why}
    for status, why in {
        400: "The request can't be done as it is.",
        401: "A key is needed.",
        403: "Not from this host or page.",
        404: "There is no such model.",
        408: "The request came too slowly.",
        413: "The request is too large.",
        429: "Too many requests wait.",
        500: "A fault of this server.",
        503: "The engine failed, or there is no memory for the model.",
        504: "It took too long.",
    }.items()
}
STREAM: dict[str, Any] = {
    "description": "The message, or with `stream` its events.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}

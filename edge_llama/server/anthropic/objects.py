"""What Anthropic's endpoints answer, for the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import Field

from edge_llama.server.described import ERRORS, Said, event_stream
from edge_llama.server.measured import Measured


class TextOut(Said):
    """Text."""

    type: Literal["text"]
    text: str
    citations: None


class ThinkingOut(Said):
    """What the model thought first."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseOut(Said):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnyBlock = Annotated[TextOut | ThinkingOut | ToolUseOut, Field(discriminator="type")]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class OutputDetails(Said):
    """Of the output's tokens."""

    thinking_tokens: int


class InputUsage(Said):
    """Tokens of the prompt: those that were read and those from the cache together."""

    input_tokens: int = Field(description="Of the prompt, neither read from the cache nor written to it.")
    cache_creation_input_tokens: int = Field(description="Always 0: what is cached costs nothing.")
    cache_read_input_tokens: int = Field(description="Of the prompt, read from the cache.")
    output_tokens: int


class MessageUsage(InputUsage):
    """Tokens of the prompt and the answer."""

    output_tokens_details: OutputDetails
    edge_llama: Measured = Field(description="An extension: speed, and why the cache held no more of the prompt.")


class MessageOut(Said):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str = Field(description="The model's name, not its alias.")
    content: list[AnyBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: MessageUsage


class MessageBegun(Said):
    """An answer of which nothing is there yet."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnyBlock] = Field(max_length=0)
    stop_reason: None
    stop_sequence: None
    usage: InputUsage


class MessageStart(Said):
    """The first event."""

    type: Literal["message_start"]
    message: MessageBegun


class BlockStart(Said):
    """A block begins, empty."""

    type: Literal["content_block_start"]
    index: int
    content_block: AnyBlock


class TextDelta(Said):
    """More text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(Said):
    """More thoughts."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(Said):
    """The end of thoughts."""

    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(Said):
    """The arguments of a call, whole."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(Said):
    """A block goes on."""

    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta, Field(discriminator="type")]


class BlockStop(Said):
    """A block is whole."""

    type: Literal["content_block_stop"]
    index: int


class Ending(Said):
    """Why an answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Said):
    """The answer is whole."""

    type: Literal["message_delta"]
    delta: Ending
    usage: MessageUsage


class MessageStop(Said):
    """The last event."""

    type: Literal["message_stop"]


class Ping(Said):
    """Nothing is new."""

    type: Literal["ping"]


class TokenCount(Said):
    """The tokens of a request's prompt."""

    input_tokens: int


class ErrorDetail(Said):
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
    message: str = Field(description="One sentence for people: what, where, the value, the remedy.")


class ErrorOut(Said):
    """An error in Anthropic's form."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str | None


FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": why} for status, why in ERRORS.items()
}
STREAM: dict[str, Any] = {
    "description": "The message, or with `stream` its events.",
    "content": event_stream(MessageStart, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop, Ping, ErrorOut),
}

"""What Anthropic's endpoints answer, for the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge_llama.server.described import event_stream
from edge_llama.server.measured import Measured


class Told(BaseModel):
    """A response, or an object within one: nothing else is in it."""

    model_config = ConfigDict(extra="forbid")


class TextOut(Told):
    """Text."""

    type: Literal["text"]
    text: str
    citations: None


class ThinkingOut(Told):
    """What the model thought first."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseOut(Told):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnyBlock = Annotated[TextOut | ThinkingOut | ToolUseOut, Field(discriminator="type")]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class OutputDetails(Told):
    """Of the output's tokens."""

    thinking_tokens: int


class InputUsage(Told):
    """Tokens of the prompt: those that were read and those from the cache together."""

    input_tokens: int = Field(description="Of the prompt, neither read from the cache nor written to it.")
    cache_creation_input_tokens: int = Field(description="Always 0: what is cached costs nothing.")
    cache_read_input_tokens: int = Field(description="Of the prompt, read from the cache.")
    output_tokens: int


class MessageUsage(InputUsage):
    """Tokens of the prompt and the answer."""

    output_tokens_details: OutputDetails
    edge_llama: Measured = Field(description="An extension: speed, and why the cache held no more of the prompt.")


class MessageOut(Told):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str = Field(description="The model's name, not its alias.")
    content: list[AnyBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: MessageUsage


class MessageBegun(Told):
    """An answer of which nothing is there yet."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnyBlock] = Field(max_length=0)
    stop_reason: None
    stop_sequence: None
    usage: InputUsage


class MessageStart(Told):
    """The first event."""

    type: Literal["message_start"]
    message: MessageBegun


class BlockStart(Told):
    """A block begins, empty."""

    type: Literal["content_block_start"]
    index: int
    content_block: AnyBlock


class TextDelta(Told):
    """More text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(Told):
    """More thoughts."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(Told):
    """The end of thoughts."""

    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(Told):
    """The arguments of a call, whole."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(Told):
    """A block goes on."""

    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta, Field(discriminator="type")]


class BlockStop(Told):
    """A block is whole."""

    type: Literal["content_block_stop"]
    index: int


class Ending(Told):
    """Why an answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Told):
    """The answer is whole."""

    type: Literal["message_delta"]
    delta: Ending
    usage: MessageUsage


class MessageStop(Told):
    """The last event."""

    type: Literal["message_stop"]


class Ping(Told):
    """Nothing is new."""

    type: Literal["ping"]


class TokenCount(Told):
    """The tokens of a request's prompt."""

    input_tokens: int


class ErrorDetail(Told):
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


class ErrorOut(Told):
    """An error in Anthropic's form."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str | None


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": why}
    for status, why in {
        400: "The request is wrong, or does not fit: the message says where and why.",
        401: "The API key is missing or wrong.",
        403: "The Host or Origin header is not one that may ask.",
        404: "There is no such model.",
        408: "The request's body did not come in time.",
        413: "The request is larger than may be.",
        415: "The request's body is not JSON, or is compressed.",
        429: "More requests wait than may; Retry-After says when to ask again.",
        431: "The request's headers are larger than may be.",
        500: "The server failed.",
        503: "The engine failed, or the model can't be loaded now; the next request may work.",
        504: "The answer took longer than may be.",
    }.items()
}
STREAM: dict[str, Any] = {
    "description": "The message, or with `stream` its events.",
    "content": event_stream(MessageStart, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop, Ping, ErrorOut),
}

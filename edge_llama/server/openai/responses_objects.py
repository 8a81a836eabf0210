"""What ``/v1/responses`` answers, for the OpenAPI document."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from edge_llama.server.described import Said
from edge_llama.server.measured import Measured
from edge_llama.server.openai.responses_items import Status


class LikelyToken(Said):
    """A token, and how likely it was."""

    token: str
    bytes: list[int] = Field(description="In UTF-8; none for a control token.")
    logprob: float


class WrittenToken(LikelyToken):
    """The one that was written."""

    top_logprobs: list[LikelyToken]


class TextPartOut(Said):
    """Text."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(max_length=0)
    logprobs: list[WrittenToken]


class ReasoningPartOut(Said):
    """Thoughts."""

    type: Literal["reasoning_text"]
    text: str


class MessageItemOut(Said):
    """What the model says."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[TextPartOut]


class ReasoningItemOut(Said):
    """What the model thought first."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[Any] = Field(max_length=0)
    content: list[ReasoningPartOut]


class CallItemOut(Said):
    """A call of a function."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


OutputItem: TypeAlias = Annotated[MessageItemOut | ReasoningItemOut | CallItemOut, Field(discriminator="type")]


class InputDetails(Said):
    """Of the input's tokens."""

    cached_tokens: int = Field(description="Those that the KV cache already held: they were not read again.")
    cache_write_tokens: int = Field(description="Always 0: what is cached costs nothing.")


class OutputDetails(Said):
    """Of the output's tokens."""

    reasoning_tokens: int = Field(description="Those that the model thought before it answered.")


class ResponseUsage(Said):
    """What a request took."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int
    edge_llama: Measured = Field(description="An extension: speed, and why the cache held no more of the prompt.")


class ResponseProblem(Said):
    """What went wrong amid a stream."""

    code: Literal["server_error", "invalid_prompt"]
    message: str


class IncompleteDetails(Said):
    """Why a response is not whole."""

    reason: Literal["max_output_tokens"]


class ReasoningOut(Said):
    """How much was thought."""

    effort: str | None
    summary: None


class ResponseOut(Said):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Seconds since 1970.")
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseProblem | None
    incomplete_details: IncompleteDetails | None
    output: list[OutputItem]
    usage: ResponseUsage | None
    model: str = Field(description="The model's name, not its alias.")
    instructions: str | None
    previous_response_id: str | None
    background: Literal[False]
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: ReasoningOut
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]


class InputItems(Said):
    """Items that the model read."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Said):
    """A response that is no more."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputTokens(Said):
    """How long a prompt is."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class _Numbered(Said):
    sequence_number: int


class ResponseEvent(_Numbered):
    """The response as far as it came."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: ResponseOut


class ItemEvent(_Numbered):
    """An item begins or is whole."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _WithinItem(_Numbered):
    item_id: str
    output_index: int


class PartEvent(_WithinItem):
    """An item's part begins or is whole."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: Annotated[TextPartOut | ReasoningPartOut, Field(discriminator="type")]


class TextDeltaEvent(_WithinItem):
    """More text."""

    type: Literal["response.output_text.delta"]
    content_index: int
    delta: str
    logprobs: list[WrittenToken]


class TextDoneEvent(_WithinItem):
    """The text, whole."""

    type: Literal["response.output_text.done"]
    content_index: int
    text: str
    logprobs: list[WrittenToken]


class ReasoningDeltaEvent(_WithinItem):
    """More thoughts."""

    type: Literal["response.reasoning_text.delta"]
    content_index: int
    delta: str


class ReasoningDoneEvent(_WithinItem):
    """The thoughts, whole."""

    type: Literal["response.reasoning_text.done"]
    content_index: int
    text: str


class ArgumentsDeltaEvent(_WithinItem):
    """A call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDoneEvent(_WithinItem):
    """A call's arguments, whole."""

    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


EVENTS = (
    ResponseEvent,
    ItemEvent,
    PartEvent,
    TextDeltaEvent,
    TextDoneEvent,
    ReasoningDeltaEvent,
    ReasoningDoneEvent,
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
)

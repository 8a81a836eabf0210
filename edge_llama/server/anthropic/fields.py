"""What a request to ``/v1/messages`` may say, in Anthropic's names, the beta interface's among them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from edge_llama.server.anthropic.blocks import CacheControl, Content, Texts
from edge_llama.server.fields import Fields, Ignored, Refused

_NO_SERVICE = "this machine has one service for all"
_NO_SERVER_TOOLS = "this server runs no tools and asks no other server: give tools with an input_schema"


class Turn(Fields):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content = Field(default_factory=list, description="Text, or blocks of it and others.")
    clear_at: Annotated[Any, Ignored("what the client sends is what the model reads")] = None
    output_config: Annotated[Any, Ignored("the request's own counts")] = None


class Tool(Fields):
    """A tool that the client runs."""

    type: Annotated[str | None, Refused(_NO_SERVER_TOOLS, allowed=("custom",))] = None
    name: str = Field(min_length=1, description="The model calls it by this.")
    description: str | None = Field(None, description="The model is told of it.")
    input_schema: dict[str, Any] = Field(description="The arguments' JSON schema.")
    cache_control: CacheControl = None
    allowed_callers: Annotated[Any, Ignored("the model alone calls tools")] = None
    defer_loading: bool | None = Field(
        None,
        description="true: the model is told of it where a `tool_reference` or `tool_addition` names it, so that what "
        "stands before stays in the cache.",
    )
    eager_input_streaming: Annotated[Any, Ignored("a call is sent once it is whole")] = None
    input_examples: Annotated[Any, Ignored("chat templates have no place for them")] = None
    strict: Annotated[Any, Ignored("calls fit their schema where tool_choice asks for one")] = None


class AutoChoice(Fields):
    """The model decides."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool = Field(False, description="At most one call.")


class AnyChoice(Fields):
    """The answer is calls."""

    type: Literal["any"]
    disable_parallel_tool_use: bool = Field(False, description="One call.")


class ToolChoice(Fields):
    """The answer is a call of one tool."""

    type: Literal["tool"]
    name: str = Field(description="Of which tool.")
    disable_parallel_tool_use: Annotated[Any, Ignored("it is one call")] = None


class NoChoice(Fields):
    """The answer is text."""

    type: Literal["none"]


class EnabledThinking(Fields):
    """Thoughts, up to a number of tokens."""

    type: Literal["enabled"]
    budget_tokens: int = Field(ge=0, description="Then the model has to answer, if it thinks at all.")
    display: Literal["summarized", "omitted", "updates"] | None = Field(
        None, description="`omitted`: the thoughts are not sent; else they are, whole."
    )
    block_binding: Annotated[Any, Ignored("thoughts are plain text here")] = None


class DisabledThinking(Fields):
    """No thoughts: as a budget of 0."""

    type: Literal["disabled"]


class AdaptiveThinking(Fields):
    """The model decides."""

    type: Literal["adaptive", "between_tools"]
    display: Literal["summarized", "omitted", "updates"] | None = Field(None, description="As with `enabled`.")
    block_binding: Annotated[Any, Ignored("thoughts are plain text here")] = None


class JsonFormat(Fields):
    """An answer as JSON."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema", description="The answer fits it.")


class OutputConfig(Fields):
    """What the answer is like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="A budget of thoughts, where `thinking` gives none."
    )
    format: JsonFormat | None = Field(
        None, description="JSON by a schema; without effect where `tool_choice` asks for a call."
    )
    task_budget: Annotated[Any, Ignored("`max_tokens` is what counts")] = None


Choice = Annotated[AutoChoice | AnyChoice | ToolChoice | NoChoice, Field(discriminator="type")]
Thinking = Annotated[EnabledThinking | DisabledThinking | AdaptiveThinking, Field(discriminator="type")]


class CountFields(Fields):
    """What ``/v1/messages/count_tokens`` takes."""

    model: str = Field(description="A model's name, or an alias.")
    messages: list[Turn] = Field(
        min_length=1,
        description="The conversation; turns of one role in a row are one. The system's may stand anywhere: where the "
        "chat template has no place for them they are the user's, as `<system-reminder>`. The last turn is not "
        "the assistant's.",
    )
    system: Texts | None = Field(None, description="What the model is told first.")
    tools: list[Tool] | None = Field(None, description="What the model may call.")
    tool_choice: Choice | None = Field(None, description="Whether it does.")
    thinking: Thinking | None = Field(None, description="How much it thinks first; left out: as it does by itself.")
    output_config: OutputConfig | None = Field(None, description="Effort, and JSON by a schema.")
    output_format: JsonFormat | None = Field(None, description="The older name of output_config.format.")
    mcp_servers: Annotated[Any, Refused(_NO_SERVER_TOOLS, allowed=([],))] = None
    cache_control: CacheControl = None
    compaction: Annotated[Any, Ignored("nothing is left out of a prompt: one that doesn't fit is an error")] = None
    context_management: Annotated[Any, Ignored("nothing is left out of a prompt: one that doesn't fit is an error")] = (
        None
    )
    billing_policy: Annotated[Any, Ignored("nothing is billed")] = None
    speed: Annotated[Any, Ignored(_NO_SERVICE)] = None


class MessageFields(CountFields):
    """What ``/v1/messages`` takes."""

    max_tokens: int = Field(ge=0, description="Tokens of the answer, thoughts included; 0: the prompt alone is read.")
    stream: bool | None = Field(None, description="The answer as it comes.")
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, max_length=16, description="Up to 16 texts that end the answer."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token.")
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="Choose among so many; 0: all.")
    top_p: float | None = Field(None, ge=0, le=1, description="Choose among those of so much probability.")
    thread: Annotated[Any, Refused("conversations are not kept: send it whole")] = None
    container: Annotated[Any, Ignored("there are no containers")] = None
    diagnostics: Annotated[Any, Ignored("usage.edge_llama.diverged says where the cache was left")] = None
    fallback_credit_token: Annotated[Any, Ignored("nothing is billed")] = None
    fallbacks: Annotated[Any, Ignored("the model that is asked answers")] = None
    inference_geo: Annotated[Any, Ignored("it is this machine")] = None
    metadata: Annotated[Any, Ignored("nothing is kept of who asks")] = None
    service_tier: Annotated[Any, Ignored(_NO_SERVICE)] = None

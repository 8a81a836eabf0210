"""What a request to ``/v1/responses`` may say: every field of OpenAI's own interface."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator, Field, Tag

from edge_llama.server.fields import Fields, Ignored, Refused, by_text, by_type
from edge_llama.server.openai.marks import (
    ALWAYS_FITS,
    NAMED_IN_TEXT,
    NO_EFFECT_ON_CACHE,
    NO_MODERATION,
    NO_USERS,
    NO_VERBOSITY,
    NOT_BUILT_IN,
    NOTHING_HIDDEN,
    ONE_TIER,
)
from edge_llama.server.openai.responses_items import Input
from edge_llama.server.thinking_effort import Effort

_NO_TOOLS = "the model is told of none: this server runs no tools"
_NOTHING_CUT = "nothing is left out of a prompt: one that doesn't fit is an error"


class FunctionTool(Fields):
    """A function that the client runs."""

    type: Literal["function"]
    name: str = Field(min_length=1, description="What the model calls it by.")
    description: str | None = Field(None, description="Shown to the model.")
    parameters: dict[str, Any] | None = Field(
        None,
        description="A JSON schema of type object, shown to the model. Where a call must come (`tool_choice`) its "
        "arguments fit it; left out, there are none.",
    )
    strict: Annotated[Any, ALWAYS_FITS] = None
    allowed_callers: Annotated[Any, Ignored("the model alone calls functions")] = None
    defer_loading: Annotated[Any, Ignored("the model knows every function from the start")] = None
    output_schema: Annotated[Any, Ignored("chat templates have no place for it")] = None
    async_: Annotated[Any, Ignored("calls are the client's to run")] = Field(None, alias="async")


class NamespaceTool(Fields):
    """Functions with a name in common, as Codex has those of an MCP server."""

    type: Literal["namespace"]
    name: str = Field(min_length=1, description="The model calls its functions by both names, `name__function`.")
    description: Annotated[Any, Ignored("each function has its own")] = None
    tools: list[FunctionTool] = Field(description="The functions.")


class UnusedTool(Fields):
    """Tools of OpenAI's servers that an agent (Codex) names in every request, whether it needs them or not."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[Literal["web_search", "web_search_2025_08_26", "image_generation"], Ignored(_NO_TOOLS)]


class BuiltInTool(Fields):
    """Other tools of OpenAI's servers, and custom ones."""

    type: Annotated[
        Literal[
            "file_search",
            "computer",
            "computer_use_preview",
            "web_search_preview",
            "web_search_preview_2025_03_11",
            "mcp",
            "code_interpreter",
            "programmatic_tool_calling",
            "local_shell",
            "shell",
            "custom",
            "tool_search",
            "apply_patch",
        ],
        NOT_BUILT_IN,
    ]


_TOOLS = {"function": "function", "namespace": "namespace"}
_UNUSED = ("web_search", "web_search_2025_08_26", "image_generation")


def _tool_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        return None
    return "unused" if kind in _UNUSED else _TOOLS.get(kind, "built-in")


ResponseTool: TypeAlias = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[UnusedTool, Tag("unused")]
    | Annotated[BuiltInTool, Tag("built-in")],
    Discriminator(
        _tool_kind, custom_error_type="unknown_kind", custom_error_message="expected a tool whose type is function"
    ),
]
AnyTool: TypeAlias = FunctionTool | NamespaceTool | UnusedTool | BuiltInTool


class NamedFunction(Fields):
    """A function by its name."""

    type: Literal["function"]
    name: str = Field(description="One of the tools'.")


class AllowedTools(Fields):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = Field(description="As `tool_choice` says it.")
    tools: list[NamedFunction] = Field(min_length=1, description="The model is told of no others.")


ResponseToolChoice: TypeAlias = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<str>")]
    | Annotated[
        Annotated[
            Annotated[NamedFunction, Tag("type=function")] | Annotated[AllowedTools, Tag("type=allowed_tools")],
            by_text("type", "function", "allowed_tools"),
        ],
        Tag("<dict>"),
    ],
    by_type("auto, none, required or an object"),
]


class PlainFormat(Fields):
    """Text as the model writes it."""

    type: Literal["text"]


class ObjectFormat(Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Fields):
    """JSON by a schema."""

    type: Literal["json_schema"]
    name: str = Field(description="Any; it is not shown to the model.")
    json_schema: dict[str, Any] = Field(alias="schema", description="The answer fits it.")
    strict: bool | None = Field(None, description="The answer always fits the schema, strict or not.")
    description: Annotated[Any, NAMED_IN_TEXT] = None


Format: TypeAlias = Annotated[
    Annotated[PlainFormat, Tag("type=text")]
    | Annotated[ObjectFormat, Tag("type=json_object")]
    | Annotated[SchemaFormat, Tag("type=json_schema")],
    by_text("type", "text", "json_object", "json_schema"),
]


class TextOptions(Fields):
    """What the text is like."""

    format: Format | None = Field(None, description="`text`, `json_object` or `json_schema`.")
    verbosity: Annotated[Any, NO_VERBOSITY] = None


class ReasoningOptions(Fields):
    """How much the model thinks."""

    effort: Effort | None = Field(
        None,
        description="Tokens: none 0, minimal 256, low 1,024, medium 4,096, high 16,384, xhigh 32,768, max any.",
    )
    summary: Annotated[Any, Ignored("thoughts are given whole")] = None
    generate_summary: Annotated[Any, Ignored("thoughts are given whole")] = None
    context: Annotated[Any, Ignored("the chat template says which thoughts the model reads again")] = None
    mode: Annotated[Any, Ignored("there is one mode")] = None


class StreamedWith(Fields):
    """What a stream tells besides."""

    include_obfuscation: Annotated[Any, NOTHING_HIDDEN] = None


LOGPROBS = "message.output_text.logprobs"
Included: TypeAlias = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
_Metadata: TypeAlias = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class PromptFields(Fields):
    """What a prompt is made of, and what may follow it."""

    model: str | None = Field(None, description="A model's name or alias; may be left out where there is one model.")
    input: Input | None = Field(None, description="A text, or items: messages, calls, their outputs, reasoning.")
    instructions: str | None = Field(None, description="What the model is told first; not taken up by later responses.")
    previous_response_id: str | None = Field(None, description="A response whose conversation this goes on with.")
    text: TextOptions | None = Field(None, description="The form of the answer.")
    reasoning: ReasoningOptions | None = Field(None, description="How much the model thinks.")
    tools: list[ResponseTool] | None = Field(None, description="What the model may call.")
    tool_choice: ResponseToolChoice | None = Field(
        None, description="`auto`, `none`, `required` (1 to 16 calls), a function, or `allowed_tools`."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: the answer ends with its first call.")
    truncation: Annotated[Literal["disabled", "auto"] | None, Refused(_NOTHING_CUT, allowed=("disabled",))] = None
    conversation: Annotated[Any, Refused("conversations are kept by previous_response_id alone")] = None


class InputTokenFields(PromptFields):
    """A request for the tokens of a prompt."""

    personality: Annotated[Any, Ignored("models here have one alone: the instructions may say another")] = None


class ResponseFields(PromptFields):
    """A request for a response."""

    store: bool | None = Field(
        None, description="false: the response can't be asked for again, and none goes on with it."
    )
    metadata: _Metadata | None = Field(None, description="Kept with the response.")
    stream: bool | None = Field(None, description="Server-sent events as the answer comes.")
    stream_options: StreamedWith | None = Field(None, description="See below.")
    max_output_tokens: int | None = Field(
        None, ge=1, description="Tokens of the answer at most, its thoughts among them; else what the context holds."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float | None = Field(None, ge=0, le=1, description="Among the likeliest tokens of so much probability.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="The likeliest tokens at each place; asks for log-probabilities."
    )
    include: list[Included] | None = Field(
        None,
        description="`message.output_text.logprobs` asks for log-probabilities: of every token that was written, "
        "thoughts among them. The others add nothing, and are named as without effect.",
    )
    background: Annotated[Any, Refused("answers come while the client waits", allowed=(False,))] = None
    prompt: Annotated[Any, Refused("no prompts are kept: send its text")] = None
    moderation: Annotated[Any, NO_MODERATION] = None
    context_management: Annotated[Any, Ignored(_NOTHING_CUT)] = None
    max_tool_calls: Annotated[Any, Ignored("it counts built-in tools, and there are none")] = None
    access_programs: Annotated[Any, ONE_TIER] = None
    background_options: Annotated[Any, Ignored("answers come while the client waits")] = None
    image: Annotated[Any, Ignored("images are cut as the model wants them")] = None
    prompt_cache_key: Annotated[Any, NO_EFFECT_ON_CACHE] = None
    prompt_cache_options: Annotated[Any, NO_EFFECT_ON_CACHE] = None
    prompt_cache_retention: Annotated[Any, NO_EFFECT_ON_CACHE] = None
    service_tier: Annotated[Any, ONE_TIER] = None
    safety_identifier: Annotated[Any, NO_USERS] = None
    user: Annotated[Any, NO_USERS] = None
    client_metadata: Annotated[Any, NO_USERS] = None

    def ignored(self) -> list[str]:
        """Those of ``include`` too that add nothing."""
        without = (f"include.{name}" for name in dict.fromkeys(self.include or ()) if name != LOGPROBS)
        return [*super().ignored(), *without]

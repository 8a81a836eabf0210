"""What a request for a chat completion may say: every field of OpenAI's own interface, and a few more."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, Tag

from edge_llama.server.fields import Fields, Ignored, Refused, by_text, by_type
from edge_llama.server.openai.marks import (
    ALL_TILES,
    ALWAYS_FITS,
    NAMED_IN_TEXT,
    NO_EFFECT_ON_CACHE,
    NO_MODERATION,
    NO_USERS,
    NO_VERBOSITY,
    ONE_TIER,
)
from edge_llama.server.openai.sampling_fields import SamplingFields, StreamOptions
from edge_llama.server.thinking_effort import Effort

_NO_AUDIO = Refused("models here hear and speak nothing")
_OLD = Refused("the forerunner of tools: use tools and tool_choice")


class ImageUrl(Fields):
    """An image within a message."""

    url: str = Field(
        description="A data URL, `data:image/png;base64,…`. Nothing is fetched: http, https and file URLs are errors.",
        json_schema_extra={"pattern": "^data:image/"},
    )
    detail: Annotated[
        Literal["auto", "low", "high", "original"] | None,
        ALL_TILES,
    ] = None


class TextPart(Fields):
    """Text within a message."""

    type: Literal["text"]
    text: str = Field(description="The text.")
    prompt_cache_breakpoint: Annotated[Any, NO_EFFECT_ON_CACHE] = None
    cache_control: Annotated[Any, NO_EFFECT_ON_CACHE] = None


class ImagePart(Fields):
    """An image within a message."""

    type: Literal["image_url"]
    image_url: ImageUrl = Field(description="The image, for a model that has a vision tower.")
    prompt_cache_breakpoint: Annotated[Any, NO_EFFECT_ON_CACHE] = None
    cache_control: Annotated[Any, NO_EFFECT_ON_CACHE] = None


class RefusalPart(Fields):
    """A refusal in an earlier answer."""

    type: Literal["refusal"]
    refusal: str = Field(description="Text like any other.")


_Texts: TypeAlias = Annotated[
    Annotated[str, Tag("<str>")]
    | Annotated[list[Annotated[Annotated[TextPart, Tag("type=text")], by_text("type", "text")]], Tag("<list>")],
    by_type("a text, or a list of parts"),
]
_Parts: TypeAlias = Annotated[
    Annotated[str, Tag("<str>")]
    | Annotated[
        list[
            Annotated[
                Annotated[TextPart, Tag("type=text")] | Annotated[ImagePart, Tag("type=image_url")],
                by_text("type", "text", "image_url"),
            ]
        ],
        Tag("<list>"),
    ],
    by_type("a text, or a list of parts"),
]
_AnswerParts: TypeAlias = Annotated[
    Annotated[str, Tag("<str>")]
    | Annotated[
        list[
            Annotated[
                Annotated[TextPart, Tag("type=text")] | Annotated[RefusalPart, Tag("type=refusal")],
                by_text("type", "text", "refusal"),
            ]
        ],
        Tag("<list>"),
    ],
    by_type("a text, or a list of parts"),
]


class SystemMessage(Fields):
    """Instructions."""

    role: Literal["system", "developer"]
    content: _Texts = Field(description="A text, or a list of `text` parts.")
    name: Annotated[str | None, Ignored("chat templates have no place for it")] = None


class UserMessage(Fields):
    """What a person says and shows."""

    role: Literal["user"]
    content: _Parts = Field(description="A text, or a list of `text` and `image_url` parts.")
    name: Annotated[str | None, Ignored("chat templates have no place for it")] = None


class CalledFunction(Fields):
    """The function that was called."""

    name: str = Field(min_length=1, description="The function's.")
    arguments: str = Field(
        description="A JSON object. What is none is shown to the model as the argument `invalid_json`, so that a "
        "conversation with a call that went wrong can go on."
    )


class CallFields(Fields):
    """A tool call in an earlier answer."""

    id: str = Field(min_length=1, description="What the tool's message refers to.")
    type: Literal["function"] = "function"
    function: CalledFunction = Field(description="What was called.")
    index: Annotated[int | None, Ignored("calls come in the list's order")] = None


class AssistantMessage(Fields):
    """An earlier answer."""

    role: Literal["assistant"]
    content: _AnswerParts | None = Field(None, description="A text, a list of `text` and `refusal` parts, or null.")
    reasoning_content: str | None = Field(
        None, description="What the model thought before; most chat templates leave it out of the next prompt."
    )
    tool_calls: list[CallFields] | None = Field(None, description="The tools that it called.")
    refusal: str | None = Field(None, description="Text like any other, where there is no content.")
    name: Annotated[str | None, Ignored("chat templates have no place for it")] = None
    annotations: Annotated[list[Any] | None, Ignored("links to pages are no part of a prompt")] = None
    audio: Annotated[Any, _NO_AUDIO] = None
    function_call: Annotated[Any, _OLD] = None


class ToolMessage(Fields):
    """A tool's result."""

    role: Literal["tool"]
    content: _Parts | None = Field(description="A text, a list of `text` and `image_url` parts, or null.")
    tool_call_id: str = Field(description="The call that it answers.")
    name: str | None = Field(None, description="The tool's; left out, it is that of the call.")


Messages: TypeAlias = list[
    Annotated[
        Annotated[SystemMessage, Tag("role=system")]
        | Annotated[UserMessage, Tag("role=user")]
        | Annotated[AssistantMessage, Tag("role=assistant")]
        | Annotated[ToolMessage, Tag("role=tool")],
        by_text("role", "system", "user", "assistant", "tool", developer="system"),
    ]
]


class FunctionFields(Fields):
    """A function that the model may call."""

    name: str = Field(min_length=1, description="What the model calls it by.")
    description: str | None = Field(None, description="Shown to the model.")
    parameters: dict[str, Any] | None = Field(
        None,
        description="A JSON schema of type object, shown to the model. Where a call must come (`tool_choice`) its "
        "arguments fit it; left out, there are none.",
    )
    return_: dict[str, Any] | None = Field(
        None, alias="return", description="An extension: a schema of its results, as Hugging Face's templates show it."
    )
    strict: Annotated[bool | None, ALWAYS_FITS] = None


class ToolFields(Fields):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionFields = Field(description="The function.")
    cache_control: Annotated[Any, NO_EFFECT_ON_CACHE] = None


_Tool: TypeAlias = Annotated[Annotated[ToolFields, Tag("type=function")], by_text("type", "function")]


class NamedFunction(Fields):
    """A function by its name."""

    name: str = Field(description="One of the tools'.")


class NamedTool(Fields):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction = Field(description="The function.")


class AllowedTools(Fields):
    """Some of the tools."""

    mode: Literal["auto", "required"] = Field(description="As `tool_choice` says it.")
    tools: list[NamedTool] = Field(min_length=1, description="The model is told of no others.")


class AllowedToolChoice(Fields):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools = Field(description="Which.")


ToolChoiceFields: TypeAlias = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<str>")]
    | Annotated[
        Annotated[
            Annotated[NamedTool, Tag("type=function")] | Annotated[AllowedToolChoice, Tag("type=allowed_tools")],
            by_text("type", "function", "allowed_tools"),
        ],
        Tag("<dict>"),
    ],
    by_type("auto, none, required or an object"),
]


class JsonSchema(Fields):
    """The form of an answer."""

    name: str = Field(description="Any; it is not shown to the model.")
    description: Annotated[str | None, NAMED_IN_TEXT] = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="A JSON schema; left out, the answer is any JSON object."
    )
    strict: bool | None = Field(None, description="The answer always fits the schema, strict or not.")


class TextFormat(Fields):
    """Text as the model writes it."""

    type: Literal["text"]


class JsonObjectFormat(Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Fields):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema = Field(description="The schema.")


ResponseFormat: TypeAlias = Annotated[
    Annotated[TextFormat, Tag("type=text")]
    | Annotated[JsonObjectFormat, Tag("type=json_object")]
    | Annotated[JsonSchemaFormat, Tag("type=json_schema")],
    by_text("type", "text", "json_object", "json_schema"),
]


class ChatFields(SamplingFields):
    """A request for a chat completion."""

    messages: Messages = Field(min_length=1, description="The conversation so far.")
    model: str | None = Field(None, description="A model's name or alias; may be left out where there is one model.")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="Tokens of the answer at most, its thoughts among them; else what the context holds."
    )
    max_tokens: int | None = Field(None, ge=1, description="The same by its older name; the smaller one counts.")
    n: int | None = Field(None, ge=1, description="Answers, each with a seed of its own; 16 at most.")
    stream: bool | None = Field(None, description="Server-sent events as the answer comes.")
    stream_options: StreamOptions | None = Field(None, description="See below; without effect unless streamed.")
    logprobs: bool | None = Field(
        None, description="The log-probability of every token that was written, thoughts and calls among them."
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="The likeliest tokens at each place; asks for `logprobs`."
    )
    tools: list[_Tool] | None = Field(
        None, description="Functions that the model may call; tools of other types are refused."
    )
    tool_choice: ToolChoiceFields | None = Field(
        None, description="`auto`, `none`, `required` (1 to 16 calls), a tool, or `allowed_tools`."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: the answer ends with its first call.")
    response_format: ResponseFormat | None = Field(
        None,
        description="`text`, `json_object` or `json_schema`: the form of an answer that is no tool call; without "
        "effect where a call must come.",
    )
    reasoning_effort: Effort | None = Field(
        None,
        description="How many tokens the model may think: none 0, minimal 256, low 1,024, medium 4,096, high 16,384, "
        "xhigh 32,768, max any.",
    )
    thinking_budget: int | None = Field(
        None, ge=0, description="An extension: so many tokens, whatever `reasoning_effort` says."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="An extension: what the chat template asks for besides, such as `enable_thinking`."
    )
    metadata: Annotated[dict[str, Any] | None, Ignored("nothing is stored")] = None
    store: Annotated[bool | None, Ignored("nothing is stored")] = None
    service_tier: Annotated[str | None, ONE_TIER] = None
    user: Annotated[str | None, NO_USERS] = None
    safety_identifier: Annotated[str | None, NO_USERS] = None
    prompt_cache_key: Annotated[str | None, NO_EFFECT_ON_CACHE] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, NO_EFFECT_ON_CACHE] = None
    prompt_cache_retention: Annotated[str | None, NO_EFFECT_ON_CACHE] = None
    verbosity: Annotated[Literal["low", "medium", "high"] | None, NO_VERBOSITY] = None
    audio: Annotated[Any, _NO_AUDIO] = None
    modalities: Annotated[Any, Refused("answers are text", allowed=(["text"],))] = None
    moderation: Annotated[Any, NO_MODERATION] = None
    prediction: Annotated[Any, Refused("there is no decoding by a predicted text")] = None
    web_search_options: Annotated[Any, Refused("nothing is fetched from the web")] = None
    function_call: Annotated[Any, _OLD] = None
    functions: Annotated[Any, _OLD] = None

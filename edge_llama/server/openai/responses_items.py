"""Items of a conversation in OpenAI's responses: messages, calls and their outputs, thoughts."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from edge_llama.server.fields import Fields, Ignored, Refused, by_text, by_type
from edge_llama.server.openai.marks import ALL_TILES, NO_EFFECT_ON_CACHE, NOT_BUILT_IN

_NO_FILES = Refused("no files are read: send their text, or images as data URLs")
_ONE_CALLER = Ignored("the model alone calls functions")
_KEPT = "Kept with the response."
Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class InputText(Fields):
    """Text."""

    type: Literal["input_text"]
    text: str = Field(description="The text.")
    prompt_cache_breakpoint: Annotated[Any, NO_EFFECT_ON_CACHE] = None


class InputImage(Fields):
    """An image."""

    type: Literal["input_image"]
    image_url: str = Field(
        description="A data URL, `data:image/png;base64,…`. Nothing is fetched: http, https and file URLs are errors."
    )
    detail: Annotated[Any, ALL_TILES] = None
    file_id: Annotated[Any, _NO_FILES] = None
    prompt_cache_breakpoint: Annotated[Any, NO_EFFECT_ON_CACHE] = None


class InputFile(Fields):
    """A file."""

    type: Annotated[Literal["input_file"], _NO_FILES]


class OutputText(Fields):
    """Text of an earlier answer."""

    type: Literal["output_text"]
    text: str = Field(description="The text.")
    annotations: Annotated[Any, Ignored("links are no part of a prompt")] = None
    logprobs: Annotated[Any, Ignored("they are no part of a prompt")] = None


class OutputRefusal(Fields):
    """A refusal in an earlier answer."""

    type: Literal["refusal"]
    refusal: str = Field(description="Text like any other.")


class ReasoningText(Fields):
    """What the model thought."""

    type: Literal["reasoning_text"]
    text: str = Field(description="For the chat template, which leaves it out of most turns.")


InputPart: TypeAlias = Annotated[
    Annotated[InputText, Tag("type=input_text")]
    | Annotated[InputImage, Tag("type=input_image")]
    | Annotated[InputFile, Tag("type=input_file")],
    by_text("type", "input_text", "input_image"),
]
MessagePart: TypeAlias = Annotated[
    Annotated[InputText, Tag("type=input_text")]
    | Annotated[InputImage, Tag("type=input_image")]
    | Annotated[InputFile, Tag("type=input_file")]
    | Annotated[OutputText, Tag("type=output_text")]
    | Annotated[OutputRefusal, Tag("type=refusal")],
    by_text("type", "input_text", "input_image", "output_text", "refusal"),
]
Part: TypeAlias = InputText | InputImage | InputFile | OutputText | OutputRefusal


class MessageItem(Fields):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"] = Field(
        description="`developer` is the same as `system`."
    )
    content: Annotated[
        Annotated[str, Tag("<str>")] | Annotated[list[MessagePart], Tag("<list>")],
        by_type("a text, or a list of parts"),
    ] = Field(description="A text, or a list of parts.")
    id: str | None = Field(None, description=_KEPT)
    status: Status | None = Field(None, description=_KEPT)
    phase: Annotated[Any, Ignored("chat templates have no place for it")] = None


class CallItem(Fields):
    """A call of a function in an earlier answer."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, description="What its output refers to.")
    name: str = Field(min_length=1, description="The function's.")
    arguments: str = Field(
        description="A JSON object. What is none is shown to the model as the argument `invalid_json`, so that a "
        "conversation with a call that went wrong can go on."
    )
    namespace: str | None = Field(None, description="That of the function.")
    id: str | None = Field(None, description=_KEPT)
    status: Status | None = Field(None, description=_KEPT)
    caller: Annotated[Any, _ONE_CALLER] = None
    async_: Annotated[Any, Ignored("calls are the client's to run")] = Field(None, alias="async")


class CallOutputItem(Fields):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(description="The call that it answers.")
    output: Annotated[
        Annotated[str, Tag("<str>")] | Annotated[list[InputPart], Tag("<list>")],
        by_type("a text, or a list of parts"),
    ] = Field(description="A text, or a list of texts and images.")
    name: str | None = Field(None, description="The function's; left out, it is that of the call.")
    namespace: str | None = Field(None, description="That of the function.")
    id: str | None = Field(None, description=_KEPT)
    status: Status | None = Field(None, description=_KEPT)
    caller: Annotated[Any, _ONE_CALLER] = None


class ReasoningItem(Fields):
    """What the model thought in an earlier answer."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = Field(None, description="The thoughts.")
    id: str | None = Field(None, description=_KEPT)
    status: Status | None = Field(None, description=_KEPT)
    summary: Annotated[Any, Ignored("thoughts are given whole")] = None
    encrypted_content: Annotated[Any, Ignored("nobody but its maker can read it")] = None


class ItemReference(Fields):
    """An item that lies elsewhere."""

    type: Literal["item_reference"] = "item_reference"
    id: Annotated[str, Refused("items are not kept alone: send it whole, or previous_response_id")]


class BuiltInItem(Fields):
    """What tools of OpenAI's servers, and custom tools, leave in a conversation."""

    type: Annotated[
        Literal[
            "file_search_call",
            "computer_call",
            "computer_call_output",
            "web_search_call",
            "tool_search_call",
            "tool_search_output",
            "additional_tools",
            "configuration_update",
            "compaction",
            "compaction_trigger",
            "image_generation_call",
            "code_interpreter_call",
            "local_shell_call",
            "local_shell_call_output",
            "shell_call",
            "shell_call_output",
            "apply_patch_call",
            "apply_patch_call_output",
            "mcp_list_tools",
            "mcp_approval_request",
            "mcp_approval_response",
            "mcp_call",
            "custom_tool_call",
            "custom_tool_call_output",
            "program",
            "program_output",
        ],
        NOT_BUILT_IN,
    ]


_KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _kind(value: Any) -> str | None:
    """An item's kind: one that has a role may leave ``type`` out, and one that has nothing but an id."""
    if not isinstance(value, Mapping):
        return None
    kind = value.get("type") or ("message" if "role" in value else "item_reference")
    return kind if kind in _KINDS else "built-in"


Item: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")]
    | Annotated[BuiltInItem, Tag("built-in")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="expected a message, function_call, function_call_output or reasoning",
    ),
]
AnyItem: TypeAlias = MessageItem | CallItem | CallOutputItem | ReasoningItem | ItemReference | BuiltInItem
Input: TypeAlias = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[list[Item], Tag("<list>")], by_type("a text, or a list of items")
]

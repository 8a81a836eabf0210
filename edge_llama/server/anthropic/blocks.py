"""Blocks of content: what a turn of a conversation, a system prompt and a tool's result consist of."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from edge_llama.server.fields import Fields, Ignored, Refused

CacheControl: TypeAlias = Annotated[Any, Ignored("every prompt is cached, and found again by its beginning")]
_Uncited: TypeAlias = Annotated[Any, Ignored("nothing is cited")]
_NOT_FETCHED = "nothing is fetched, and no files are kept: send it within the request"
_NO_PDF = "PDF is not read: send its text, or its pages as images"
_NO_SERVER_TOOLS = "this server runs no tools: the client does"


def _as_blocks(content: object) -> object:
    """Text alone is short for one block of it; null, in what some clients send, for none."""
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class TextBlock(Fields):
    """Text."""

    type: Literal["text"]
    text: str = Field(description="What is said.")
    cache_control: CacheControl = None
    citations: _Uncited = None


class Base64Source(Fields):
    """An image within the request."""

    type: Literal["base64"]
    media_type: str = Field(description="Not relied on: the first bytes say what it is.", pattern=r"^image/[\w.+-]+$")
    data: str = Field(description="PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF.")


class FetchedSource(Fields):
    """An image elsewhere."""

    type: Annotated[Literal["url", "file"], Refused(_NOT_FETCHED)]


class ImageBlock(Fields):
    """An image."""

    type: Literal["image"]
    source: Base64Source | FetchedSource = Field(discriminator="type", description="For models that see images.")
    cache_control: CacheControl = None
    transformations: Annotated[Any, Ignored("images are cut as the model wants them")] = None


_TextOrImage = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]
TextsAndImages: TypeAlias = Annotated[
    list[_TextOrImage], BeforeValidator(_as_blocks, json_schema_input_type=str | list[_TextOrImage] | None)
]
Texts: TypeAlias = Annotated[
    list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock] | None)
]


class TextSource(Fields):
    """A document's text."""

    type: Literal["text"]
    media_type: Literal["text/plain"] = Field(description="No other is known.")
    data: str = Field(description="The text.")


class ContentSource(Fields):
    """A document's parts."""

    type: Literal["content"]
    content: TextsAndImages = Field(description="Texts and images, in order.")


class PdfSource(Fields):
    """A document as PDF."""

    type: Annotated[Literal["base64"], Refused(_NO_PDF)]


class DocumentBlock(Fields):
    """A document."""

    type: Literal["document"]
    source: TextSource | ContentSource | PdfSource | FetchedSource = Field(
        discriminator="type", description="Given to the model as text and images."
    )
    title: str | None = Field(None, description="Stands before it.")
    context: str | None = Field(None, description="Stands before it.")
    cache_control: CacheControl = None
    citations: _Uncited = None


class SearchResultBlock(Fields):
    """What a search of the client's found."""

    type: Literal["search_result"]
    source: str = Field(description="Stands before it.")
    title: str = Field(description="Stands before it.")
    content: list[TextBlock] = Field(description="Given to the model as text.")
    cache_control: CacheControl = None
    citations: _Uncited = None


class ThinkingBlock(Fields):
    """What the model thought in an earlier turn."""

    type: Literal["thinking"]
    thinking: str = Field(description="For the chat template, which leaves it out of most turns.")
    signature: Annotated[Any, Ignored("thoughts are plain text here")] = None


class RedactedThinkingBlock(Fields):
    """What another model thought, encrypted."""

    type: Literal["redacted_thinking"]
    data: Annotated[Any, Ignored("nobody but its maker can read it")] = None


class ToolUseBlock(Fields):
    """A call of a tool in an earlier turn."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, description="Which call it is.")
    name: str = Field(min_length=1, description="The tool's.")
    input: dict[str, Any] = Field(description="Its arguments.")
    cache_control: CacheControl = None
    caller: Annotated[Any, Ignored("the model alone calls tools")] = None
    toolset_name: Annotated[Any, Ignored("there are no sets of tools")] = None


class ToolReferenceBlock(Fields):
    """A tool that a search of the client's found."""

    type: Literal["tool_reference"]
    tool_name: str = Field(description="One of `tools`: if it was deferred, the model reads its description here.")
    cache_control: CacheControl = None


class BrowserStateBlock(Fields):
    """What a browser of Anthropic's toolset shows."""

    type: Annotated[Literal["browser_state"], Refused(_NO_SERVER_TOOLS)]


_ResultBlock = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock | BrowserStateBlock,
    Field(discriminator="type"),
]
ResultContent: TypeAlias = Annotated[
    list[_ResultBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[_ResultBlock] | None)
]


class ToolResultBlock(Fields):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(description="Which call it answers.")
    content: ResultContent = Field(default_factory=list, description="Texts and images, in order.")
    is_error: bool | None = Field(None, description="The model reads `Error: ` before it.")
    cache_control: CacheControl = None
    toolset_name: Annotated[Any, Ignored("there are no sets of tools")] = None


class ToolByName(Fields):
    """A tool."""

    type: Literal["tool_reference"]
    name: str = Field(description="One of `tools`.")


class ToolElsewhere(Fields):
    """A tool that ``tools`` hasn't."""

    type: Annotated[
        Literal["tool_definition", "mcp_tool_reference", "mcp_toolset_reference"],
        Refused("name one of `tools`, which may be there with defer_loading"),
    ]


class ToolAdditionBlock(Fields):
    """A tool that may be called from here on."""

    type: Literal["tool_addition"]
    tool: ToolByName | ToolElsewhere = Field(discriminator="type", description="The model reads its description here.")
    cache_control: CacheControl = None


class ToolRemovalBlock(Fields):
    """A tool that may not be called any more."""

    type: Literal["tool_removal"]
    tool: ToolByName | ToolElsewhere = Field(discriminator="type", description="The model reads here that it is gone.")
    cache_control: CacheControl = None


class ServerToolBlock(Fields):
    """What tools of Anthropic's servers, and its other services, leave in a conversation."""

    type: Annotated[
        Literal[
            "server_tool_use",
            "web_search_tool_result",
            "web_fetch_tool_result",
            "code_execution_tool_result",
            "bash_code_execution_tool_result",
            "text_editor_code_execution_tool_result",
            "tool_search_tool_result",
            "container_upload",
            "advisor_tool_result",
            "mcp_tool_use",
            "mcp_tool_result",
            "mcp_tool_listing",
            "compaction",
            "fallback",
        ],
        Refused(_NO_SERVER_TOOLS),
    ]


Block: TypeAlias = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ToolReferenceBlock
    | ToolAdditionBlock
    | ToolRemovalBlock
    | ServerToolBlock
)
_AnyBlock = Annotated[Block, Field(discriminator="type")]
Content: TypeAlias = Annotated[
    list[_AnyBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[_AnyBlock] | None)
]

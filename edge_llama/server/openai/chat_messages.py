"""A chat completion's messages and tools as the model gets them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from edge_llama.errors import InputError
from edge_llama.media.images import Image
from edge_llama.prompts.messages import Message, ToolCall
from edge_llama.prompts.tools import tool_schema
from edge_llama.server.failures import ApiError
from edge_llama.server.image_limit import check_images
from edge_llama.server.openai.chat_fields import (
    AllowedToolChoice,
    AssistantMessage,
    CalledFunction,
    CallFields,
    ChatFields,
    ImagePart,
    ImageUrl,
    NamedTool,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolFields,
    ToolMessage,
    UserMessage,
)

AnyMessage = SystemMessage | UserMessage | AssistantMessage | ToolMessage
INVALID_JSON = "invalid_json"
"""The argument under which a model is shown arguments that are no JSON object."""


def messages_of(fields: ChatFields, max_images: int) -> tuple[Message, ...]:
    """The conversation. ApiError for an image that can't be, or too many; it decodes them: call it in a thread."""
    images = [part for message in fields.messages for part in _parts(message) if isinstance(part, ImagePart)]
    check_images("messages", len(images), max_images)
    names: dict[str, str] = {}
    return tuple(_message(at, message, names) for at, message in enumerate(fields.messages))


def _message(at: int, given: AnyMessage, names: dict[str, str]) -> Message:
    """One of them; ``names`` are those of the tools by the ids of calls so far."""
    match given:
        case AssistantMessage():
            calls = list(map(_call, given.tool_calls or ()))
            names.update((call.id, call.name) for call in calls)
            content = given.content if given.content is not None else given.refusal or ""
            return Message("assistant", _content(content, at), calls, thinking=given.reasoning_content or "")
        case ToolMessage():
            name = given.name or names.get(given.tool_call_id)
            result = _content("" if given.content is None else given.content, at)
            return Message("tool", result, tool_call_id=given.tool_call_id, name=name)
        case UserMessage():
            return Message("user", _content(given.content, at))
        case SystemMessage():
            return Message("system", _content(given.content, at))


def _content(content: str | Sequence[TextPart | ImagePart | RefusalPart], at: int) -> str | list[str | Image]:
    if isinstance(content, str):
        return content
    return [_part(part, f"messages.{at}.content.{number}") for number, part in enumerate(content)]


def _part(part: TextPart | ImagePart | RefusalPart, place: str) -> str | Image:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case ImagePart():
            return image_of(part.image_url, f"{place}.image_url.url")


def image_of(given: ImageUrl, place: str) -> Image:
    """The image of a data URL. ApiError for any other, and for what is no image."""
    if not given.url[:5].lower() == "data:":
        raise ApiError(
            400,
            f"{place} is {given.url[:40]!r}: nothing is fetched and no file is opened; send the image itself, as a "
            f"data URL (data:image/png;base64,…)",
            code="invalid_image",
            param=place,
        )
    try:
        return Image.from_data_url(given.url)
    except InputError as error:
        raise ApiError(400, f"{place}: {error}", code="invalid_image", param=place) from error


def _parts(message: AnyMessage) -> Iterator[object]:
    yield from () if message.content is None or isinstance(message.content, str) else message.content


def _call(given: CallFields) -> ToolCall:
    return ToolCall(given.function.name, arguments_of(given.function), given.id)


def arguments_of(function: CalledFunction) -> dict[str, Any]:
    """A call's arguments. What is no JSON object was a mistake of the model that wrote it, which it may see."""
    if not function.arguments.strip():
        return {}
    try:
        found = json.loads(function.arguments)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()  # Python reads more than JSON has
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {INVALID_JSON: function.arguments}


def tools_of(fields: ChatFields) -> list[dict[str, Any]]:
    """The tools that the model is told of: those that ``tool_choice`` allows. ApiError if that names another."""
    tools = fields.tools or []
    if not isinstance(fields.tool_choice, AllowedToolChoice):
        return [_tool(tool) for tool in tools]
    allowed = {tool.function.name for tool in fields.tool_choice.allowed_tools.tools}
    if unknown := allowed - {tool.function.name for tool in tools}:
        raise ApiError(
            400, f"tool_choice allows {', '.join(sorted(unknown))}, which is none of the tools", param="tool_choice"
        )
    return [_tool(tool) for tool in tools if tool.function.name in allowed]


def _tool(tool: ToolFields) -> dict[str, Any]:
    function = tool.function
    returned = {} if function.return_ is None else {"return": function.return_}
    return tool_schema(function.name, function.description, function.parameters, **returned)


def tool_choice_of(fields: ChatFields) -> str | dict[str, Any]:
    """As the runtime takes it: ``auto``, ``none``, ``required``, or a tool as OpenAI names it."""
    match fields.tool_choice:
        case AllowedToolChoice(allowed_tools=allowed):
            return allowed.mode
        case NamedTool(function=function):
            return {"type": "function", "function": {"name": function.name}}
        case choice:
            return choice or "auto"

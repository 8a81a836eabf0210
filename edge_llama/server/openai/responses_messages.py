"""A response's conversation and tools as the model gets them."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edge_llama.media.images import Image
from edge_llama.prompts.messages import Message, ToolCall
from edge_llama.prompts.tools import tool_schema
from edge_llama.server.failures import ApiError
from edge_llama.server.image_limit import check_images
from edge_llama.server.openai.chat_fields import CalledFunction, ImageUrl
from edge_llama.server.openai.chat_messages import arguments_of, image_of
from edge_llama.server.openai.responses_fields import (
    AllowedTools,
    FunctionTool,
    NamedFunction,
    NamespaceTool,
    PromptFields,
)
from edge_llama.server.openai.responses_items import (
    AnyItem,
    CallItem,
    CallOutputItem,
    InputImage,
    Item,
    MessageItem,
    OutputRefusal,
    Part,
    ReasoningItem,
)
from edge_llama.server.store import ResponseStore
from edge_llama.server.template_places import in_one

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_ITEMS: TypeAdapter[list[AnyItem]] = TypeAdapter(list[Item])
_BETWEEN = "__"
"""A namespace and a function's name in it, as agents join them."""
Namespaces = Mapping[str, tuple[str, str]]
"""By the name that the model calls: the namespace, and the function's own name."""


def new_id(kind: str) -> str:
    """For an item of this kind, or ``resp``."""
    return f"{_PREFIXES.get(kind, kind)}_{secrets.token_hex(16)}"


def read_items(fields: PromptFields, store: ResponseStore) -> list[dict[str, Any]]:
    """The items that the model is to read, each with an id: those of earlier responses, and the request's.

    ApiError if an earlier response is not kept.
    """
    given = fields.input
    said = {"role": "user", "content": given}
    items = [MessageItem.model_validate(said)] if isinstance(given, str) else given or []
    return [*_earlier(fields.previous_response_id, store), *map(_kept, items)]


def _kept(item: AnyItem) -> dict[str, Any]:
    """An item as it is kept and told of: with an id, and text as a part."""
    data = item.model_dump(by_alias=True, exclude_none=True, warnings=False)  # kinds are told apart in JSON alone
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        data["content"] = [{"type": kind, "text": item.content}]
    return {"id": new_id(item.type), "status": "completed", **data}


def _earlier(name: str | None, store: ResponseStore) -> list[dict[str, Any]]:
    if name is None:
        return []
    if (stored := store.get(name)) is None:
        raise ApiError(
            400,
            f"Previous response with id {name[:80]!r} not found: it was not stored, was deleted, or made room",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    return stored.items


def messages_of(instructions: str | None, items: Sequence[Mapping[str, Any]], max_images: int) -> list[Message]:
    """The conversation. ApiError for none, for an image that can't be, or too many: call it in a thread."""
    try:
        known = _ITEMS.validate_python(items)
    except ValidationError as error:  # those of the request were checked: it is a file that somebody changed
        raise ApiError(400, "the earlier response is damaged", param="previous_response_id") from error
    images = [part for item in known for part in _parts_of(item) if isinstance(part, InputImage)]
    check_images("input", len(images), max_images)
    messages = [Message("system", instructions)] if instructions else []
    names: dict[str, str] = {}
    for turn in _turns(known):
        messages += _spoken(turn, names)
    if not messages:
        raise ApiError(400, "there is nothing to answer: give input", param="input")
    # Instructions, and what a developer says next, are one message.
    return list(in_one(messages, "system", "\n\n"))


def _parts_of(item: AnyItem) -> Sequence[Part]:
    match item:
        case MessageItem(content=list() as parts) | CallOutputItem(output=list() as parts):
            return parts
    return ()


def _turns(items: Iterable[AnyItem]) -> Iterator[list[AnyItem]]:
    """The model's thoughts, texts and calls that come in a row are one turn; all else stands alone."""
    turn: list[AnyItem] = []
    for item in items:
        if not _is_models(item):
            yield from [turn] if turn else []
            yield [item]
            turn = []
        else:
            turn.append(item)
    yield from [turn] if turn else []


def _is_models(item: AnyItem) -> bool:
    is_said = isinstance(item, MessageItem) and item.role == "assistant"
    return is_said or isinstance(item, CallItem | ReasoningItem)


def _spoken(turn: Sequence[AnyItem], names: dict[str, str]) -> Iterator[Message]:
    """The message of a turn; ``names`` are those of the functions by the ids of calls so far."""
    match turn:
        case [CallOutputItem() as output]:
            name = joined(output.namespace, output.name) if output.name else names.get(output.call_id)
            yield Message("tool", _content(output.output), tool_call_id=output.call_id, name=name)
        case [MessageItem(role="user" | "system" | "developer" as role) as said]:
            yield Message("user" if role == "user" else "system", _content(said.content))
        case _:
            yield _answer(turn, names)


def _answer(turn: Sequence[AnyItem], names: dict[str, str]) -> Message:
    calls = [_call(item) for item in turn if isinstance(item, CallItem)]
    names.update((call.id, call.name) for call in calls)
    parts = [part for item in turn if isinstance(item, MessageItem) for part in _listed(_content(item.content))]
    thoughts = [item.content or () for item in turn if isinstance(item, ReasoningItem)]
    return Message("assistant", parts, calls, thinking="".join(part.text for parts in thoughts for part in parts))


def _call(item: CallItem) -> ToolCall:
    arguments = arguments_of(CalledFunction(name=item.name, arguments=item.arguments))
    return ToolCall(joined(item.namespace, item.name), arguments, item.call_id)


def _listed(content: str | list[str | Image]) -> list[str | Image]:
    return [content] if isinstance(content, str) else content


def _content(content: str | Sequence[Part]) -> str | list[str | Image]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Part) -> str | Image:
    match part:
        case InputImage():
            return image_of(ImageUrl(url=part.image_url), "input: image_url")
        case OutputRefusal():
            return part.refusal
    return getattr(part, "text", "")


def joined(namespace: str | None, name: str) -> str:
    """What the model calls a function by."""
    if not namespace:
        return name
    return f"{namespace.removesuffix(_BETWEEN)}{_BETWEEN}{name}"


def namespaces_of(fields: PromptFields) -> Namespaces:
    """Those of the functions that are in one."""
    spaces = [tool for tool in fields.tools or () if isinstance(tool, NamespaceTool)]
    return {joined(space.name, tool.name): (space.name, tool.name) for space in spaces for tool in space.tools}


def tools_of(fields: PromptFields) -> list[dict[str, Any]]:
    """The functions that the model is told of: those that ``tool_choice`` allows. ApiError if that names another."""
    functions = list(_functions(fields))
    if isinstance(fields.tool_choice, AllowedTools):
        allowed = {tool.name for tool in fields.tool_choice.tools}
        if unknown := allowed - {name for name, _ in functions}:
            named = ", ".join(sorted(unknown))
            raise ApiError(400, f"tool_choice allows {named}, which is none of the tools", param="tool_choice")
        functions = [(name, tool) for name, tool in functions if name in allowed]
    return [tool_schema(name, tool.description, tool.parameters) for name, tool in functions]


def _functions(fields: PromptFields) -> Iterator[tuple[str, FunctionTool]]:
    """Each with the name that the model calls."""
    for tool in fields.tools or ():
        if isinstance(tool, FunctionTool):
            yield tool.name, tool
        elif isinstance(tool, NamespaceTool):
            for inner in tool.tools:
                yield joined(tool.name, inner.name), inner


def tool_choice_of(fields: PromptFields) -> str | dict[str, Any]:
    """As the runtime says it."""
    match choice := fields.tool_choice:
        case None:
            return "auto"
        case AllowedTools():
            return choice.mode
        case NamedFunction():
            return {"type": "function", "function": {"name": choice.name}}
    return choice

"""Conversations as chat templates take them: plain data, with stand-ins for what could be a control token, or marks."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from edge_llama.media.images import Image
from edge_llama.prompts.messages import Message

Contents = Mapping[str, Any]
"""What a template gets from outside: messages and tools as plain data, and variables of its own."""
Place = tuple[int, int]
"""Of a text: its message, and which part of the content it is (-1: the content itself)."""

# Words of the form in which tools and calls are given: templates ask for them, and they forge nothing.
_FORM_WORDS = frozenset(
    re.findall(
        r"\w+",
        "type function name description parameters properties required enum items default arguments id return anyOf "
        "string number integer boolean array object null image text",
    )
)


def contents_of(
    messages: Iterable[Message],
    tools: Iterable[Any],
    variables: Mapping[str, Any],
    in_parts: Set[str] = frozenset(),
) -> dict[str, Any]:
    """Text is given as text, but for messages with images and those of the roles ``in_parts``."""
    data = [_as_data(message, in_parts=message.role in in_parts) for message in messages]
    return {**variables, "messages": data, "tools": list(tools) or None}


def _as_data(message: Message, *, in_parts: bool) -> dict[str, Any]:
    """The message as Hugging Face's templates want it: arguments of calls are objects."""
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images or in_parts:
        parts = message.parts or ("",)
        data["content"] = [
            {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in parts
        ]
    if message.tool_calls:
        data["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    given = {"tool_call_id": message.tool_call_id, "name": message.name, "reasoning_content": message.thinking or None}
    return data | {key: value for key, value in given.items() if value is not None}


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with each call in a message of its own, before its result."""
    apart: list[Message] = []
    moved: set[int] = set()
    for at, message in enumerate(messages):
        if len(message.tool_calls) < 2:
            apart += [] if at in moved else [message]
            continue
        for index, call in enumerate(message.tool_calls):
            thinking = "" if index else message.thinking
            apart.append(Message("assistant", "" if index else message.parts, (call,), thinking=thinking))
            results = [later for later in range(at + 1, len(messages)) if messages[later].tool_call_id == call.id]
            apart += [messages[later] for later in results]
            moved.update(results)
    return apart


def with_call_names(contents: Contents, name: str) -> dict[str, Any]:
    """The same, every tool call by this name."""
    messages = [
        {**message, "tool_calls": [{**call, "function": {**call["function"], "name": name}} for call in calls]}
        if (calls := message.get("tool_calls"))
        else message
        for message in contents["messages"]
    ]
    return {**contents, "messages": messages}


def texts_of(contents: Contents) -> list[Place]:
    """The places of all texts that the model must be shown, blank ones left out.

    What is said beside calls is none of them: templates leave it out, and so does transformers.
    """
    return [
        (index, part)
        for index, message in enumerate(contents["messages"])
        if not message.get("tool_calls")
        for part, text in _texts(message["content"])
        if text.strip()
    ]


def _texts(content: Any) -> Iterable[tuple[int, str]]:
    if isinstance(content, str):
        return [(-1, content)]
    return [(index, part["text"]) for index, part in enumerate(content) if part["type"] == "text"]


def with_marks(contents: Contents, marks: Mapping[Place, str], *, keep_text: bool = True) -> dict[str, Any]:
    """The same, with a mark before and after the text in each of these places, or in place of it."""

    def marked(text: str, mark: str) -> str:
        return f"{mark}{text}{mark}" if keep_text else mark

    messages = list(contents["messages"])
    for (index, part), mark in marks.items():
        content = messages[index]["content"]
        if part < 0:
            changed: Any = marked(content, mark)
        else:
            changed = list(content)
            changed[part] = {**content[part], "text": marked(content[part]["text"], mark)}
        messages[index] = {**messages[index], "content": changed}
    return {**contents, "messages": messages}


class _Key(str):
    """A key of which letters were swapped: two that look the same by now remain two."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def swapped_contents(contents: Contents, swap: Mapping[int, str]) -> dict[str, Any]:
    """Everything that comes from outside; the roles and the form of tools stay as they are."""
    messages = [
        {
            key: value if key == "role" else value.translate(swap) if isinstance(value, str) else _swapped(value, swap)
            for key, value in message.items()
        }
        for message in contents["messages"]
    ]
    others = {name: _swapped(value, swap) for name, value in contents.items() if name != "messages"}
    return {"messages": messages, **others}


def _swapped(value: Any, swap: Mapping[int, str]) -> Any:
    if isinstance(value, str):
        return value if value in _FORM_WORDS else value.translate(swap)
    if isinstance(value, list):
        return [_swapped(item, swap) for item in value]
    if isinstance(value, dict):
        return {_swapped_key(key, swap): _swapped(item, swap) for key, item in value.items()}
    return value


def _swapped_key(key: str, swap: Mapping[int, str]) -> str:
    swapped = key if key in _FORM_WORDS else key.translate(swap)
    return key if swapped == key else _Key(swapped)

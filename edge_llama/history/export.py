"""A conversation as a file for others: Markdown for people, or the messages as OpenAI's interface has them."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edge_llama.errors import OptionError, OutputError, printable
from edge_llama.host.atomic import new_file
from edge_llama.prompts.messages import Message, ToolCall

_HEADINGS = {"system": "System", "user": "You", "assistant": "Assistant", "tool": "Tool"}


def export(messages: Sequence[Message], path: Path, *, force: bool = False) -> None:
    """Write ``messages`` to ``path`` as the ending of its name says; what is there is replaced only with ``force``.

    A ``.json`` file is a list that :meth:`Message.from_json` reads and chat APIs take, pictures as data URLs; Markdown
    names pictures by their size and documents by their names. It appears whole or not at all. OptionError for another
    ending or no messages, OutputError.
    """
    write = _FORMATS.get(path.suffix.lower())
    if write is None:
        known = ", ".join(_FORMATS)
        raise OptionError(f"{path}: its ending says no format to export to", remedy=f"end its name by one of {known}")
    if not messages:
        raise OptionError("there is nothing to export yet", remedy="send a message first")
    if path.exists() and not force:
        raise OutputError(f"{path}: already exists", remedy="give another name, or --force to replace it")
    try:
        with new_file(path) as file:
            file.write(write(messages).encode())
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}", remedy="give another place"
        ) from error


def as_json(messages: Iterable[Message]) -> str:
    """A JSON list of messages."""
    return json.dumps([message.to_json() for message in messages], ensure_ascii=False, indent=2) + "\n"


def as_markdown(messages: Iterable[Message]) -> str:
    """Markdown with a heading for each turn; control characters, which a terminal would obey, as escapes."""
    text = "\n\n".join(block for message in messages for block in _blocks(message))
    return re.sub(r"[^\n\t]+", lambda match: printable(match[0]), text) + "\n"


def _blocks(message: Message) -> Iterable[str]:
    name = f" {message.name}" if message.name else ""
    yield f"## {_HEADINGS[message.role]}{name}"
    if message.thinking:
        yield "\n".join(f"> {line}".rstrip() for line in message.thinking.strip().split("\n"))
    if content := message.shown.strip("\n"):
        yield _fenced(content) if message.role == "tool" else content
    for call in message.tool_calls:
        yield _fenced(called(call), "json")


def called(call: ToolCall) -> str:
    """A tool call as a line of JSON."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def _fenced(text: str, language: str = "") -> str:
    """A block of code that nothing in it can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


_FORMATS: dict[str, Callable[[Iterable[Message]], str]] = {
    ".md": as_markdown,
    ".markdown": as_markdown,
    ".json": as_json,
}

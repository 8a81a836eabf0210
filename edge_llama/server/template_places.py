"""Conversations as a chat template has places for them: agents' have turns that many templates refuse."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from edge_llama.model import Model
from edge_llama.prompts.messages import Message, Role
from edge_llama.prompts.tools import DEFERRED

_LATER_SYSTEM: tuple[Role, ...] = ("user", "system", "assistant", "user")
_TWO_OF_THE_USER: tuple[Role, ...] = ("user", "user", "assistant", "user")


def fitted(model: Model, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The conversation, changed no more than the model's chat template for such ``tools`` asks for.

    Claude Code and Codex have the system speak within a conversation: where a template refuses that, it is said in the
    user's turn, as Claude Code marks such text there. Where it refuses two turns of the user in a row, they are one.
    Raises TemplateError if the model has no template.
    """
    fitting = tuple(messages)
    has_tools = any(tool.get(DEFERRED) is not True for tool in tools)
    has_later_system = any(message.role == "system" for message in fitting[1:])
    if has_later_system and not model.template.takes(_LATER_SYSTEM, has_tools=has_tools):
        fitting = (fitting[0], *map(_reminder, fitting[1:]))
    roles = [message.role for message in fitting]
    if ("user", "user") in pairwise(roles) and not model.template.takes(_TWO_OF_THE_USER, has_tools=has_tools):
        fitting = tuple(in_one(fitting, "user", "\n"))
    return fitting


def _reminder(message: Message) -> Message:
    if message.role != "system":
        return message
    return Message("user", ["<system-reminder>\n", *message.parts, "\n</system-reminder>"])


def in_one(messages: Iterable[Message], role: Role, between: str) -> Iterator[Message]:
    """The messages, of which those of a role that follow each other are one, with ``between`` them."""
    before: Message | None = None
    for message in messages:
        if before and before.role == message.role == role:
            before = Message(role, [*before.parts, between, *message.parts])
            continue
        if before:
            yield before
        before = message
    if before:
        yield before

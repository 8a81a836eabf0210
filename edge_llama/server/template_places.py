"""Conversations as a chat template has places for them: agents' have turns that many templates refuse."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from edge_llama.errors import TemplateError
from edge_llama.model import Model
from edge_llama.prompts.messages import Message

_LATER_SYSTEM = (Message("user", "a"), Message("system", "b"), Message("assistant", "c"), Message("user", "d"))
_TWO_OF_THE_USER = (Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d"))


def fitted(model: Model, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation, changed no more than the model's chat template asks for.

    Claude Code and Codex have the system speak within a conversation: where a template refuses that, it is said in the
    user's turn, as Claude Code marks such text there. Where it refuses two turns of the user in a row, they are one.
    Raises TemplateError if the model has no template.
    """
    fitting = tuple(messages)
    if any(message.role == "system" for message in fitting[1:]) and not _takes(model, _LATER_SYSTEM):
        fitting = (fitting[0], *map(_reminder, fitting[1:]))
    roles = [message.role for message in fitting]
    if ("user", "user") in pairwise(roles) and not _takes(model, _TWO_OF_THE_USER):
        fitting = tuple(_joined(fitting))
    return fitting


def _takes(model: Model, messages: Sequence[Message]) -> bool:
    template = model.template
    try:
        template.text(messages)
    except TemplateError:
        return False
    return True


def _reminder(message: Message) -> Message:
    if message.role != "system":
        return message
    return Message("user", ["<system-reminder>\n", *message.parts, "\n</system-reminder>"])


def _joined(messages: Iterable[Message]) -> Iterator[Message]:
    before: Message | None = None
    for message in messages:
        if before and before.role == message.role == "user":
            before = Message("user", [*before.parts, "\n", *message.parts])
            continue
        if before:
            yield before
        before = message
    if before:
        yield before

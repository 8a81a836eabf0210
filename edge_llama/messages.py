"""What people and models say to each other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edge_llama.errors import OptionError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and the text."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise OptionError(f"role {self.role!r} is unknown", remedy=f"known: {', '.join(get_args(Role))}")
        check_text(self.content, f"the {self.role} message")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"role": self.role, "content": self.content}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Message":
        """The inverse of :meth:`to_json`; OptionError for anything else."""
        if not isinstance(data, Mapping):
            raise OptionError(f"a message is an object with role and content, not {type(data).__name__}")
        if set(data) != {"role", "content"}:
            raise OptionError(f"a message has role and content, not {', '.join(map(repr, data)) or 'nothing'}")
        return cls(data["role"], data["content"])


def check_messages(messages: object) -> tuple[Message, ...]:
    """The messages of a conversation; OptionError unless it is a sequence or other iterable of them."""
    if not isinstance(messages, Iterable) or isinstance(messages, str | bytes | Mapping):
        raise OptionError(
            f"a conversation is {type(messages).__name__}, expected a list of Message",
            remedy='for one question: [Message("user", text)]',
        )
    checked = tuple(messages)
    for at, message in enumerate(checked):
        if not isinstance(message, Message):
            raise OptionError(
                f"message {at} of the conversation is {type(message).__name__}, expected Message",
                remedy="Message.from_json makes one of a dict",
            )
    return checked


def check_text(text: object, what: str) -> None:
    """OptionError unless ``text`` is a string that UTF-8 can express."""
    if not isinstance(text, str):
        raise OptionError(f"{what} is {type(text).__name__}, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"{what} has a lone surrogate, {text[error.start]!a}, at character {error.start}",
            remedy="give valid Unicode",
        ) from error

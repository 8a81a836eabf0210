"""What people, models and tools say to each other, and show."""

import json
import secrets
import string
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from edge_llama.errors import OptionError
from edge_llama.media.documents.document import Document
from edge_llama.media.images import Image
from edge_llama.prompts.attached import AttachedDocument, FramedDocument, framed

Role = Literal["system", "user", "assistant", "tool"]
QUESTIONS = ("user", "tool")
"""The roles that the model answers."""
Part: TypeAlias = str | Image | Document | FramedDocument
"""What a message's content may be given as, in order."""
_FIELDS = {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "documents"}
_ID_LETTERS = string.ascii_letters + string.digits


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))  # nine, since Mistral's templates refuse others


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's wish that a tool be called: the tool's name, and arguments as JSON has them.

    ``arguments`` is kept as a copy, tuples as lists. ``id`` tells calls apart; one is drawn if none is given.
    OptionError for a name or an id that is empty or no text, and arguments that JSON can't express.

    Examples:
        >>> call = edge_llama.ToolCall("weather", {"city": "Paris"}, id="call00001")
        >>> call.to_json()["function"]
        {'name': 'weather', 'arguments': '{"city": "Paris"}'}
        >>> edge_llama.ToolCall.from_json(call.to_json()) == call
        True
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=_new_id)

    def __post_init__(self) -> None:
        for what in ("name", "id"):
            check_text(value := getattr(self, what), f"a tool call's {what}")
            if not value:
                raise OptionError(f"a tool call's {what} is empty")
        where = f"the call of {self.name}"
        if not isinstance(self.arguments, Mapping):
            raise OptionError(f"{where}: arguments are {type(self.arguments).__name__}, expected a dict")
        object.__setattr__(self, "arguments", as_json(dict(self.arguments), f"{where}: arguments"))

    def to_json(self) -> dict[str, Any]:
        """As OpenAI's interface writes it: the arguments are JSON within a string."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ToolCall":
        """The inverse of :meth:`to_json`; arguments may also be an object, as Hugging Face has them, and id lack."""
        function = _object(data, "a tool call", {"id", "type", "function"}).get("function")
        function = _object(function, "a tool call's function", {"name", "arguments"})
        if (kind := data.get("type", "function")) != "function":
            raise OptionError(f"a tool call is of type {kind!r}, expected 'function'")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError) as error:
                raise OptionError(f"a tool call's arguments are no JSON: {error}") from error
        given = {"id": data["id"]} if "id" in data else {}
        return cls(function.get("name", ""), arguments, **given)


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """One turn: who speaks, and the text; the model's may have tool calls, a tool's says which one it answers.

    ``content`` may be given as parts, texts, images and documents in order: ``Message("user", [image, "What is
    this?"])``. It is kept as all its text; ``images`` has each image with the number of characters of the text that
    stand before it, ``documents`` says where in the text a document stands, in its frame.
    ``tool_call_id`` and ``name`` (of the tool) belong to a tool's answer, ``tool_calls`` to the assistant, as
    ``thinking``: what it thought before. Most chat templates leave that out of the next prompt.

    Examples:
        >>> image = edge_llama.Image.open("docs/digits.png")
        >>> message = edge_llama.Message("user", ["Look: ", image, "Which digits are these?"])
        >>> message.content, message.images[0][0], len(message.parts)
        ('Look: Which digits are these?', 6, 3)
        >>> edge_llama.Message.from_json({"role": "user", "content": "Hello!"})
        Message(role='user', content='Hello!', ...)
        >>> message.with_last_text("And these?").content
        'Look: And these?'
        >>> edge_llama.Message("assistant", "Hi.").to_json()
        {'role': 'assistant', 'content': 'Hi.'}
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    images: tuple[tuple[int, Image], ...] = ()
    thinking: str = ""
    documents: tuple[AttachedDocument, ...] = ()

    def __init__(
        self,
        role: Role,
        content: str | Iterable[Part],
        tool_calls: Iterable[ToolCall] = (),
        tool_call_id: str | None = None,
        name: str | None = None,
        thinking: str = "",
        documents: Iterable[AttachedDocument] = (),
    ) -> None:
        text, images, own = (content, (), ()) if isinstance(content, str) else _together(content, f"the {role} message")
        given = {"role": role, "content": text, "images": images, "tool_call_id": tool_call_id, "name": name}
        attached = {"documents": own or tuple(documents)}
        for attribute, value in {**given, "tool_calls": tool_calls, "thinking": thinking, **attached}.items():
            object.__setattr__(self, attribute, value)
        self._check()

    def _check(self) -> None:
        if self.role not in get_args(Role):
            raise OptionError(f"role {self.role!r} is unknown", remedy=f"known: {', '.join(get_args(Role))}")
        check_text(self.content, f"the {self.role} message")
        check_text(self.thinking, "thinking")
        if self.thinking and self.role != "assistant":
            raise OptionError(f"the {self.role} message has thinking", remedy="only the assistant's may")
        object.__setattr__(self, "tool_calls", self._checked_calls())
        self._check_documents()
        for what in ("tool_call_id", "name"):
            if (value := getattr(self, what)) is not None:
                check_text(value, what)
                if self.role != "tool":
                    raise OptionError(f"the {self.role} message has {what}", remedy="that belongs to a tool's answer")

    def _check_documents(self) -> None:
        """OptionError unless each stands within the content, after the one before it."""
        end = 0
        for document in self.documents:
            if not isinstance(document, AttachedDocument):
                raise OptionError(f"documents has a {type(document).__name__}, expected AttachedDocument")
            if document.place < end or document.end > len(self.content):
                raise OptionError(
                    f"document {document.name} stands at {document.place:,} to {document.end:,} of a content of "
                    f"{len(self.content):,} characters, where it can't be"
                )
            end = document.end

    @property
    def own_text(self) -> str:
        """The content without the documents in it."""
        starts = [0, *(document.end for document in self.documents)]
        ends = [*(document.place for document in self.documents), len(self.content)]
        return "".join(self.content[start:end] for start, end in zip(starts, ends, strict=True))

    @property
    def shown(self) -> str:
        """The content as people are shown it: documents and images named in brackets, where they stand."""
        marks = [
            (image_at, image_at, f"[image of {image.width:,} x {image.height:,} pixels]")
            for image_at, image in self.images
        ]
        marks += [(document.place, document.end, str(document)) for document in self.documents]
        shown, at = "", 0
        for start, end, mark in sorted(marks, key=lambda each: each[0]):
            shown += f"{self.content[at : max(at, start)]}{mark} "
            at = max(at, end)
        return shown + self.content[at:]

    @property
    def parts(self) -> tuple[str | Image, ...]:
        """The content in order; no text is empty."""
        parts: list[str | Image] = []
        at = 0
        for place, image in self.images:
            parts += [self.content[at:place], image]
            at = place
        return tuple(part for part in (*parts, self.content[at:]) if part != "")

    @property
    def last_text(self) -> str:
        """The text after the last image or document."""
        return self.content[self._last_text_at :]

    def with_last_text(self, text: str) -> "Message":
        """The message with another text after its last image or document. OptionError for what is no text."""
        check_text(text, f"the {self.role} message")
        other = copy(self)
        object.__setattr__(other, "content", self.content[: self._last_text_at] + text)
        return other

    @property
    def _last_text_at(self) -> int:
        ends = (*(place for place, _ in self.images), *(document.end for document in self.documents))
        return max(ends, default=0)

    def _checked_calls(self) -> tuple[ToolCall, ...]:
        calls: object = self.tool_calls
        if not isinstance(calls, Iterable) or isinstance(calls, str | bytes | Mapping):
            raise OptionError(f"tool_calls is {type(calls).__name__}, expected a list of ToolCall")
        checked = tuple(calls)
        if wrong := next((call for call in checked if not isinstance(call, ToolCall)), None):
            raise OptionError(f"tool_calls has a {type(wrong).__name__}, expected ToolCall")
        if checked and self.role != "assistant":
            raise OptionError(f"the {self.role} message has tool calls", remedy="only the assistant's may")
        return checked

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, in the form of OpenAI's interface; what is not given is left out."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.images:
            data["content"] = list(map(_part_as_json, self.parts))
        if self.tool_calls:
            data["tool_calls"] = [call.to_json() for call in self.tool_calls]
        if self.documents:
            data["documents"] = [document.to_json() for document in self.documents]
        given = {"tool_call_id": self.tool_call_id, "name": self.name, "reasoning_content": self.thinking or None}
        return data | {key: value for key, value in given.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Message":
        """The inverse of :meth:`to_json`; OptionError for anything else.

        As in OpenAI's interface, content may be a list of text and image parts (``data:`` URLs: nothing is fetched),
        and null beside tool calls.
        """
        fields = dict(_object(data, "a message", _FIELDS))
        calls = fields.pop("tool_calls", None)
        if not {"role", "content"} <= set(fields) and not (calls and "role" in fields):
            raise OptionError(f"a message has role and content, not {', '.join(map(repr, data)) or 'nothing'}")
        if calls is not None and not isinstance(calls, list):
            raise OptionError(f"a message's tool_calls is {type(calls).__name__}, expected a list")
        thinking = fields.pop("reasoning_content", None)
        content = fields.pop("content", None)
        if isinstance(content, list):
            content = list(map(_part_from_json, content))
        content = "" if content is None and calls else content
        calls = tuple(map(ToolCall.from_json, calls or ()))
        documents = fields.pop("documents", None) or ()
        if not isinstance(documents, list | tuple):
            raise OptionError(f"a message's documents is {type(documents).__name__}, expected a list")
        places = map(AttachedDocument.from_json, documents)
        thinking = "" if thinking is None else thinking
        return cls(**fields, content=content, tool_calls=calls, thinking=thinking, documents=places)


def _object(data: object, what: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise OptionError(f"{what} is an object, not {type(data).__name__}")
    if unknown := [key for key in data if key not in known]:
        raise OptionError(f"{what} has {', '.join(map(repr, unknown))}", remedy=f"known: {', '.join(sorted(known))}")
    return data


def _together(
    parts: Iterable[Part], what: str
) -> tuple[str, tuple[tuple[int, Image], ...], tuple[AttachedDocument, ...]]:
    """All text of the parts, the images by their places in it, and the documents that stand in it."""
    if not isinstance(parts, Iterable) or isinstance(parts, bytes | Mapping):
        raise OptionError(f"{what} is {type(parts).__name__}, expected text, or a list of texts and images")
    text = ""
    images: list[tuple[int, Image]] = []
    documents: list[AttachedDocument] = []
    for part in parts:
        if isinstance(part, Document | FramedDocument):
            attached = framed(part) if isinstance(part, Document) else part
            documents.append(attached.at(len(text)))
            text += attached.text
        elif isinstance(part, Image):
            images.append((len(text), part))
        else:
            check_text(part, f"a part of {what}")
            text += part
    return text, tuple(images), tuple(documents)


def _part_as_json(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": part.to_data_url()}}


def _part_from_json(part: object) -> str | Image:
    fields = _object(part, "a part of content", {"type", "text", "image_url"})
    kind = fields.get("type")
    if kind == "text" and "image_url" not in fields:
        check_text(text := fields.get("text"), "a part of content")
        return str(text)
    if kind == "image_url" and "text" not in fields:
        url = _object(fields.get("image_url"), "a part of content: image_url", {"url", "detail"}).get("url")
        check_text(url, "an image's url")
        return Image.from_data_url(str(url))
    raise OptionError(f"a part of content is of type {kind!r}", remedy="give text and image_url parts")


def as_json(value: Any, what: str) -> Any:
    """A copy of ``value`` as JSON has it (tuples become lists); OptionError for what JSON can't express."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"{what}: JSON can't express them: {error}") from error
    check_text(text, what)
    return json.loads(text)


def images_of(messages: Iterable[Message]) -> list[Image]:
    """The images of a conversation, in order."""
    return [image for message in messages for _, image in message.images]


def up_to_last_question(messages: Sequence[Message]) -> list[Message]:
    """The messages without those after the last one that the model answers; none if there is no such."""
    last = max((at for at, message in enumerate(messages) if message.role in QUESTIONS), default=-1)
    return list(messages[: last + 1])


def open_calls(messages: Sequence[Message]) -> tuple[ToolCall, ...]:
    """Tool calls of the last answer that have no result yet."""
    at = max((at for at, message in enumerate(messages) if message.role != "tool"), default=0)
    answered = {message.tool_call_id for message in messages[at + 1 :]}
    calls = messages[at].tool_calls if messages else ()
    return tuple(call for call in calls if call.id not in answered)


def tool_result(call: ToolCall, result: Any) -> Message:
    """What a tool answers to ``call``: text as it is, anything else as JSON.

    OptionError if ``call`` is none, or JSON can't express the result.
    """
    if not isinstance(call, ToolCall):
        raise OptionError(f"the call is {type(call).__name__}, expected ToolCall", remedy="answer.tool_calls has them")
    if not isinstance(result, str):
        result = json.dumps(as_json(result, f"the result of {call.name}"), ensure_ascii=False)
    return Message("tool", result, tool_call_id=call.id, name=call.name)


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

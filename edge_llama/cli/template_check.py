"""``edge-llama verify MODEL --template``: conversations as the model gets them, beside transformers' rendering of them.

A model's file carries a template and a vocabulary that were converted; what comes out of both must be what the
checkpoint's own files give. Text that is refused here since the model would not see it is no difference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edge_llama.errors import OptionError, TemplateError
from edge_llama.media.images import Image
from edge_llama.model import Model
from edge_llama.prompts.chat_template import IMAGE, ChatTemplate
from edge_llama.prompts.messages import Message
from edge_llama.prompts.probe_conversations import Conversation, conversations
from edge_llama.prompts.template_contents import one_call_each

Outcome = Literal["rendered", "refused", "same", "differs"]
Rendering = tuple[str, list[int]] | str
"""Text and ids of a conversation, or why there are none."""
_AROUND = 24  # characters that are shown before and after a difference


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a conversation: ``tokens`` where it was rendered, ``why`` where it was refused or differs.

    ``refused`` alone is no difference: the template does not show what the conversation has, or refuses it in both.
    """

    conversation: str
    outcome: Outcome
    tokens: int | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def check(model: Model, reference: Path | None) -> Iterator[Finding]:
    """Render every conversation, and compare with the checkpoint ``reference`` where one is given.

    Raises TemplateError if the model has no template, OptionError if the reference can't be used.
    """
    template = model.template
    image = model.tokenizer.control_tokens.get(IMAGE)
    compared = _reference(reference) if reference else None
    for conversation in conversations():
        own = _own(template, conversation, [] if image is None else [image])
        yield _finding(conversation, own) if compared is None else _beside(conversation, own, compared)


def _own(template: ChatTemplate, conversation: Conversation, image: Sequence[int]) -> Rendering:
    """The text and the ids, an image as the one token that the template writes for it; or why they are refused."""
    try:
        text = template.text(conversation.messages, tools=conversation.tools)
        ids = template.tokens(conversation.messages, tools=conversation.tools, image_ids=lambda _image: image)
    except (TemplateError, OptionError) as error:
        return str(error)
    return text, ids


def _finding(conversation: Conversation, own: Rendering) -> Finding:
    if isinstance(own, str):
        return Finding(conversation.name, "refused", why=own)
    return Finding(conversation.name, "rendered", len(own[1]))


def _beside(conversation: Conversation, own: Rendering, reference: "_Reference") -> Finding:
    """Ours beside theirs: a refusal is right where they refuse too, or don't show what the conversation has."""
    other = reference.rendered(conversation)
    if isinstance(own, str):
        is_right = isinstance(other, str) or not _shows(other, conversation)
        why = own if is_right else f"refused here, rendered by transformers: {own}"
        return Finding(conversation.name, "refused" if is_right else "differs", why=why)
    if isinstance(other, str):
        why = f"rendered here, refused by transformers: {other}"
        return Finding(conversation.name, "differs", len(own[1]), why)
    difference = _texts_differ(own[0], other[0]) or _ids_differ(own[1], other[1])
    if difference and own == (other[0], reference.ids_by_file(other[0])):
        why = f"by tokenizer.json itself, whose steps transformers' {reference.kind} leaves out: {difference}"
        return Finding(conversation.name, "same", len(own[1]), why)
    return Finding(conversation.name, "differs" if difference else "same", len(own[1]), difference)


def _texts_differ(own: str, other: str) -> str:
    if own == other:
        return ""
    at = next((at for at, pair in enumerate(zip(own, other, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(own), len(other)) if at is None else at
    ours, theirs = (text[max(at - _AROUND, 0) : at + _AROUND] for text in (own, other))
    return f"the texts differ at character {at:,}: {ours!r} here, {theirs!r} by transformers"


def _ids_differ(own: list[int], other: list[int]) -> str:
    if own == other:
        return ""
    at = next((at for at, pair in enumerate(zip(own, other, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(own), len(other)) if at is None else at
    ours, theirs = (ids[at : at + 4] for ids in (own, other))
    return f"the ids differ at token {at:,}: {ours} here, {theirs} by transformers"


@dataclass(frozen=True, slots=True)
class _Reference:
    """transformers with the files of a checkpoint.

    Its class for Llama 2 puts steps of its own in place of tokenizer.json's; ``by_file`` is that file as it stands.
    """

    tokenizer: Any
    by_file: Any

    @property
    def kind(self) -> str:
        return type(self.tokenizer).__name__

    def rendered(self, conversation: Conversation) -> Rendering:
        return _rendered(self.tokenizer, conversation)

    def ids_by_file(self, text: str) -> list[int] | None:
        if self.by_file is None:
            return None
        return list(self.by_file(text, add_special_tokens=False)["input_ids"])


def _reference(folder: Path) -> _Reference:
    """OptionError where transformers or the folder's tokenizer can't be had."""
    try:
        # They take seconds, and no part of edge-llama needs them.
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415
    except ImportError as error:
        raise OptionError(
            f"--reference {folder}: nothing was compared: transformers is not installed",
            remedy="pip install transformers",
        ) from error
    if not folder.is_dir():
        raise OptionError(f"--reference {folder}: no such folder", remedy="give a Hugging Face checkpoint's folder")
    has_json = (folder / "tokenizer.json").is_file()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        by_file: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True) if has_json else None
    except Exception as error:  # whatever it meets in files that may be anything
        raise OptionError(
            f"--reference {folder}: transformers can't read its tokenizer: {error!s:.300}",
            remedy="give the folder of a Hugging Face checkpoint",
        ) from error
    if not tokenizer.chat_template:
        raise OptionError(f"--reference {folder}: has no chat template", remedy="give the checkpoint that has one")
    return _Reference(tokenizer, by_file)


def _rendered(tokenizer: Any, conversation: Conversation) -> Rendering:
    """In the first form that shows what the conversation has: texts as they are, as parts, one call a message.

    A template that takes no other is given the same here. What none shows is told of the first.
    """
    apart = one_call_each(conversation.messages)
    forms = ((conversation.messages, False), (conversation.messages, True), (apart, False), (apart, True))
    found = [_applied(tokenizer, messages, conversation.tools, in_parts=in_parts) for messages, in_parts in forms]
    return next((rendering for rendering in found if _shows(rendering, conversation)), found[0])


def _shows(rendering: Rendering, conversation: Conversation) -> bool:
    return not isinstance(rendering, str) and all(word in rendering[0] for word in conversation.shown)


def _applied(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], *, in_parts: bool) -> Rendering:
    data = [_as_data(message, in_parts=in_parts or bool(message.images)) for message in messages]
    options = {"tools": list(tools) or None, "add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template(data, tokenize=False, **options)
        return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # a template is a program: nothing says how it fails
        return f"{type(error).__name__}: {error!s:.300}"


def _as_data(message: Message, *, in_parts: bool) -> Mapping[str, Any]:
    """The message as transformers takes it: calls as objects, images as parts without pixels."""
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if in_parts:
        data["content"] = [
            {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in message.parts
        ]
    if message.tool_calls:
        calls = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in message.tool_calls]
        data["tool_calls"] = [{"id": number, "type": "function", "function": function} for number, function in calls]
    given = {"tool_call_id": message.tool_call_id, "name": message.name}
    return data | {key: value for key, value in given.items() if value is not None}

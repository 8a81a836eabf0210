"""A conversation in Anthropic's blocks as the messages that chat templates know."""

import re
from collections.abc import Iterable, Iterator, Sequence

from edge_llama.errors import OptionError
from edge_llama.media.images import Image
from edge_llama.prompts.messages import Message, ToolCall
from edge_llama.server.anthropic.blocks import (
    Base64Source,
    Block,
    BrowserStateBlock,
    ContentSource,
    DocumentBlock,
    ImageBlock,
    SearchResultBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from edge_llama.server.anthropic.fields import CountFields, Turn
from edge_llama.server.failures import ApiError

_BILLING = re.compile(r"\A\s*x-anthropic-billing-header:[^\n]*\n?")
BILLING = "system: x-anthropic-billing-header"
"""How the line is called in the header that names what had no effect."""


def has_billing_line(fields: CountFields) -> bool:
    """Whether the system prompt begins with a line of Claude Code's that is no text for the model.

    It changes with every request, so that nothing behind it would be found in the cache (github.com/ggml-org/llama.cpp
    pull request 20623, github.com/anthropics/claude-code issue 68900). Anthropic's own server takes it away too.
    """
    return any(_BILLING.match(block.text) for block in fields.system or ())


def messages_of(fields: CountFields, max_images: int) -> list[Message]:
    """The conversation as messages. ApiError for more images; InputError for one that is damaged, and a prefill."""
    turns = list(_turns(fields.messages))
    _check_images(turns, max_images)
    if turns[-1][0] == "assistant":
        raise OptionError(
            "the conversation ends with the assistant's turn, which can't be gone on with",
            remedy="end with the user's: say there how the answer is to begin",
        )
    texts = [text for block in fields.system or () if (text := _BILLING.sub("", block.text))]
    messages = [Message("system", "\n".join(texts))] if texts else []
    names: dict[str, str] = {}
    for role, blocks in turns:
        messages += _spoken(role, blocks, names)
    return messages


def _check_images(turns: Iterable[tuple[str, Sequence[Block]]], most: int) -> None:
    """Before any is decoded."""
    count = sum(_images_in(block) for _, blocks in turns for block in blocks)
    if count > most:
        raise ApiError(400, f"messages have {count:,} images, at most {most:,} may be in a request", param="messages")


def _images_in(block: Block | BrowserStateBlock) -> int:
    match block:
        case ImageBlock():
            return 1
        case ToolResultBlock():
            return sum(map(_images_in, block.content))
        case DocumentBlock(source=ContentSource(content=content)):
            return sum(map(_images_in, content))
    return 0


def _turns(turns: Iterable[Turn]) -> Iterator[tuple[str, list[Block]]]:
    """Turns of one role in a row are one, as Anthropic has it."""
    role, blocks = "", list[Block]()
    for turn in turns:
        if turn.role != role and role:
            yield role, blocks
            blocks = []
        role = turn.role
        blocks = [*blocks, *turn.content]
    yield role, blocks


def _spoken(role: str, blocks: Sequence[Block], names: dict[str, str]) -> Iterator[Message]:
    """The messages of a turn; ``names`` are those of the tools that were called, by the calls' ids."""
    if role == "assistant":
        yield _answer(blocks, names)
        return
    results = [block for block in blocks if isinstance(block, ToolResultBlock)]
    for result in results:
        yield _result(result, names.get(result.tool_use_id))
    rest = [block for block in blocks if not isinstance(block, ToolResultBlock)]
    if rest or (role == "user" and not results):
        yield Message("system" if role == "system" else "user", _parts(rest))


def _answer(blocks: Sequence[Block], names: dict[str, str]) -> Message:
    calls = [ToolCall(block.name, block.input, block.id) for block in blocks if isinstance(block, ToolUseBlock)]
    names.update((call.id, call.name) for call in calls)
    thoughts = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    # As the model wrote it: this server gives an answer's text in several blocks where calls stand between.
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    others = [part for block in blocks if not isinstance(block, TextBlock) for part in _block_parts(block)]
    return Message("assistant", [*(text.text for text in texts), *others], calls, thinking=thoughts)


def _result(result: ToolResultBlock, name: str | None) -> Message:
    parts = ["Error: "] if result.is_error else []
    return Message("tool", [*parts, *_parts(result.content)], tool_call_id=result.tool_use_id, name=name)


def _parts(blocks: Sequence[Block | BrowserStateBlock]) -> list[str | Image]:
    """Texts and images, with a line's end between two texts: each block stands for itself."""
    parts: list[str | Image] = []
    for part in (part for block in blocks for part in _block_parts(block)):
        are_texts = bool(parts) and isinstance(part, str) and isinstance(parts[-1], str)
        parts.append(f"\n{part}" if are_texts else part)
    return parts


def _block_parts(block: Block | BrowserStateBlock) -> list[str | Image]:
    """What a block shows the model; nothing for those that are no content."""
    match block:
        case TextBlock():
            return [block.text]
        case ImageBlock():
            return [_image(block)]
        case DocumentBlock():
            heads = [text for text in (block.title, block.context) if text]
            return [*heads, *_document(block)]
        case SearchResultBlock():
            return [block.title, block.source, *(text.text for text in block.content)]
        case ToolReferenceBlock():
            return [block.tool_name]
    return []


def _document(block: DocumentBlock) -> list[str | Image]:
    match block.source:
        case TextSource():
            return [block.source.data]
        case ContentSource():
            return [part for inner in block.source.content for part in _block_parts(inner)]
    return []


def _image(block: ImageBlock) -> Image:
    assert isinstance(block.source, Base64Source)  # noqa: S101 - others are refused
    return Image.from_data_url(f"data:{block.source.media_type};base64,{block.source.data}")

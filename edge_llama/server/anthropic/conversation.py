"""A conversation in Anthropic's blocks as the messages that chat templates know."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolAdditionBlock,
    ToolByName,
    ToolReferenceBlock,
    ToolRemovalBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from edge_llama.server.anthropic.fields import CountFields, Tool, Turn
from edge_llama.server.failures import ApiError
from edge_llama.server.image_limit import check_images

_BILLING = re.compile(r"\A\s*x-anthropic-billing-header:[^\n]*\n?")
BILLING = "system: x-anthropic-billing-header"
"""How the line is called in the header that names what had no effect."""
_MODELS_BLOCKS = (ThinkingBlock, RedactedThinkingBlock, ToolUseBlock)
_OTHERS_BLOCKS = (ToolResultBlock,)


def has_billing_line(fields: CountFields) -> bool:
    """Whether the system prompt begins with a line of Claude Code's that is no text for the model.

    It changes with every request, so that nothing behind it would be found in the cache (github.com/ggml-org/llama.cpp
    pull request 20623, github.com/anthropics/claude-code issue 68900). Anthropic's own server takes it away too.
    """
    return any(_BILLING.match(block.text) for block in fields.system or ())


def messages_of(fields: CountFields, max_images: int) -> list[Message]:
    """The conversation as messages. ApiError for more images; InputError for one that is damaged, and a prefill."""
    turns = list(_turns(_all_turns(fields)))
    check_images("messages", sum(_images_in(block) for _, blocks in turns for block in blocks), max_images)
    if turns[-1][0] == "assistant":
        raise OptionError(
            "the conversation ends with the assistant's turn, which can't be gone on with",
            remedy="end with the user's: say there how the answer is to begin",
        )
    names: dict[str, str] = {}
    return [message for role, blocks in turns for message in _spoken(role, blocks, names)]


def _all_turns(fields: CountFields) -> Iterator[tuple[str, Sequence[Block]]]:
    """Those of the request, the system prompt first."""
    system = [block.model_copy(update={"text": _BILLING.sub("", block.text)}) for block in fields.system or ()]
    yield "system", [block for block in system if block.text]
    deferred = {tool.name: tool for tool in fields.tools or () if tool.defer_loading}
    for number, turn in enumerate(fields.messages):
        _check_places(turn, f"messages.{number}")
        yield turn.role, [_with_tools(block, deferred) for block in turn.content]


def _check_places(turn: Turn, where: str) -> None:
    """ApiError for a block that only another's turn has: nobody would read it."""
    for number, block in enumerate(turn.content):
        if isinstance(block, _OTHERS_BLOCKS if turn.role == "assistant" else _MODELS_BLOCKS):
            place = f"{where}.content.{number}"
            raise ApiError(400, f"{place}: {block.type} can't stand in the {turn.role}'s turn", param=place)


def _with_tools(block: Block, deferred: Mapping[str, Tool]) -> Block:
    """The block, text in place of names of tools: their descriptions, of those that the model was not told of yet."""
    match block:
        case ToolReferenceBlock():
            return TextBlock(type="text", text=_described(block.tool_name, deferred))
        case ToolAdditionBlock(tool=ToolByName(name=name)):
            return TextBlock(type="text", text=f"A tool may be called from here on:\n{_described(name, deferred)}")
        case ToolRemovalBlock(tool=ToolByName(name=name)):
            return TextBlock(type="text", text=f"A tool may not be called any more: {name}")
        case ToolResultBlock():
            content = [
                _with_tools(each, deferred) if isinstance(each, ToolReferenceBlock) else each for each in block.content
            ]
            return block.model_copy(update={"content": content})
    return block


def _described(name: str, deferred: Mapping[str, Tool]) -> str:
    """As Claude Code tells its model that descriptions come; the name alone of a tool that it knows."""
    if (tool := deferred.get(name)) is None:
        return name
    described = {"description": tool.description or "", "name": name, "parameters": tool.input_schema}
    return f"<functions>\n<function>{json.dumps(described, ensure_ascii=False)}</function>\n</functions>"


def _images_in(block: Block | BrowserStateBlock) -> int:
    match block:
        case ImageBlock():
            return 1
        case ToolResultBlock():
            return sum(map(_images_in, block.content))
        case DocumentBlock(source=ContentSource(content=content)):
            return sum(map(_images_in, content))
    return 0


def _turns(turns: Iterable[tuple[str, Sequence[Block]]]) -> Iterator[tuple[str, list[Block]]]:
    """Turns of one role in a row are one, as Anthropic has it."""
    role, blocks = "", list[Block]()
    for speaker, said in turns:
        if speaker != role and role:
            yield role, blocks
            blocks = []
        role = speaker
        blocks = [*blocks, *said]
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

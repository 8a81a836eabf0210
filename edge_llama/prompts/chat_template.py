"""Messages to token ids through the model's chat template, so that no text can forge a control token.

The template renders twice: as transformers renders it, and with contents in which no character can be part of a
control token. What is a control token in the second text is the template's own; the first text is split there, and
each run between is tokenized as plain text. For benign messages the ids equal transformers' ``apply_chat_template``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_llama.errors import OptionError, TemplateError
from edge_llama.media.images import Image
from edge_llama.prompts.messages import Message, as_json, images_of
from edge_llama.prompts.tokenizer import Tokenizer, check_length
from edge_llama.prompts.tool_formats import TAGS, form_named, form_of
from edge_llama.prompts.tool_parser import ToolCallParser

if TYPE_CHECKING:
    from edge_llama.prompts.template_sandbox import LimitedTemplate

_ESCAPES = "&%{\\"  # what a filter may turn into another character: "&lt;", "%c", "{}", "\x3c"
# Plain signs, so that nothing escapes them; a vocabulary whose control tokens hold these has ideographs left.
_STAND_INS = (*"~^`$;", *map(chr, range(0x4E00, 0x9FFF)))
# Words of the form in which tools and calls are given: templates ask for them, and they forge nothing.
_FORM_WORDS = frozenset(
    re.findall(
        r"\w+",
        "type function name description parameters properties required enum items default arguments id return anyOf "
        "string number integer boolean array object null image text",
    )
)
_PROBE = "edge_llama_probe"
_PROBE_TOOL = {"type": "function", "function": {"name": _PROBE, "description": _PROBE, "parameters": {}}}
IMAGE = "<|image|>"
"""What a template writes for each image."""
_OURS = frozenset(("messages", "tools", "custom_tools", "documents", "add_generation_prompt"))

Contents = Mapping[str, Any]
"""What a template gets from outside: messages and tools as plain data, and variables of its own."""


class ChatTemplate:
    """A compiled chat template of a model; ``source`` is its Jinja text, ``where`` names it in errors."""

    def __init__(self, source: str, tokenizer: Tokenizer, where: str) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._where = where
        self._template = _compile(source, where)
        self._shown: set[str] = set()
        self._control = tokenizer.control_tokens_of(source)
        tokens = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        letters = {char for char in "".join(tokens) if not char.isspace()}
        self._stand_in = next((char for char in _STAND_INS if char not in letters), "")
        if not self._stand_in:
            raise TemplateError(f"{where}: control tokens use every character", remedy="convert the model again")
        self._swaps = (self._swap(letters), self._swap({*_ESCAPES, *(token[0] for token in tokens)}))

    def tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        n_ctx: int | None = None,
        image_ids: Callable[[Image], Sequence[int]] | None = None,
    ) -> list[int]:
        """The ids of the rendered conversation, ready for the model to answer.

        ``image_ids`` gives those that stand for an image: needed if messages have some.
        ``tools`` are JSON schemas, ``variables`` what this template takes besides (``date_string``, ...).
        A template that takes one call a message gets several as that many messages, each before its result.

        ContextFullError, without making them, if they are clearly more than ``n_ctx``.
        Raises OptionError for a variable that the template doesn't ask for; TemplateError if the template refuses the
        messages (``raise_exception``), fails, takes too much, doesn't show tools or calls that are given, or forms
        control tokens of contents in a way that can't be told from its own.
        """
        variables = self._checked_variables(variables or {})

        def rendered(messages: Sequence[Message]) -> list[int]:
            images = list(map(image_ids, images_of(messages))) if image_ids else []
            return self._tokens(_contents(messages, tools, variables), n_ctx, images)

        try:
            return rendered(messages)
        except TemplateError:
            apart = _one_call_each(messages)
            if len(apart) == len(messages):
                raise
            return rendered(apart)

    def text(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The text that :meth:`tokens` makes ids of, to compare it with others'. TemplateError as there."""
        return self._render(_contents(messages, tools, {}))

    def call_parser(self, names: Set[str], tool_format: str | None = None) -> ToolCallParser:
        """What finds calls of the tools of these names in an answer, in the form that this model writes or the given.

        OptionError for a ``tool_format`` that is unknown.
        """
        form = form_of(self._source, self._control.keys()) if tool_format is None else form_named(tool_format)
        return ToolCallParser(form, names, {self._control[tag]: tag for tag in TAGS if tag in self._control})

    def _checked_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(variables, Mapping):
            raise OptionError(f"template_variables is {type(variables).__name__}, expected a dict")
        for name in variables:
            if name in _OURS or name in self._tokenizer.special_texts or name not in self._template.variables:
                known = self._template.variables - _OURS - self._tokenizer.special_texts.keys()
                raise OptionError(
                    f"{self._where}: the chat template takes no {name!r}",
                    remedy=f"it asks for: {', '.join(sorted(known)) or 'nothing more'}",
                )
        return {name: as_json(value, f"the chat template's {name}") for name, value in variables.items()}

    def _tokens(self, contents: Contents, n_ctx: int | None, images: Sequence[Sequence[int]]) -> list[int]:
        rendered = self._render(contents)
        if n_ctx is not None:
            check_length(rendered, self._tokenizer, n_ctx)
        self._check_shown(contents)
        own = list(self._own(rendered, contents))
        self._check_images(own, images)
        waiting = iter(images)
        ids: list[int] = []
        at = 0
        for match in own:
            ids += self._plain(rendered[at : match.start()])
            ids += next(waiting) if images and match[0] == IMAGE else [self._control[match[0]]]
            at = match.end()
        return ids + self._plain(rendered[at:])

    def _check_images(self, own: Sequence[re.Match[str]], images: Sequence[object]) -> None:
        written = sum(match[0] == IMAGE for match in own)
        if images and written != len(images):
            raise TemplateError(
                f"{self._where}: the chat template writes {IMAGE} {written:,} times for {len(images):,} images",
                remedy="pass one for images (--chat-template FILE)",
            )

    def _check_shown(self, contents: Contents) -> None:
        """TemplateError if tools or calls are given and another name for them makes no difference to the text."""
        calls = sum(len(message.get("tool_calls", ())) for message in contents["messages"])
        given = {what for what, count in (("tools", contents["tools"]), ("tool calls", calls)) if count}
        for what in given - self._shown:
            if what == "tools":
                probe, expected = {**contents, "tools": [_PROBE_TOOL]}, 1
            else:
                probe, expected = {**contents, "messages": list(map(_with_probe, contents["messages"]))}, calls
            if self._render(probe).count(_PROBE) < expected:
                raise TemplateError(
                    f"{self._where}: the chat template does not show {what} to the model",
                    remedy="pass one that does (--chat-template FILE), or put them into a message yourself",
                )
            self._shown.add(what)

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, self._control) if text else []

    def _own(self, rendered: str, contents: Contents) -> Iterable[re.Match[str]]:
        """The control tokens that the template wrote, as matches whose places hold for ``rendered``.

        Without any letter of control tokens nothing can be forged; but a template that looks for a word in contents
        (``'/no_think' in content``) then writes something else. Without their first characters few take offence.
        """
        other: str | None = None
        for swap in self._swaps:
            swapped = _swapped_contents(contents, swap)
            if swapped == contents:
                return self._pattern.finditer(rendered)
            try:
                other = self._render(swapped)
            except TemplateError:  # the template wants something of contents that they now lack
                other = None
            if other is not None and self._differ_in_contents(rendered, other):
                return self._pattern.finditer(other)
        if other is not None and self._pattern.findall(rendered) == self._pattern.findall(other):
            return self._pattern.finditer(rendered)
        raise TemplateError(
            f"{self._where}: the chat template makes a control token of a message's text",
            remedy="leave out what looks like a control token, or pass another template",
        )

    def _differ_in_contents(self, rendered: str, other: str) -> bool:
        """Whether the texts are the same but for characters that stand in for others."""
        if len(rendered) != len(other):
            return False
        left, right = (np.frombuffer(text.encode("utf-32-le"), np.uint32) for text in (rendered, other))
        return bool((right[left != right] == ord(self._stand_in)).all())

    def _swap(self, chars: Iterable[str]) -> dict[int, str]:
        cases = {case for char in chars for case in (char, char.lower(), char.upper()) if len(case) == 1}
        return {ord(char): self._stand_in for char in cases}

    def _render(self, contents: Contents) -> str:
        try:
            text = self._template.render(
                documents=None,
                add_generation_prompt=True,
                **self._tokenizer.special_texts,
                **contents,
            )
            text.encode()
        except Exception as error:  # a template is a program: nothing says how it fails
            why = str(error) or type(error).__name__
            raise TemplateError(
                f"{self._where}: the chat template failed: {why}",
                remedy="if the conversation is in order, pass another one",
            ) from error
        return text


def _contents(messages: Iterable[Message], tools: Iterable[Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    return {**variables, "messages": list(map(_as_data, messages)), "tools": list(tools) or None}


def _as_data(message: Message) -> dict[str, Any]:
    """The message as Hugging Face's templates want it: arguments of calls are objects."""
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        data["content"] = [
            {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in message.parts
        ]
    if message.tool_calls:
        data["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    given = {"tool_call_id": message.tool_call_id, "name": message.name}
    return data | {key: value for key, value in given.items() if value is not None}


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with each call in a message of its own, before its result."""
    apart: list[Message] = []
    moved: set[int] = set()
    for at, message in enumerate(messages):
        if len(message.tool_calls) < 2:
            apart += [] if at in moved else [message]
            continue
        for index, call in enumerate(message.tool_calls):
            apart.append(Message("assistant", "" if index else message.parts, (call,)))
            results = [later for later in range(at + 1, len(messages)) if messages[later].tool_call_id == call.id]
            apart += [messages[later] for later in results]
            moved.update(results)
    return apart


def _with_probe(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls", ())
    probes = [{**call, "function": {**call["function"], "name": _PROBE}} for call in calls]
    return {**message, "tool_calls": probes} if probes else dict(message)


class _Key(str):
    """A key of which letters were swapped: two that look the same by now remain two."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _swapped_contents(contents: Contents, swap: Mapping[int, str]) -> dict[str, Any]:
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


def _compile(source: str, where: str) -> "LimitedTemplate":
    from edge_llama.prompts.template_sandbox import compiled  # noqa: PLC0415 - Jinja costs 40 ms, paid by chats only

    try:
        return compiled(source)
    except Exception as error:  # the compiler computes what is constant: that fails as variously as rendering
        why = str(error) or type(error).__name__
        raise TemplateError(f"{where}: the chat template is not valid: {why}", remedy="pass another one") from error

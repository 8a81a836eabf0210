"""Messages to token ids through the model's chat template, so that no text can forge a control token.

The template renders twice: as transformers renders it, and with contents in which no character can be part of a
control token. What is a control token in the second text is the template's own; the first text is split there, and
each run between is tokenized as plain text. For benign messages the ids equal transformers' ``apply_chat_template``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edge_llama.errors import OptionError, TemplateError
from edge_llama.media.images import Image
from edge_llama.prompts.call_style import KEY, NAME, VALUE, CallStyle, own_style, style_of
from edge_llama.prompts.messages import Message, Role, ToolCall, as_json, images_of
from edge_llama.prompts.template_contents import (
    Contents,
    Place,
    contents_of,
    one_call_each,
    swapped_contents,
    texts_of,
    with_call_names,
    with_marks,
)
from edge_llama.prompts.thinking import ThinkingParser, form_in
from edge_llama.prompts.tokenizer import Tokenizer, check_length
from edge_llama.prompts.tool_formats import FORMS, TAGS, form_named
from edge_llama.prompts.tool_parser import ToolCallParser

if TYPE_CHECKING:
    from edge_llama.prompts.template_sandbox import LimitedTemplate

_ESCAPES = "&%{\\"  # what a filter may turn into another character: "&lt;", "%c", "{}", "\x3c"
# Plain signs, so that nothing escapes them; a vocabulary whose control tokens hold these has ideographs left.
_STAND_INS = (*"~^`$;", *map(chr, range(0x4E00, 0x9FFF)))
_PROBE = "edge_llama_probe"
_PROBE_TOOL = {"type": "function", "function": {"name": _PROBE, "description": _PROBE, "parameters": {}}}
TOOL_USE = "tool_use"
"""The name of the template that takes the default one's place where tools are given, as in transformers."""
_T = TypeVar("_T")
IMAGE = "<|image|>"
"""What a template writes for each image."""
_OURS = frozenset(("messages", "tools", "custom_tools", "documents", "add_generation_prompt"))
_SPEAKERS = {
    "system": "the system message",
    "user": "the user's message",
    "assistant": "the assistant's message",
    "tool": "a tool's result",
}
_LONG = 10_000  # characters
_LONGEST_TAG = 16  # tokens of a tag that is none of the vocabulary's, with blanks after it
_WRITTEN_OUT = re.compile(r"""['"]type['"]: ?['"]text['"]""")
"""A list of parts that was written as it is, by a template that takes text."""


class ChatTemplate:
    """A compiled chat template of a model; ``source`` is its Jinja text, ``where`` names it in errors.

    ``for_tools`` is another that takes its place where tools are given.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, where: str, for_tools: str | None = None) -> None:
        self._for_tools = ChatTemplate(for_tools, tokenizer, f"{where}: {TOOL_USE}") if for_tools else None
        self._source = source
        self._tokenizer = tokenizer
        self._where = where
        self._template = _compile(source, where)
        self._shown: set[str] = set()
        self._takes: dict[tuple[tuple[Role, ...], bool], bool] = {}
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
        Text is given as text, or as a list of parts to a template that would not show it otherwise.

        Raises OptionError for a variable that the template doesn't ask for; TemplateError if the template refuses the
        messages (``raise_exception``), fails, takes too much, doesn't show texts, tools or calls that are given, or
        forms control tokens of contents in a way that can't be told from its own.
        """
        if tools and self._for_tools:
            return self._for_tools.tokens(messages, tools=tools, variables=variables, n_ctx=n_ctx, image_ids=image_ids)
        variables = self._checked_variables(variables or {})

        def rendered(messages: Sequence[Message]) -> list[int]:
            images = list(map(image_ids, images_of(messages))) if image_ids else []
            contents, text = self._showing(messages, tools, variables, n_ctx)
            return self._tokens(contents, text, images)

        return _with_calls_apart_if_need_be(messages, rendered)

    def text(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The text that :meth:`tokens` makes ids of, to compare it with others'. TemplateError as there."""
        if tools and self._for_tools:
            return self._for_tools.text(messages, tools=tools)

        def rendered(messages: Sequence[Message]) -> str:
            contents, text = self._showing(messages, tools, {}, None)
            self._check_shown(contents)
            return text

        return _with_calls_apart_if_need_be(messages, rendered)

    def text_and_tokens(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """A conversation of plain texts as the template writes it, and its ids. TemplateError as for :meth:`tokens`."""
        contents, text = self._showing(messages, (), {}, None)
        return text, self._tokens(contents, text, ())

    def takes(self, roles: tuple[Role, ...], *, has_tools: bool = False) -> bool:
        """Whether it writes a conversation in which these speak, one after another; each is tried once."""
        asked = roles, has_tools
        if asked not in self._takes:
            messages = [Message(role, chr(ord("a") + at)) for at, role in enumerate(roles)]
            try:
                self.text(messages, tools=[_PROBE_TOOL] if has_tools else ())
            except TemplateError:
                self._takes[asked] = False
            else:
                self._takes[asked] = True
        return self._takes[asked]

    def call_parser(
        self, names: Set[str], tool_format: str | None = None, *, is_single: bool = False
    ) -> ToolCallParser:
        """What finds calls of the tools of these names in an answer, in any form or in the given one alone.

        ``is_single``: one call, after which the answer is complete.

        OptionError for a ``tool_format`` that is unknown.
        """
        form = None if tool_format is None else form_named(tool_format)
        tags = {self._control[tag]: tag for tag in TAGS if tag in self._control}
        return ToolCallParser(form, names, tags, is_single=is_single)

    def thinking_parser(self, prompt: Sequence[int], *, has_tools: bool = False) -> ThinkingParser | None:
        """What tells thoughts from the answer to ``prompt``; None for a template that knows of none."""
        if has_tools and self._for_tools:
            return self._for_tools.thinking_parser(prompt)
        form = form_in(self._source)
        if form is None:
            return None
        tags = {self._control[tag]: tag for tag in (form.opener, form.closer) if tag in self._control}
        closer = self._control.get(form.closer, form.closer)
        closing = self._tokenizer.encode_parts(["\n", closer, "\n\n"], self._control)
        is_open = self._end_of(prompt).rstrip().endswith(form.opener)
        return ThinkingParser(form, tags, is_open=is_open, closing=closing)

    def _end_of(self, prompt: Sequence[int]) -> str:
        """The text of its last tokens, control tokens too."""
        texts = {token: text for text, token in self._control.items()}
        ids = [token for token in prompt[-_LONGEST_TAG:] if token >= 0]
        pieces = (texts[token].encode() if token in texts else self._tokenizer.piece(token) for token in ids)
        return b"".join(pieces).decode("utf-8", "replace")

    def calls_as(self, tool_format: str | None) -> CallStyle:
        """How calls are to be written: as the template does, unless another form is asked for; as JSON if it does not.

        OptionError for a ``tool_format`` that is unknown.
        """
        own = self.call_style
        form = form_named(tool_format) if tool_format is not None else own.form if own else FORMS["json"]
        return own if own and own.form is form else own_style(form)

    @cached_property
    def call_style(self) -> CallStyle | None:
        """How the template writes tool calls; None if it writes none in a form that is known."""
        if self._for_tools:
            return self._for_tools.call_style
        return style_of(self._written_calls(1), self._written_calls(2))

    def _written_calls(self, count: int) -> str:
        """What it writes for an answer of so many calls, without control tokens; nothing if it takes no such answer."""
        question, calls = Message("user", "x"), [ToolCall(NAME, {KEY: VALUE}) for _ in range(count)]
        conversations = ([question], [question, Message("assistant", "", tuple(calls))])
        try:
            before, after = (self._render(contents_of(each, [_PROBE_TOOL], {})) for each in conversations)
        except TemplateError:
            return ""
        if not after.startswith(before):
            return ""
        parts = re.split(f"({self._pattern.pattern})", after[len(before) :])
        end = next((at for at, part in enumerate(parts) if at % 2 and part not in TAGS), len(parts))
        return "".join(parts[:end:2])

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

    def _showing(
        self, messages: Sequence[Message], tools: Sequence[Any], variables: Mapping[str, Any], n_ctx: int | None
    ) -> tuple[Contents, str]:
        """The contents in a form of which the template shows all texts, and what it makes of them.

        Text as text, as transformers gives it; else in parts, which some templates take alone: of the roles that are
        not shown, of all, or of one. TemplateError, that about text as text, if nothing helps.
        """

        def attempt(in_parts: Set[str]) -> tuple[Contents, str]:
            contents = contents_of(messages, tools, variables, in_parts)
            rendered = self._render(contents)
            if n_ctx is not None:
                check_length(rendered, self._tokenizer, n_ctx)
            if unseen := [index for index, _ in self._unseen(contents, rendered)]:
                raise _UnseenError(
                    f"{self._where}: the chat template does not show {_called(messages, unseen[0])}", unseen
                )
            if in_parts and _WRITTEN_OUT.search(rendered):
                raise TemplateError(f"{self._where}: the chat template takes no parts")
            return contents, rendered

        try:
            return attempt(frozenset())
        except TemplateError as error:
            first = error
        for in_parts in _other_forms(messages, first):
            with suppress(TemplateError):
                return attempt(in_parts)
        raise self._explained(first, messages, tools, variables)

    def _explained(
        self, error: TemplateError, messages: Sequence[Message], tools: Sequence[Any], variables: Mapping[str, Any]
    ) -> TemplateError:
        """The error, or what it is about: a system message that the template refuses."""
        others = [message for message in messages if message.role != "system"]
        if isinstance(error, _UnseenError) or _is_over_limits(error) or len(others) in (0, len(messages)):
            return error
        try:
            self._render(contents_of(others, tools, variables))
        except TemplateError:
            return error
        return TemplateError(
            f"{self._where}: the chat template takes no system message here: {error.__cause__ or error.message}",
            remedy="leave it out, put it into the first question, or pass a template that does (--chat-template FILE)",
        )

    def _unseen(self, contents: Contents, rendered: str) -> list[Place]:
        """The texts that make no difference to what the template writes: ``rendered`` is what that is."""
        marks = {place: f"zq{at:05}qz" for at, place in enumerate(texts_of(contents))}

        def makes_no_difference(marks: Mapping[Place, str]) -> bool:
            """Neither around the texts nor in their place: a template may look for a word (``/no_think``) alone."""
            others = (with_marks(contents, marks, keep_text=keep_text) for keep_text in (True, False))
            try:
                return all(self._render(other) == rendered for other in others)
            except TemplateError:  # it looked at the text at least
                return False

        try:
            shown = self._render(with_marks(contents, marks)).casefold()
        except TemplateError:
            shown = ""
        rest = {place: mark for place, mark in marks.items() if mark not in shown}
        if not rest or makes_no_difference(rest):
            return list(rest)
        return [place for place, mark in rest.items() if makes_no_difference({place: mark})]

    def _tokens(self, contents: Contents, rendered: str, images: Sequence[Sequence[int]]) -> list[int]:
        self._check_shown(contents)
        own = list(self._own(rendered, contents))
        self._check_images(own, images)
        waiting = iter(images)
        parts: list[str | int] = []
        at = 0
        for match in own:
            parts += [rendered[at : match.start()]] if match.start() > at else []
            parts += next(waiting) if images and match[0] == IMAGE else [self._control[match[0]]]
            at = match.end()
        return self._tokenizer.encode_parts([*parts, rendered[at:]], self._control)

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
                probe, expected = with_call_names(contents, _PROBE), calls
            if self._render(probe).count(_PROBE) < expected:
                raise TemplateError(
                    f"{self._where}: the chat template does not show {what} to the model",
                    remedy="pass one that does (--chat-template FILE), or put them into a message yourself",
                )
            self._shown.add(what)

    def _own(self, rendered: str, contents: Contents) -> Iterable[re.Match[str]]:
        """The control tokens that the template wrote, as matches whose places hold for ``rendered``.

        Without any letter of control tokens nothing can be forged; but a template that looks for a word in contents
        (``'/no_think' in content``) then writes something else. Without their first characters few take offence.
        """
        other: str | None = None
        for swap in self._swaps:
            swapped = swapped_contents(contents, swap)
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


class _UnseenError(TemplateError):
    """Texts of these messages are not shown."""

    def __init__(self, problem: str, messages: Sequence[int]) -> None:
        super().__init__(
            problem, remedy="pass a template that does (--chat-template FILE), or put the text into another message"
        )
        self.messages = messages


def _called(messages: Sequence[Message], index: int) -> str:
    role = messages[index].role
    alike = [at for at, message in enumerate(messages) if message.role == role]
    return f"{_SPEAKERS[role]}{f' {alike.index(index) + 1}' if len(alike) > 1 else ''} to the model"


def _other_forms(messages: Sequence[Message], error: TemplateError) -> list[Set[str]]:
    """Whose texts to give in parts after text as text brought this error: one choice after another."""
    roles = dict.fromkeys(message.role for message in messages)
    everything = frozenset(roles)
    if _is_over_limits(error):  # going through the letters of a long text takes long, too
        return [everything] if sum(len(message.content) for message in messages) > _LONG else []
    unseen = frozenset(messages[at].role for at in error.messages) if isinstance(error, _UnseenError) else everything
    return list(dict.fromkeys([unseen, everything, *(frozenset([role]) for role in roles)]))


def _is_over_limits(error: TemplateError) -> bool:
    return isinstance(error.__cause__, OverflowError | MemoryError)


def _with_calls_apart_if_need_be(messages: Sequence[Message], rendered: Callable[[Sequence[Message]], _T]) -> _T:
    """What ``rendered`` makes of the messages, or where the template refuses that, with one call a message."""
    try:
        return rendered(messages)
    except TemplateError:
        apart = one_call_each(messages)
        if len(apart) == len(messages):
            raise
        return rendered(apart)


def _compile(source: str, where: str) -> "LimitedTemplate":
    from edge_llama.prompts.template_sandbox import compiled  # noqa: PLC0415 - Jinja costs 40 ms, paid by chats only

    try:
        return compiled(source)
    except Exception as error:  # the compiler computes what is constant: that fails as variously as rendering
        why = str(error) or type(error).__name__
        raise TemplateError(f"{where}: the chat template is not valid: {why}", remedy="pass another one") from error

"""Messages to token ids through the model's chat template, so that no text can forge a control token.

The template renders twice: as transformers renders it, and with contents in which no character can be part of a
control token. What is a control token in the second text is the template's own; the first text is split there, and
each run between is tokenized as plain text. For benign messages the ids equal transformers' ``apply_chat_template``.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_llama.errors import TemplateError
from edge_llama.messages import Message
from edge_llama.tokenizer import Tokenizer, check_length

if TYPE_CHECKING:
    from edge_llama.sandbox import LimitedTemplate

_ESCAPES = "&%{\\"  # what a filter may turn into another character: "&lt;", "%c", "{}", "\x3c"
# Plain signs, so that nothing escapes them; a vocabulary whose control tokens hold these has ideographs left.
_STAND_INS = (*"~^`$;", *map(chr, range(0x4E00, 0x9FFF)))


class ChatTemplate:
    """A compiled chat template of a model; ``source`` is its Jinja text, ``where`` names it in errors."""

    def __init__(self, source: str, tokenizer: Tokenizer, where: str) -> None:
        self._tokenizer = tokenizer
        self._where = where
        self._template = _compile(source, where)
        self._control = tokenizer.control_tokens_of(source)
        tokens = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        letters = {char for char in "".join(tokens) if not char.isspace()}
        self._stand_in = next((char for char in _STAND_INS if char not in letters), "")
        if not self._stand_in:
            raise TemplateError(f"{where}: control tokens use every character", remedy="convert the model again")
        self._swaps = (self._swap(letters), self._swap({*_ESCAPES, *(token[0] for token in tokens)}))

    def tokens(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, n_ctx: int | None = None
    ) -> list[int]:
        """The ids of the rendered conversation, ready for the model to answer.

        ContextFullError, without making them, if they are clearly more than ``n_ctx``.
        Raises TemplateError if the template refuses the messages (``raise_exception``), fails, takes too much, or
        forms control tokens of contents in a way that can't be told from its own.
        """
        rendered = self._render(messages, add_generation_prompt)
        if n_ctx is not None:
            check_length(rendered, self._tokenizer, n_ctx)
        ids: list[int] = []
        at = 0
        for match in self._own(rendered, messages, add_generation_prompt):
            ids += self._plain(rendered[at : match.start()])
            ids.append(self._control[match[0]])
            at = match.end()
        return ids + self._plain(rendered[at:])

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, self._control) if text else []

    def _own(self, rendered: str, messages: Sequence[Message], add_generation_prompt: bool) -> Iterable[re.Match[str]]:
        """The control tokens that the template wrote, as matches whose places hold for ``rendered``.

        Without any letter of control tokens nothing can be forged; but a template that looks for a word in contents
        (``'/no_think' in content``) then writes something else. Without their first characters few take offence.
        """
        other: str | None = None
        for swap in self._swaps:
            swapped = [Message(message.role, message.content.translate(swap)) for message in messages]
            if swapped == list(messages):
                return self._pattern.finditer(rendered)
            try:
                other = self._render(swapped, add_generation_prompt)
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

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            text = self._template.render(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokenizer.special_texts,
            )
            text.encode()
        except Exception as error:  # a template is a program: nothing says how it fails
            why = str(error) or type(error).__name__
            raise TemplateError(f"{self._where}: the chat template failed: {why}") from error
        return text


def _compile(source: str, where: str) -> "LimitedTemplate":
    from edge_llama.sandbox import compiled  # noqa: PLC0415 - Jinja costs 40 ms, paid by chats only

    try:
        return compiled(source)
    except Exception as error:  # the compiler computes what is constant: that fails as variously as rendering
        why = str(error) or type(error).__name__
        raise TemplateError(f"{where}: the chat template is not valid: {why}", remedy="pass another one") from error

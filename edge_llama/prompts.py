"""Messages to token ids through the model's chat template, so that no text can forge a control token.

Look-alikes of control tokens inside messages are swapped for private placeholders before the template renders and
put back after. The rendered text is split only at control tokens that the template itself wrote; each run between
them is tokenized as plain text. For benign messages the ids equal transformers' ``apply_chat_template``.
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edge_llama.errors import TemplateError
from edge_llama.messages import Message
from edge_llama.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

_PRIVATE = range(0x100000, 0x10FFFE)  # Unicode's private plane 16


class ChatTemplate:
    """A compiled chat template of a model; ``source`` is its Jinja text, ``where`` names it in errors."""

    def __init__(self, source: str, tokenizer: Tokenizer, where: str) -> None:
        self._tokenizer = tokenizer
        self._where = where
        self._template = _compile(source, where)
        tokens = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def tokens(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """The ids of the rendered conversation, ready for the model to answer.

        Raises TemplateError if the template refuses the messages (``raise_exception``) or fails.
        """
        swap = _Swap(self._control, (message.content for message in messages))
        hidden = [{"role": message.role, "content": swap.hide(message.content)} for message in messages]
        rendered = self._render(hidden, add_generation_prompt)
        ids: list[int] = []
        at = 0
        for match in self._control.finditer(rendered):
            ids += self._plain(rendered[at : match.start()], swap)
            ids.append(self._tokenizer.control_tokens[match[0]])
            at = match.end()
        return ids + self._plain(rendered[at:], swap)

    def _plain(self, text: str, swap: "_Swap") -> list[int]:
        return self._tokenizer.encode(swap.show(text)) if text else []

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError as JinjaError  # noqa: PLC0415 - costs 40 ms, paid by chats only

        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokenizer.special_texts,
            )
        except (
            JinjaError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:
            raise TemplateError(f"{self._where}: the chat template failed: {error}") from error


class _Swap:
    """Control-token look-alikes for private characters, and back."""

    def __init__(self, control: re.Pattern[str], texts: Iterable[str]) -> None:
        texts = list(texts)
        taken = set("".join(texts)) if any(char >= "\U00100000" for text in texts for char in text) else set()
        free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
        self._control = control
        self._hidden: dict[str, str] = {}
        for text in texts:
            for token in control.findall(text):
                if token not in self._hidden:
                    self._hidden[token] = next(free)
        self._shown = str.maketrans({private: token for token, private in self._hidden.items()})

    def hide(self, text: str) -> str:
        return self._control.sub(lambda match: self._hidden[match[0]], text) if self._hidden else text

    def show(self, text: str) -> str:
        return text.translate(self._shown) if self._hidden else text


def _compile(source: str, where: str) -> "Template":
    """The environment that transformers gives to chat templates: sandboxed, without access to anything."""
    from jinja2 import TemplateError as JinjaError  # noqa: PLC0415
    from jinja2 import nodes  # noqa: PLC0415
    from jinja2.ext import Extension, loopcontrols  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's text for training; here its body is all that counts."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def raise_exception(message: str) -> None:
        raise JinjaError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except (JinjaError, RecursionError) as error:
        raise TemplateError(f"{where}: the chat template is not valid: {error}", remedy="pass another one") from error


def _to_json(value: Any, **options: Any) -> str:
    """Transformers' ``tojson``: plain JSON, without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), **options)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)

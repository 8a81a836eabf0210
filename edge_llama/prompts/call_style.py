"""How a chat template writes calls of tools: what a model that it was made for has seen them as."""

import re
from dataclasses import dataclass
from itertools import takewhile

from edge_llama.prompts.tool_formats import FORMS, Form
from edge_llama.prompts.tool_grammar import Written
from edge_llama.prompts.tool_parser import ToolCallParser

NAME, KEY, VALUE = "edge_llama_called", "edge_llama_key", "edge_llama_value"
"""A call that no text mentions by chance."""
_ARGUMENTS = re.compile(rf'\{{\s*"{KEY}"\s*:\s*"{VALUE}"\s*\}}')


@dataclass(frozen=True, slots=True)
class CallStyle:
    """A form of :data:`edge_llama.prompts.tool_formats.FORMS`, and the texts around names and arguments in it."""

    form: Form
    written: Written


def own_style(form: Form) -> CallStyle:
    """How calls are written in a form where no template says more."""
    return CallStyle(form, form.written)


def style_of(one: str, two: str) -> CallStyle | None:
    """What the texts of an answer with one call of :data:`NAME`, and of one with two, tell; None if that is no form.

    Control tokens are not in them. ``two`` is empty where the template takes one call an answer.
    """
    form = next((form for form in FORMS.values() if _is_calls(form, one, 1)), None)
    if form is None:
        return None
    written = _written(one, two, form) if form.name in ("json", "tag") else None
    return CallStyle(form, written or form.written)


def _is_calls(form: Form, text: str, count: int) -> bool:
    parser = ToolCallParser(form, {NAME}, {})
    found, rest = parser.feed(text), parser.finish()
    calls = [(call.name, call.arguments) for call in found.calls + rest.calls]
    return calls == [(NAME, {KEY: VALUE})] * count and not (found.text + rest.text)


def _written(one: str, two: str, form: Form) -> Written | None:
    """None where the arguments are not JSON as it is, but text within it."""
    before, middle, after = _split(one, 1) or ("", "", "")
    if not middle:
        return None
    alone = Written(before, middle, after, between=form.written.between)
    parts = _split(two, 2) if _is_calls(form, two, 2) else None
    if not parts or (parts[0], parts[1], parts[3], parts[4]) != (before, middle, middle, after):
        return alone
    shared = _common(before[::-1], parts[2][::-1])[::-1]
    gap = parts[2].removesuffix(shared)
    closing = _common(gap, after)
    return Written(
        shared,
        middle,
        closing,
        begin=before.removesuffix(shared),
        between=gap.removeprefix(closing),
        end=after.removeprefix(closing),
    )


def _split(text: str, count: int) -> list[str] | None:
    """What stands around the names and the arguments, in order; None if they are not so often there."""
    parts = [part for half in text.split(NAME) for part in _ARGUMENTS.split(half)]
    return parts if len(parts) == 2 * count + 1 else None


def _common(one: str, other: str) -> str:
    """What both begin with."""
    return "".join(char for char, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

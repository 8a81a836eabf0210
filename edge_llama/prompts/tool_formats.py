"""The forms in which models write tool calls: the one that their template shows them, or another that they know.

- ``json``: ``{"name": "f", "parameters": {"x": 1}}``, one after another or in a list (Llama 3.1 and later; Llama 4 as
  Hugging Face's template asks for it), and the same in the words of other APIs (``tool_json.py``);
- ``pythonic``: ``[f(x=1), g(y="a")]`` (Llama 3.2's small models and Llama 4, as Meta documents them);
- ``bare``: the same without the brackets, where an answer begins;
- ``tag``: ``<function=f>{"x": 1}</function>`` (Llama 3.1, for one's own tools).

Around calls there may be more: see :data:`AROUND`.
"""

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from edge_llama.errors import OptionError
from edge_llama.prompts import tool_json, tool_python, tool_python_grammar
from edge_llama.prompts.messages import ToolCall
from edge_llama.prompts.tool_grammar import CalledTool, Rules, Written

TAGS: Mapping[str, bool] = {"<|python_tag|>": True, "<|python_start|>": True, "<|python_end|>": False}
"""Control tokens around calls in a model's answer: whether one opens or closes."""

_WORDS = ("tool_call", "tool_calls", "function_call", "function_calls", "functioncall", "TOOLCALL", "TOOL_CALLS")
_LANGUAGES = ("", "json", "python", "py", "tool_code", "tool_call", "tool_calls", "xml")
AROUND: Mapping[str, str] = {
    **{f"<{word}>": f"</{word}>" for word in _WORDS},
    **{f"```{language}\n": "```" for language in _LANGUAGES},
}
"""Text that models write before calls (Hermes' and Qwen's tags, code fences), and what they write after them."""
_BUILTIN = re.compile(rf"\s*({tool_python.NAME})\.call\(")


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write calls. ``parse`` raises ValueError with the reason if a complete text is no call."""

    name: str
    opening: re.Pattern[str]
    """The character that a call begins with."""
    lexeme: re.Pattern[str]
    """A string, a bracket that is ``open`` or ``close`` by the group's name, or a run of anything else."""
    wrong: Callable[[str, Set[str]], str | None]
    """Why a text that begins so can't become a call of one of these tools ("": that is plain); None if it can."""
    parse: Callable[[str], list[tuple[str, dict[str, Any]]]]
    call: Callable[[Rules, CalledTool, Written], str]
    """The grammar's expression for one call, with ``written`` or what a chat template writes in its place."""
    written: Written
    is_anywhere: bool = True
    """Also amid text; else only at the beginning, or after what is in :data:`AROUND`, or after another call."""


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form(
            "json",
            re.compile(r"[{\[]"),
            tool_json.LEXEME,
            tool_json.wrong,
            tool_json.parse,
            tool_json.call,
            Written('{"name": "', '", "parameters": ', "}", between="; "),
        ),
        Form(
            "pythonic",
            re.compile(r"\["),
            tool_python.LEXEME,
            tool_python.wrong,
            tool_python.parse,
            tool_python_grammar.call,
            Written("", "(", ")", begin="[", between=", ", end="]"),
        ),
        Form(
            "bare",
            re.compile(r"[^\W\d]"),
            tool_python.LEXEME,
            tool_python.wrong_bare,
            tool_python.parse_bare,
            tool_python_grammar.call,
            Written("", "(", ")", between="\n"),
            is_anywhere=False,
        ),
        Form(
            "tag",
            re.compile("<"),
            tool_json.TAG_LEXEME,
            tool_json.wrong_tag,
            tool_json.parse_tag,
            tool_json.call_tag,
            Written("<function=", ">", "</function>", between="\n"),
        ),
    )
}


def form_named(name: str) -> Form:
    """OptionError if there is none."""
    if name not in FORMS:
        raise OptionError(f"tool_format is {name!r}", remedy=f"known: {', '.join(FORMS)}")
    return FORMS[name]


def calls_of(form: Form, text: str, names: Set[str]) -> list[ToolCall]:
    """The calls in a complete text; ValueError with the reason if it is none, or one of another tool."""
    try:
        calls = [ToolCall(name, arguments) for name, arguments in form.parse(text)]
    except (OptionError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error) or "it is nested too deeply") from error
    for call in calls:
        if call.name not in names:
            raise ValueError(f"no tool is called {call.name}")
    return calls


def tagged_calls(text: str, names: Set[str]) -> list[ToolCall]:
    """The calls in a text between tags, in whatever form; ValueError with the reason if there are none.

    Llama 3.1 writes ``brave_search.call(query="...")`` for tools that it was trained with, and code for
    ``code_interpreter``.
    """
    begun = _BUILTIN.match(text)
    if begun and begun[1] in names:
        return calls_of(FORMS["pythonic"], f"[{begun[1]}{text[begun.end() - 1 :]}]", names)
    form = FORMS["json" if re.match(r"[\s\[]*\{", text) else "pythonic"]
    try:
        return calls_of(form, text, names)
    except ValueError:
        if "code_interpreter" not in names:
            raise
        return [ToolCall("code_interpreter", {"code": text})]

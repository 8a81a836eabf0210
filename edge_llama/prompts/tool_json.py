"""Tool calls written as JSON, in the shapes that models have learned from one API or another."""

import json
import re
from collections.abc import Mapping, Set
from typing import Any

from edge_llama.prompts.tool_grammar import CalledTool, Rules, Written, either, quoted

_NAMES = ("name", "function", "tool", "tool_name", "function_name")
_ARGUMENTS = ("parameters", "arguments", "args", "input", "tool_input")
_BESIDE = ("id", "call_id", "tool_call_id", "index")
"""What tells calls apart in an API: models repeat themselves there, so ids are drawn."""
_TYPES = ("function", "function_call", "tool_call", "tool_use")
_AROUND = ("tool_calls", "tool_call", "function_call", "function_calls")
_KEYS = ("type", *_NAMES, *_ARGUMENTS, *_BESIDE, *_AROUND)
_HEAD = re.compile(r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]*)"')
_TYPE = '"type": "function", '
LEXEME = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?P<open>[\[{])|(?P<close>[\]}])|[^"\[\]{}]+', re.DOTALL)
"""See :attr:`edge_llama.prompts.tool_formats.Form.lexeme`."""
_TAG = re.compile(r"<function=([^<>\s]+)>")
_TAGGED = re.compile(rf"{_TAG.pattern}(.*)</function>", re.DOTALL)
TAG_LEXEME = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?P<open><function=[^<>\s]+>|[\[{])|(?P<close></function>|[\]}])|[^"\[\]{}<]+',
    re.DOTALL,
)

Calls = list[tuple[str, dict[str, Any]]]
"""Names of tools with the arguments for each."""


def wrong(text: str, names: Set[str]) -> str | None:
    """See :attr:`edge_llama.prompts.tool_formats.Form.wrong`."""
    inner = text[1:].lstrip()
    if text[0] == "[":
        return wrong(inner, names) if inner[:1] == "{" else None if not inner else ""
    if not any(f'"{key}"'.startswith(inner[: len(key) + 2]) for key in _KEYS):
        return ""
    head = _HEAD.match(text)
    return f"no tool is called {head[1]}" if head and head[1] not in names else None


def wrong_tag(text: str, names: Set[str]) -> str | None:
    """The same for ``<function=f>{"x": 1}</function>``, as Llama 3.1 is documented to call one's own tools."""
    if head := _TAG.match(text):
        return None if head[1] in names else f"no tool is called {head[1]}"
    begun = "<function="
    may_be = begun.startswith(text) or (text.startswith(begun) and not re.search(r"[<>\s]", text[len(begun) :]))
    return None if may_be else ""


def parse(text: str) -> Calls:
    """The calls in an object or a list of objects; ValueError says why there are none."""
    parsed = _loaded(text)
    while isinstance(parsed, dict) and len(parsed) == 1 and (around := next(iter(parsed))) in _AROUND:
        parsed = parsed[around]
    items = parsed if isinstance(parsed, list) else [parsed]
    if not items:
        raise ValueError("it is an empty list")
    return [_call(item) for item in items]


def parse_tag(text: str) -> Calls:
    """The call in a tag; ValueError says why it is none."""
    if not (found := _TAGGED.fullmatch(text)):
        raise ValueError("its tag is not closed")
    return [(found[1], _object(_loaded(found[2])))]


def call(rules: Rules, tool: CalledTool, written: Written) -> str:
    """The expression for a call, its name within quotes. A type that the template writes is left to the model."""
    name = json.dumps(tool.name, ensure_ascii=False)[1:-1]
    before = dict.fromkeys((written.before, written.before.replace(_TYPE, "", 1)))
    heads = either([quoted(f"{text}{name}{written.middle}") for text in before])
    return f"{heads} {rules.json(tool.where, tool.parameters)} {quoted(written.after)}"


def call_tag(rules: Rules, tool: CalledTool, written: Written) -> str:
    """The same for a tag. OptionError for a name that would close it."""
    if re.search(r"[<>\s]", tool.name):
        raise tool.error("its name can't stand in a tag", "rename the tool, or give tool_format='json'")
    arguments = rules.json(tool.where, tool.parameters)
    return f"{quoted(f'{written.before}{tool.name}{written.middle}')} {arguments} {quoted(written.after)}"


def _call(item: Any) -> tuple[str, dict[str, Any]]:
    """``{"name", "parameters"}`` or the same in another's words, perhaps with an id, a type, a function around it."""
    rest = dict(item) if isinstance(item, Mapping) else {}
    _take(rest, _BESIDE)
    if rest.get("type") in _TYPES:
        del rest["type"]
    if isinstance(inner := rest.get("function"), dict):
        del rest["function"]
        if twice := rest.keys() & inner.keys():
            raise ValueError(f"it has {', '.join(sorted(twice))} twice")
        rest |= inner
    names = _take(rest, [key for key in _NAMES if isinstance(rest.get(key), str)])
    if len(names) != 1:
        raise ValueError("it has no name" if not names else "it has several names")
    given = _take(rest, _ARGUMENTS)
    if len(given) != 1:
        raise ValueError("it has no object of parameters")
    if rest:
        raise ValueError(f"it has more than a name and parameters: {', '.join(rest)}")
    return names[0], _object(given[0])


def _take(item: dict[str, Any], keys: Any) -> list[Any]:
    return [item.pop(key) for key in keys if key in item]


def _object(arguments: Any) -> dict[str, Any]:
    """Arguments as they are, or as JSON within a text."""
    if isinstance(arguments, str):
        arguments = _loaded(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("it has no object of parameters")
    return arguments


def _loaded(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_pairs, parse_constant=_refuse)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    arguments = dict(pairs)
    if len(arguments) < len(pairs):
        raise ValueError("it gives a key twice")
    return arguments


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")

"""The forms in which Llamas write tool calls, and which one a model uses.

- ``json``: ``{"name": "f", "parameters": {"x": 1}}``, one after another or in a list (Llama 3.1 and later; Llama 4 as
  Hugging Face's template asks for it);
- ``pythonic``: ``[f(x=1), g(y="a")]`` (Llama 3.2's small models and Llama 4, as Meta documents them).

Calls are read as data, never run: JSON by json, Python by ast, of which only literals count.
"""

import ast
import json
import keyword
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from edge_llama.errors import OptionError
from edge_llama.prompts.messages import ToolCall

TAGS: Mapping[str, bool] = {"<|python_tag|>": True, "<|python_start|>": True, "<|python_end|>": False}
"""Control tokens around calls in a model's answer: whether one opens or closes."""

_JSON_KEYS = ("name", "type", "parameters", "arguments")
_JSON_HEAD = re.compile(r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]*)"')
_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_PYTHON_HEAD = re.compile(rf"\[\s*({_NAME})\s*\(")
_PYTHON_BEGUN = re.compile(r"\[\s*([\w.]*)\s*")
_BUILTIN = re.compile(rf"\s*({_NAME})\.call\(")
# What ast would warn of, on the host's stderr: "\d" within a string, and "1if" outside of one.
_STRINGS = r"""'{3}(?:[^\\]|\\.)*?'{3}|"{3}(?:[^\\]|\\.)*?"{3}"""
_STRING = re.compile(rf"""(\w*)({_STRINGS}|'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")""", re.DOTALL)
_KEYWORD = re.compile(rf"{_STRING.pattern}|\b({'|'.join(keyword.kwlist)})(?=\s*=)", re.DOTALL)
_ESCAPED = "escaped_keyword_"
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)", re.DOTALL)
_GLUED = re.compile(r"\d(?:and|else|for|if|in|is|not|or)\b")
_WORDS = {"true": True, "false": False, "null": None}


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


def form_of(template: str, vocabulary: Set[str]) -> Form:
    """The form that a model with this chat template and these control tokens writes.

    Templates show the model an example; one that shows none leaves it to how the family was trained.
    """
    if re.search(r"\[\s*func\w*\(", template):
        return FORMS["pythonic"]
    if '"parameters"' in template or "'parameters'" in template:
        return FORMS["json"]
    return FORMS["pythonic" if "<|python_start|>" in vocabulary else "json"]


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


def _wrong_json(text: str, names: Set[str]) -> str | None:
    inner = text[1:].lstrip()
    if text[0] == "[":
        return _wrong_json(inner, names) if inner[:1] == "{" else None if not inner else ""
    quoted = [f'"{key}"' for key in _JSON_KEYS]
    if not any(key.startswith(inner[: len(key)]) for key in quoted):
        return ""
    head = _JSON_HEAD.match(text)
    return f"no tool is called {head[1]}" if head and head[1] not in names else None


def _wrong_python(text: str, names: Set[str]) -> str | None:
    if head := _PYTHON_HEAD.match(text):
        return None if head[1] in names else f"no tool is called {head[1]}"
    begun = _PYTHON_BEGUN.fullmatch(text)
    return None if begun and _may_become_name(begun[1]) else ""


def _may_become_name(text: str) -> bool:
    return not text or text[0].isalpha() or text[0] == "_"


def _parse_json(text: str) -> list[tuple[str, dict[str, Any]]]:
    parsed = json.loads(text, object_pairs_hook=_pairs, parse_constant=_refuse)
    items = parsed if isinstance(parsed, list) else [parsed]
    if not items:
        raise ValueError("it is an empty list")
    return [_json_call(item) for item in items]


def _json_call(item: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ValueError("it has no name")
    given = [item[key] for key in ("parameters", "arguments") if key in item]
    if len(given) != 1 or not isinstance(given[0], dict):
        raise ValueError("it has no object of parameters")
    if len(item) != 2 + (item.get("type") == "function"):
        raise ValueError(f"it has more than a name and parameters: {', '.join(item)}")
    return item["name"], given[0]


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    arguments = dict(pairs)
    if len(arguments) < len(pairs):
        raise ValueError("it gives a key twice")
    return arguments


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _parse_python(text: str) -> list[tuple[str, dict[str, Any]]]:
    tree = ast.parse(_for_python(text), mode="eval").body
    if not isinstance(tree, ast.List) or not tree.elts:
        raise ValueError("it is no list of calls")
    return [_python_call(node) for node in tree.elts]


def _python_call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or not re.fullmatch(_NAME, name := ast.unparse(node.func)):
        raise ValueError("it is no list of calls")
    if node.args or any(given.arg is None for given in node.keywords):
        raise ValueError(f"the arguments of {name} have no names")
    return name, {str(given.arg).removeprefix(_ESCAPED): _literal(given.value) for given in node.keywords}


def _literal(node: ast.expr) -> Any:
    """A literal's value, JSON's words and escapes included; ValueError for any other expression."""
    try:
        return ast.literal_eval(_LikeJson().visit(node))
    except ValueError as error:  # its text has an address in it
        raise ValueError("an argument is no literal") from error


class _LikeJson(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if not isinstance(node.value, str):
            return node
        data = node.value.encode("utf-16-le", "surrogatepass")  # "\ud83e\udd99" is one character in JSON
        return ast.Constant(data.decode("utf-16-le", "surrogatepass"))


def _for_python(text: str) -> str:
    """``text`` as Python's parser takes it: arguments may be called ``from``, and it has nothing to warn of.

    ValueError for what has no such form.
    """
    if _GLUED.search(_STRING.sub('""', text)):
        raise ValueError("a number runs into a word")
    return _KEYWORD.sub(_plain_part, text)


def _plain_part(match: re.Match[str]) -> str:
    prefix, string, word = match.groups()
    if word:
        return f"{_ESCAPED}{word}"
    if prefix:
        raise ValueError(f"a string begins with {prefix}")
    return _ESCAPE.sub(_plain_escape, string)


def _plain_escape(match: re.Match[str]) -> str:
    if match[1] > "377" and match[1].isdecimal() and len(match[1]) == 3:
        raise ValueError(f"{match[0]} is no character")
    is_known = match[1][0] in "\n\\'\"abfnrtvxNuU01234567"
    return match[0] if is_known else f"\\{match[0]}"


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form(
            "json",
            re.compile(r"[{\[]"),
            re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?P<open>[\[{])|(?P<close>[\]}])|[^"\[\]{}]+', re.DOTALL),
            _wrong_json,
            _parse_json,
        ),
        Form(
            "pythonic",
            re.compile(r"\["),
            # An empty string ends where no third quote follows, which takes one character more to know.
            re.compile(
                rf"""{_STRINGS}|''(?=[^'])|'(?!')[^'\\]*+(?:\\.[^'\\]*+)*+'"""
                r"""|""(?=[^"])|"(?!")[^"\\]*+(?:\\.[^"\\]*+)*+\""""
                r"|(?P<open>[\[({])|(?P<close>[\])}])|[^'\"\[\](){}]+",
                re.DOTALL,
            ),
            _wrong_python,
            _parse_python,
        ),
    )
}

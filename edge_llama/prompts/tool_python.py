"""Tool calls written as Python's: ``[f(x=1), g(y="a")]``. Read as data, never run: ast parses, and literals count."""

import ast
import keyword
import re
from collections.abc import Set
from typing import Any

NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_HEAD = re.compile(rf"\[\s*({NAME})\s*\(")
_BEGUN = re.compile(r"\[\s*([\w.]*)\s*")
_BARE_HEAD = re.compile(rf"({NAME})\(")
_STRINGS = r"""'{3}(?:[^\\]|\\.)*?'{3}|"{3}(?:[^\\]|\\.)*?"{3}"""
LEXEME = re.compile(
    # An empty string ends where no third quote follows, which takes one character more to know.
    rf"""{_STRINGS}|''(?=[^'])|'(?!')[^'\\]*+(?:\\.[^'\\]*+)*+'"""
    r"""|""(?=[^"])|"(?!")[^"\\]*+(?:\\.[^"\\]*+)*+\""""
    r"|(?P<open>[\[({])|(?P<close>[\])}])|[^'\"\[\](){}]+",
    re.DOTALL,
)
"""See :attr:`edge_llama.prompts.tool_formats.Form.lexeme`."""
# What ast would warn of, on the host's stderr: "\d" within a string, and "1if" outside of one.
_STRING = re.compile(rf"""(\w*)({_STRINGS}|'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")""", re.DOTALL)
_KEYWORD = re.compile(rf"{_STRING.pattern}|\b({'|'.join(keyword.kwlist)})(?=\s*=)", re.DOTALL)
_ESCAPED = "escaped_keyword_"
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)", re.DOTALL)
_GLUED = re.compile(r"\d(?:and|else|for|if|in|is|not|or)\b")
_WORDS = {"true": True, "false": False, "null": None}


def wrong(text: str, names: Set[str]) -> str | None:
    """See :attr:`edge_llama.prompts.tool_formats.Form.wrong`."""
    if head := _HEAD.match(text):
        return None if head[1] in names else f"no tool is called {head[1]}"
    begun = _BEGUN.fullmatch(text)
    return None if begun and _may_become_name(begun[1]) else ""


def _may_become_name(text: str) -> bool:
    return not text or text[0].isalpha() or text[0] == "_"


def wrong_bare(text: str, names: Set[str]) -> str | None:
    """The same for a call without brackets around it, which must be of a known tool from the first letter on."""
    if head := _BARE_HEAD.match(text):
        return None if head[1] in names else ""
    return None if any(name.startswith(text) for name in names) else ""


def parse_bare(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The call; ValueError or SyntaxError if it is none."""
    return parse(f"[{text}]")


def parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls in a list; ValueError or SyntaxError says why there are none."""
    tree = ast.parse(_for_python(text), mode="eval").body
    if not isinstance(tree, ast.List) or not tree.elts:
        raise ValueError("it is no list of calls")
    return [_python_call(node) for node in tree.elts]


def _python_call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or not re.fullmatch(NAME, name := ast.unparse(node.func)):
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

"""Lark grammars, read as far as llguidance can't be trusted with them.

It dies of deep chains of rules, follows rules that never end, meets terminals that nothing fits only when they come,
and takes schemas with keywords that it ignores. Syntax is left to it: what is not understood here is an error there.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edge_llama.errors import OptionError

_MAX_DEPTH = 160  # names, alternatives and brackets within each other: llguidance recurses on the native stack
_MAX_RULES = 1000
_TOKEN = re.compile(  # as in llguidance's lark/lexer.rs
    r"""(?P<skip>[ \t]+|(?:\#|//)[^\n]*)
    |(?P<newline>(?:\r?\n)+[ \t]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?:\\.|[^/\\])+/[imslux]*)
    |(?P<directive>%[a-z]+)
    |(?P<special><[^<>\s]+>|@[\w-]+|::)
    |(?P<name>!?[_?]?[a-z][_a-z0-9-]*|_?[A-Z][_A-Z0-9-]*)
    |(?P<number>[+-]?\d+(?:\.\d*(?![.]))?)
    |(?P<sign>\.\.|->|.)""",
    re.VERBOSE | re.DOTALL,
)
_REFUSED = {"%lark": "grammars within grammars", "%if": "rules with parameters", "::": "rules with parameters"}
_REFUSED_ATTRIBUTES = ("stop", "stop_capture", "temperature")


def _error(problem: str, remedy: str = "") -> OptionError:
    return OptionError(f"grammar: {problem}", remedy=remedy)


@dataclass(slots=True)
class Part:
    """Alternatives, each a sequence of names and further parts; literals are left out."""

    choices: list[list["str | Part"]] = field(default_factory=lambda: [[]])
    is_optional: bool = False


@dataclass(slots=True)
class Grammar:
    """What a grammar defines. ``text`` is its source with every ``%json`` schema rebuilt."""

    text: str = ""
    definitions: dict[str, Part] = field(default_factory=dict)
    probes: dict[str, str] = field(default_factory=dict)
    """Regular expressions and terminals that might fit nothing, each with a grammar for it alone."""


def read(text: str, inline: Callable[[object], str]) -> Grammar:
    """Read and check a grammar; ``inline`` gives the text that stands for a JSON schema, or raises OptionError.

    OptionError also for rules nested too deeply, rules without end, and what can't be done here.
    """
    grammar = _Reader(text, inline).read()
    if len(grammar.definitions) > _MAX_RULES:
        raise _error(f"has {len(grammar.definitions):,} rules", f"up to {_MAX_RULES:,} are supported")
    _check_depth(grammar.definitions)
    if endless := _endless(grammar.definitions):
        raise _error(f"the rule {endless!r} never ends", "give it an alternative without itself")
    return grammar


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


class _Reader:
    def __init__(self, text: str, inline: Callable[[object], str]) -> None:
        self._source = text
        self._inline = inline
        self._grammar = Grammar()
        self._tokens = list(self._lex())
        self._at = 0

    def _lex(self) -> Iterator[_Token]:
        at, source = 0, []
        while match := _TOKEN.match(self._source, at):
            kind, text, at = match.lastgroup or "", match[0], match.end()
            if kind == "special" or text in _REFUSED:
                raise _error(
                    f"{text[:40]}: {_REFUSED.get(text, 'tokens and other grammars')} can't be used", "leave it out"
                )
            if text in ("%json", "%regex", "%llguidance"):
                value, at = self._json(at, text)
                text = f"{text} {self._inline(value) if text == '%json' else json.dumps(value)}"
            source.append(text)
            if kind != "skip":
                yield _Token(kind, text)
        self._grammar.text = "".join(source)
        yield _Token("newline", "\n")

    def _json(self, at: int, what: str) -> tuple[Any, int]:
        start = at + len(self._source[at:]) - len(self._source[at:].lstrip())
        try:
            return json.JSONDecoder().raw_decode(self._source, start)
        except (ValueError, RecursionError) as error:
            raise _error(f"{what} at character {at:,} is not followed by JSON: {error!s:.80}") from error

    def read(self) -> Grammar:
        terminals: dict[str, str] = {}
        imports = ""
        while self._at < len(self._tokens):
            start, token = self._at, self._take()
            if token.kind == "name":
                name = token.text.lstrip("!?")
                self._skip_header()
                self._grammar.definitions[name] = self._part(0)
                if name.lstrip("_")[:1].isupper():
                    terminals[name] = " ".join(item.text for item in self._tokens[start : self._at])
            else:
                self._skip_line()
                if token.text == "%import":
                    imports += " ".join(item.text for item in self._tokens[start : self._at])
        self._grammar.probes = self._probes(terminals, imports)
        return self._grammar

    def _probes(self, terminals: dict[str, str], imports: str) -> dict[str, str]:
        regexes = sorted({token.text for token in self._tokens if token.kind == "regex"})
        probes = {regex: f"start: {regex}" for regex in regexes}
        if any(token.text in ("&", "~") for token in self._tokens):  # without these, only a part of it can fit nothing
            rest = "\n".join(terminals.values()) + "\n" + imports
            probes |= {name: f"start: {name}\n{rest}" for name in terminals}
        return probes

    def _skip_header(self) -> None:
        """From a rule's name to its colon: a priority, attributes."""
        while self._at < len(self._tokens) and self._peek().kind != "newline":
            token = self._take()
            if token.text == ":":
                return
            if token.text in _REFUSED_ATTRIBUTES:
                raise _error(f"the attribute {token.text} of a rule can't be enforced", "leave it out")

    def _skip_line(self) -> None:
        while self._at < len(self._tokens) and self._take().kind != "newline":
            pass

    def _part(self, depth: int) -> Part:
        """Alternatives up to a closing bracket or the end of the definition."""
        part = Part()
        while self._at < len(self._tokens):
            token = self._take()
            if token.kind == "newline" and self._next_line() != "|":
                return part
            if token.text in (")", "]"):
                return part
            if token.text == "|":
                part.choices.append([])
            elif token.text in ("(", "["):
                self._group(part, token.text, depth)
            elif token.kind == "name":
                self._add(part, token.text)
        return part

    def _next_line(self) -> str:
        """The first token of the next line that has one, which is then to come; "" at the end."""
        while self._at < len(self._tokens) and self._peek().kind == "newline":
            self._at += 1
        return self._peek().text if self._at < len(self._tokens) else ""

    def _group(self, part: Part, bracket: str, depth: int) -> None:
        if depth >= _MAX_DEPTH:
            raise _error(f"brackets are more than {_MAX_DEPTH} deep", "name a part of it")
        inner = self._part(depth + 1)
        inner.is_optional = bracket == "["
        self._add(part, inner)

    def _add(self, part: Part, item: str | Part) -> None:
        if self._is_optional():
            item = Part([[item]], is_optional=True)
        part.choices[-1].append(item)

    def _is_optional(self) -> bool:
        """Whether what follows lets the last item come zero times: ``? * ~0.. {0,}``."""
        following = [token.text for token in self._tokens[self._at : self._at + 2]]
        return following[:1] in (["?"], ["*"]) or following in (["~", "0"], ["{", "0"], ["{", ","])

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        self._at += 1
        return self._tokens[self._at - 1]


def _check_depth(definitions: dict[str, Part]) -> None:
    """OptionError if the compiler, which follows each name where it first meets it, would go too deep."""
    met: set[str] = set()

    def follow(item: str | Part, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise _error(f"rules are more than {_MAX_DEPTH} deep within each other", "simplify it")
        if isinstance(item, Part):
            for choice in item.choices:
                for inner in choice:
                    follow(inner, depth + 1)
        elif item in definitions and item not in met:
            met.add(item)
            follow(definitions[item], depth + 1)

    follow("start", 0)


def _endless(definitions: dict[str, Part]) -> str | None:
    """The name of a rule that no finite text fits, if there is one."""
    ending: set[str] = set()

    def ends(item: str | Part) -> bool:
        if isinstance(item, str):  # what is not defined here is imported, or an error elsewhere
            return item not in definitions or item in ending
        return item.is_optional or any(all(map(ends, choice)) for choice in item.choices)

    rest = list(reversed(definitions))  # grammars are mostly written from the top down
    while rest:
        before = len(ending)
        for name in rest:  # what ends helps those after it in the same round
            if ends(definitions[name]):
                ending.add(name)
        if len(ending) == before:
            return rest[-1]
        rest = [name for name in rest if name not in ending]
    return None

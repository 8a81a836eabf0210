"""Grammars for calls of tools, in Lark's syntax: what :mod:`edge_llama.sampling.constraint` holds an answer to.

Here are the parts that the forms in :mod:`edge_llama.prompts.tool_formats` are put together of. JSON schemas stay
schemas: a rule's name stands for each, and whoever makes the mask says what it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_llama.errors import OptionError


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """Answers that are nothing but calls of tools."""

    rules: str
    """One of them is called ``calls``."""
    schemas: Mapping[str, tuple[str, Any]]
    """JSON schemas by the names of the rules that stand for them: whose each is, for errors, and the schema."""
    tags: tuple[tuple[int, int | None], ...] = ()
    """Control tokens that may stand before the calls, each with the one that then must stand after them, if any."""
    may_answer: bool = False
    """Whether an answer by a schema may come in place of calls."""


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A tool that is to be called; ``parameters`` is a schema for an object that has no keys but those it names."""

    name: str
    parameters: Mapping[str, Any]

    @property
    def where(self) -> str:
        """It in errors."""
        return f"tool_choice: {self.name}"

    def error(self, problem: str, remedy: str = "") -> OptionError:
        """What is wrong with the tool."""
        return OptionError(f"{self.where}: {problem}", remedy=remedy)


@dataclass(frozen=True, slots=True)
class Written:
    """The texts around the names and arguments of calls, as a chat template writes them or a form has them."""

    before: str
    middle: str
    after: str
    begin: str = ""
    """Before the first call."""
    between: str = ""
    end: str = ""
    """After the last one."""


class Rules:
    """A grammar's rules, as they are made."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: dict[str, str] = {}
        self.schemas: dict[str, tuple[str, Any]] = {}

    def rule(self, body: str, name: str | None = None) -> str:
        """The name of a new rule."""
        name = name or f"rule_{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def json(self, where: str, schema: Any) -> str:
        """The name of a rule for JSON that fits a schema, one for all that are equal; ``where`` names it in errors."""
        name = self._names.setdefault(json.dumps(schema), f"json_{len(self.schemas)}")
        self.schemas.setdefault(name, (where, schema))
        return name

    def sequence(self, items: Sequence[tuple[str, bool]], between: str = ", ") -> str:
        """The name of a rule for one or more of the items in order; each is an expression, and whether it must come.

        Halves within halves: compilers of grammars recurse, and an object may have hundreds of keys.
        """
        if len(items) == 1:
            return self.rule(items[0][0])
        middle = len(items) // 2
        first, second = self.sequence(items[:middle], between), self.sequence(items[middle:], between)
        both, separator = (any(must for _, must in half) for half in (items[:middle], items[middle:])), quoted(between)
        match tuple(both):
            case (True, True):
                return self.rule(f"{first} {separator} {second}")
            case (True, False):
                return self.rule(f"{first} ({separator} {second})?")
            case (False, True):
                return self.rule(f"({first} {separator})? {second}")
        return self.rule(f"{first} ({separator} {second})? | {second}")

    @property
    def text(self) -> str:
        """All of them."""
        return "\n".join(self._lines)


def quoted(text: str) -> str:
    """A text as Lark writes it; nothing for an empty one."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def either(choices: Sequence[str]) -> str:
    """Any of these expressions."""
    return f"({' | '.join(choices)})"

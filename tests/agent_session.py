"""A coding agent's session as a seeded script writes it: what such a program sends to a model, request by request.

A long system prompt, 30 tools, file contents as their results, several calls at once. In the middle of it earlier
results are shortened, as agents do to save room; a reminder stands below the last question and is gone with the next
one; three sub-agents work at the same time below the same system prompt; a question without tools asks for a title.
What the model said is never sent: the assistant's turns are the script's.
"""

import argparse
import json.decoder
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path
from typing import Any

import numpy as np

from edge_llama import Message, ToolCall

_SOURCES = (argparse, json.decoder, shlex, textwrap)
"""Modules whose files are read in the session."""
_WHEN = (
    "the tests fail",
    "a file is longer than two screens",
    "the user asks a question",
    "a name is used in several modules",
    "an import is missing",
    "a command takes longer than a minute",
    "you are not sure what a function returns",
    "the change touches a public interface",
    "two ways seem equally good",
    "a path contains spaces",
)
_DO = (
    "read the whole function before you edit it",
    "say in one sentence what you are going to do",
    "search for its other callers first",
    "run the smallest test that covers it",
    "keep the style of the lines around it",
    "prefer the standard library to a new dependency",
    "write down the assumption in the answer, not in the code",
    "ask for the list of files before you guess a path",
    "leave unrelated lines as they are",
    "undo the edit and think again",
)
_WHY = (
    "because somebody will read the difference tomorrow",
    "so that the next step starts from what is known",
    "since a wrong guess costs more than a look",
    "for the user sees the result and not the way",
    "because the tests are the only witness",
    "as the reviewers of this project insist on it",
    "so that the history stays easy to follow",
    "since tools are cheap and mistakes are not",
)
_VERBS = ("read", "search", "list", "edit", "create", "move")
_NOUNS = ("file", "symbol", "test", "commit", "issue")
"""Nouns and verbs together name 30 tools."""
_SHORTENED = "\n[the rest of this result was removed to save room]"
_REMINDER = "\n\n<system-reminder>\nThe list of tasks is empty. Do not mention this to the user.\n</system-reminder>"
_TITLE = "Write a title of at most six words for the conversation that begins with the user's message. No quotes."
_WISHES = (
    "Add an option that prints the result as JSON, with tests.",
    "Why does wrapping a long line lose its indentation? Find it and mend it.",
    "The parser accepts an empty name. It should say what is wrong instead.",
    "Move the formatting into a module of its own and keep the interface.",
    "The help text is out of date: bring it in line with the code.",
)


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent: a conversation that ends with a question or with results, and the tools."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """In OpenAI's form."""


Step = tuple[Request, ...]
"""Requests that are sent at the same time; the next step begins when all are answered."""


@dataclass(frozen=True, slots=True)
class Size:
    """How long a session is."""

    system_tokens: int = 20_000
    tools: int = 30
    rounds: int = 20
    """The questions and results of the main conversation."""
    lines: int = 90
    """Of a file that is read; one in five is twice as long."""


SHORT = Size(system_tokens=500, tools=7, rounds=6, lines=12)
"""With everything that the long one has, but for the number of tools."""


def session(count: Callable[[str], int], size: Size = Size(), seed: int = 19) -> list[Step]:
    """The steps of a session; ``count`` says how many tokens a text has."""
    rng = np.random.default_rng(seed)
    recorder = _Recorder(rng, system_prompt(rng, count, size.system_tokens), agent_tools(rng, size.tools), size.lines)
    return list(recorder.steps(size.rounds))


def system_prompt(rng: np.random.Generator, count: Callable[[str], int], tokens: int) -> str:
    """Rules by number, of so many tokens or a few more."""
    text = "You are a coding agent in a terminal. You work on the user's repository with the tools below.\n"
    for number in numbers(1):
        when, do, why = (str(rng.choice(each)) for each in (_WHEN, _DO, _WHY))
        text += f"\n{number}. When {when}, {do}, {why}."
        if number % 20 == 0:
            text += f"\n\n## Part {number // 20}\n"
            if count(text) >= tokens:
                break
    return text + "\nWorking folder: the repository's root. Platform: linux. The branch is main, and it is clean."


def agent_tools(rng: np.random.Generator, count: int) -> tuple[dict[str, Any], ...]:
    """Descriptions, some with nested parameters."""
    return tuple(_tool(rng, verb, noun) for noun in _NOUNS for verb in _VERBS)[:count]


def _tool(rng: np.random.Generator, verb: str, noun: str) -> dict[str, Any]:
    rules = " ".join(f"If {rng.choice(_WHEN)}, {rng.choice(_DO)}." for _ in range(int(rng.integers(1, 5))))
    properties: dict[str, Any] = {"path": {"type": "string", "description": f"The {noun}'s path from the root."}}
    if verb in ("read", "list"):
        properties |= {
            side: {"type": "integer", "minimum": 1, "description": f"The {side} line."} for side in ("first", "last")
        }
    if verb == "search":
        properties["pattern"] = {"type": "string", "description": "A regular expression."}
        properties["mode"] = {"type": "string", "enum": ["names", "lines", "count"]}
    if verb in ("edit", "create"):
        old_and_new = {side: {"type": "string", "description": f"The {side} text, exactly."} for side in ("old", "new")}
        change = {"type": "object", "properties": old_and_new, "required": ["old", "new"]}
        properties["changes"] = {"type": "array", "items": change, "minItems": 1}
    parameters = {"type": "object", "properties": properties, "required": ["path"]}
    described = {"name": f"{verb}_{noun}", "description": f"{verb.title()} a {noun}. {rules}", "parameters": parameters}
    return {"type": "function", "function": described}


def called_and_answered(said: str, called: Sequence[tuple[ToolCall, str]]) -> list[Message]:
    """An answer that calls tools at once, and their results."""
    results = [Message("tool", text, tool_call_id=call.id) for call, text in called]
    return [Message("assistant", said, tool_calls=[call for call, _ in called]), *results]


class _Recorder:
    """Writes the main conversation, and what is asked beside it."""

    def __init__(self, rng: np.random.Generator, system: str, tools: tuple[dict[str, Any], ...], lines: int) -> None:
        self._rng, self._tools, self._lines = rng, tools, lines
        self._messages = [Message("system", system)]
        self._ids = numbers(1)

    def steps(self, rounds: int) -> Iterator[Step]:
        for number in range(rounds):
            if number % 4 == 0:
                self._ask(_WISHES[(number // 4) % len(_WISHES)])
                if number == 0:
                    yield (self._title(),)
            elif number % 4 == 1:
                self._results("I read what there is about it.", [self._read() for _ in range(3)])
            elif number % 4 == 2:
                self._results("", [self._edit(), self._search()])
            else:
                yield from self._sub_agents(number)
            if number % 6 == 5:
                self._shorten()
            yield (Request(tuple(self._messages), self._tools),)

    def _ask(self, wish: str) -> None:
        """A question with a reminder, which goes from the one before; what was done is told first."""
        for at, message in enumerate(self._messages):
            if message.role == "user":
                self._messages[at] = Message("user", message.content.removesuffix(_REMINDER))
        if len(self._messages) > 1:
            self._messages.append(Message("assistant", "That is done, and the tests pass."))
        self._messages.append(Message("user", wish + _REMINDER))

    def _results(self, said: str, called: Sequence[tuple[ToolCall, str]]) -> None:
        self._messages += called_and_answered(said, called)

    def _shorten(self) -> None:
        """Results before the last question keep their first line alone; the rules and the last work stay whole."""
        last = max(at for at, message in enumerate(self._messages) if message.role == "user")
        for at, message in enumerate(self._messages[:last]):
            short = message.content.partition("\n")[0] + _SHORTENED
            if message.role == "tool" and len(short) < len(message.content):
                self._messages[at] = Message("tool", short, tool_call_id=message.tool_call_id)

    def _title(self) -> Request:
        return Request((Message("system", _TITLE), Message("user", self._messages[-1].content)))

    def _sub_agents(self, number: int) -> Iterator[Step]:
        """Three at once, each with a search of its own; what they found are results of the main conversation."""
        names = (f"format_{number}", f"parse_{number}", f"wrap_{number}")
        asked = [Message("user", f"Look for the callers of {name} and list them with their lines.") for name in names]
        searches = [self._search() for _ in names]
        rules = self._messages[0]
        yield tuple(Request((rules, question), self._tools) for question in asked)
        yield tuple(
            Request((rules, question, *called_and_answered("", [search])), self._tools)
            for question, search in zip(asked, searches, strict=True)
        )
        started = [self._call("search_symbol", {"path": ".", "pattern": question.content}) for question in asked]
        self._results("Three searches at once.", [(call, self._listing(8)) for call in started])

    def _call(self, name: str, arguments: dict[str, Any]) -> ToolCall:
        return ToolCall(name, arguments, f"call_{next(self._ids):06}")

    def _read(self) -> tuple[ToolCall, str]:
        name, text = self._source(self._lines * (2 if self._rng.integers(5) == 0 else 1))
        return self._call("read_file", {"path": name, "first": 1}), text

    def _edit(self) -> tuple[ToolCall, str]:
        name, text = self._source(6)
        change = {"old": text, "new": text.replace("self", "this")}
        return self._call("edit_file", {"path": name, "changes": [change]}), f"{name}: 1 change was written."

    def _search(self) -> tuple[ToolCall, str]:
        return self._call("search_file", {"path": ".", "pattern": "def \\w+", "mode": "lines"}), self._listing(12)

    def _listing(self, count: int) -> str:
        names = [Path(str(module.__file__)).name for module in _SOURCES]
        places = (f"src/{self._rng.choice(names)}:{self._rng.integers(1, 900)}" for _ in range(count))
        return "\n".join(f"{place}: def _{number}(" for number, place in enumerate(places))

    def _source(self, lines: int) -> tuple[str, str]:
        """A file's name, and some of its lines with their numbers."""
        module = _SOURCES[int(self._rng.integers(len(_SOURCES)))]
        path = Path(str(module.__file__))
        content = path.read_text("utf-8").splitlines()
        first = int(self._rng.integers(0, max(1, len(content) - lines)))
        numbered = (f"{at:>5}\t{line}" for at, line in enumerate(content[first : first + lines], first + 1))
        return f"src/{path.name}", "\n".join(numbered)

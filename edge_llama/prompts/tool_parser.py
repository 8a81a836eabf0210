"""Takes tool calls out of an answer while it is generated."""

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from edge_llama.prompts.messages import ToolCall
from edge_llama.prompts.tool_formats import TAGS, Form, calls_of, tagged_calls

_SPACES = re.compile(r"\s+")
_BETWEEN = re.compile(r"[\s;,]+")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What is certain of an answer by now: text to show, and calls that are complete."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolCallParser:
    """Holds back text that may be the beginning of a call until that is clear; all else passes at once.

    What turns out to be no call stays text, and ``notes`` says why. Nothing is lost but tags, and spaces and
    separators around calls. How the text is cut into pieces makes no difference.
    """

    def __init__(self, form: Form, names: Set[str], tags: Mapping[int, str]) -> None:
        """``names`` are those of the tools; ``tags`` are the ids of the vocabulary's :data:`TAGS`."""
        self.tags = tags
        self.notes: list[str] = []
        self._form = form
        self._names = names
        self._held = ""
        self._scan = _Scan(form.lexeme)
        self._gap: str | None = ""
        """Spaces before a call or separators between two, which don't count if a call follows; None amid text."""
        self._has_calls = False
        self._is_tagged = False
        self._is_rest = False
        """Within tags: what is held is no call of the form, and is judged as a whole when the tag closes."""
        self._text = ""
        self._calls: list[ToolCall] = []

    def feed(self, text: str) -> Parsed:
        """The answer goes on with ``text``."""
        self._held += text
        return self._advance(is_end=False)

    def tag(self, token: int) -> Parsed:
        """The answer goes on with one of ``tags``."""
        parsed = self._advance(is_end=True)
        self._is_tagged = TAGS[self.tags[token]]
        return parsed

    def finish(self) -> Parsed:
        """Nothing follows."""
        parsed = self._advance(is_end=True)
        spaces = "" if self._has_calls else self._gap or ""
        return Parsed(parsed.text + spaces, parsed.calls)

    def _advance(self, *, is_end: bool) -> Parsed:
        while self._held and not self._is_rest and self._step(is_end=is_end):
            pass
        if is_end and self._is_tagged:
            self._close_tag()
        parsed = Parsed(self._text, tuple(self._calls))
        self._text, self._calls = "", []
        return parsed

    def _step(self, *, is_end: bool) -> bool:
        """Go past the next part of what is held; False if its kind isn't clear yet."""
        if self._gap is not None and (spaces := (_BETWEEN if self._has_calls else _SPACES).match(self._held)):
            self._gap += spaces[0]
            self._go_past(spaces.end())
            return True
        opening = self._form.opening.search(self._held)
        if opening and not opening.start():
            return self._step_candidate(is_end=is_end)
        self._show(opening.start() if opening else len(self._held))
        return True

    def _step_candidate(self, *, is_end: bool) -> bool:
        """The same, for what begins as a call does."""
        if (why := self._form.wrong(self._held, self._names)) is not None:
            self._note(why)
            self._show(1)
            return True
        size = self._scan.end(self._held)
        if size is None and not is_end:
            return False
        if size is None:
            size = len(self._held)
            why = "the answer ends within it" if any(name in self._held for name in self._names) else ""
        else:
            why = self._take_calls(size)
        if why is not None:
            self._note(why, self._held[:size])
            self._show(size)
        return True

    def _take_calls(self, size: int) -> str | None:
        """The first ``size`` characters are complete: None if they are calls, or why not."""
        try:
            self._call(calls_of(self._form, self._held[:size], self._names))
        except ValueError as error:
            return str(error)
        self._go_past(size)
        return None

    def _close_tag(self) -> None:
        """Outside of its form the model may have written another, or a call of a tool that it was trained with."""
        self._is_rest = self._is_tagged = False
        if not self._held:
            return
        try:
            self._call(tagged_calls(self._held, self._names))
            self._go_past(len(self._held))
        except ValueError as error:
            self._note(str(error), self._held)
            self._show(len(self._held))

    def _call(self, calls: Iterable[ToolCall]) -> None:
        self._calls += calls
        self._gap, self._has_calls = "", True

    def _note(self, why: str, text: str = "") -> None:
        if why and not self._is_tagged:
            quoted = f"{text[:60]!r}{'…' if len(text) > 60 else ''}: " if text else ""
            self.notes.append(f"no tool call: {quoted}{why}")

    def _show(self, size: int) -> None:
        """The beginning of what is held is text; within tags that is left open until they close."""
        if self._is_tagged:
            self._is_rest = True
            return
        self._text += (self._gap or "") + self._held[:size]
        self._gap = None
        self._go_past(size)

    def _go_past(self, size: int) -> None:
        self._held = self._held[size:]
        self._scan = _Scan(self._form.lexeme)


class _Scan:
    """Finds the bracket that closes the first one, in a text that grows."""

    def __init__(self, lexeme: re.Pattern[str]) -> None:
        self._lexeme = lexeme
        self._at = 0
        self._depth = 0

    def end(self, text: str) -> int | None:
        """Where the closing bracket ends, or None if it isn't there yet."""
        while match := self._lexeme.match(text, self._at):
            self._at = match.end()
            self._depth += (match.lastgroup == "open") - (match.lastgroup == "close")
            if not self._depth:
                return self._at
        return None

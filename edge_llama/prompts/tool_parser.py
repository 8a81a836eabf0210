"""Takes tool calls out of an answer while it is generated."""

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from edge_llama.prompts.messages import ToolCall
from edge_llama.prompts.tool_formats import AROUND, FORMS, TAGS, Form, calls_of, tagged_calls

_SPACES = re.compile(r"\s+")
_BETWEEN = re.compile(r"[\s;,]+")
_AROUND_OPENING = re.compile("|".join(re.escape(char) for char in sorted({text[0] for text in AROUND})))


@dataclass(frozen=True, slots=True)
class Parsed:
    """What is certain of an answer by now: text to show, and calls that are complete."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolCallParser:
    """Holds back text that may be the beginning of a call until that is clear; all else passes at once.

    What turns out to be no call stays text, and ``notes`` says why. Nothing is lost but tags, and spaces, separators
    and what is in :data:`AROUND` around calls. How the text is cut into pieces makes no difference.
    """

    def __init__(self, form: Form | None, names: Set[str], tags: Mapping[int, str], *, is_single: bool = False) -> None:
        """``names`` are those of the tools; ``tags`` are the ids of the vocabulary's :data:`TAGS`.

        Calls count in this ``form`` alone; None: in any. ``is_single``: one call is all that is wanted.
        """
        self.tags = tags
        self.notes: list[str] = []
        self._forms = tuple(FORMS.values()) if form is None else (form,)
        self._names = names
        self._is_single = is_single
        self._held = ""
        self._scan: _Scan | None = None
        self._gap: str | None = ""
        """What stands before a call or between two, and doesn't count if a call follows; None amid text."""
        self._closers: list[str] = []
        """What the openers in the gap ask for after the call, the last of them first; then, what is still to come."""
        self._shown = _Mentions(names)
        self._has_calls = False
        self._is_tagged = False
        self._is_rest = False
        """Within tags: what is held is no call of the form, and is judged as a whole when the tag closes."""
        self._text = ""
        self._calls: list[ToolCall] = []

    @property
    def is_complete(self) -> bool:
        """Whether no more is wanted."""
        return self._is_single and self._has_calls

    def feed(self, text: str) -> Parsed:
        """The answer goes on with ``text``."""
        self._held += text
        return self._advance(is_end=False)

    def tag(self, token: int) -> Parsed:
        """The answer goes on with one of ``tags``."""
        parsed = self._advance(is_end=True)
        self._is_tagged = TAGS[self.tags[token]]
        if self._is_tagged and self._gap is None:
            self._gap = ""
        return parsed

    def finish(self) -> Parsed:
        """Nothing follows."""
        parsed = self._advance(is_end=True)
        rest = "" if self._has_calls else self._gap or ""
        if not self._has_calls and not self.notes and (name := self._shown.tool):
            self._note(f"the text names {name} as calls do, but is none in a form that is known")
        return Parsed(parsed.text + rest, parsed.calls)

    def _advance(self, *, is_end: bool) -> Parsed:
        while self._held and not self._is_rest and self._step(is_end=is_end):
            pass
        if is_end and self._is_tagged:
            self._close_tag()
        parsed = Parsed(self._text, tuple(self._calls))
        self._shown.add(self._text)
        self._text, self._calls = "", []
        return parsed

    def _step(self, *, is_end: bool) -> bool:
        """Go past the next part of what is held; False if its kind isn't clear yet."""
        if self._gap is not None:
            if spaces := (_BETWEEN if self._has_calls else _SPACES).match(self._held):
                self._gap += spaces[0]
                self._go_past(spaces.end())
                return True
            if self._has_calls and self._closers and self._held.startswith(self._closers[0]):
                self._gap = ""
                self._go_past(len(self._closers.pop(0)))
                return True
        if opener := next(filter(self._held.startswith, AROUND), None):
            self._gap = (self._gap or "") + opener
            self._closers.insert(0, AROUND[opener])
            self._go_past(len(opener))
            return True
        marks = (*AROUND, *(self._closers if self._gap is not None else ()))
        if not is_end and any(mark.startswith(self._held) for mark in marks):
            return False
        return self._step_text(is_end=is_end)

    def _step_text(self, *, is_end: bool) -> bool:
        """The same, for what is no separator: a call or text."""
        openings = [form.opening for form in self._forms if form.is_anywhere] + [_AROUND_OPENING]
        begins = [found.start() for opening in openings if (found := opening.search(self._held, 0))]
        forms = [form for form in self._forms if form.is_anywhere or self._gap is not None]
        begun = [form for form in forms if form.opening.match(self._held)]
        if begun:
            return self._step_candidate(begun, is_end=is_end)
        self._show(max(min(begins, default=len(self._held)), 1))
        return True

    def _step_candidate(self, begun: list[Form], *, is_end: bool) -> bool:
        """The same, for what begins as a call does in these forms."""
        reasons = {form.name: form.wrong(self._held, self._names) for form in begun}
        possible = [form for form in begun if reasons[form.name] is None]
        if len(possible) > 1 and not is_end:
            return False
        if len(possible) != 1:
            self._note(next(filter(None, reasons.values()), ""))
            self._show(1)
            return True
        (form,) = possible
        if self._scan is None or self._scan.lexeme is not form.lexeme:
            self._scan = _Scan(form.lexeme)
        size = self._scan.end(self._held)
        if size is None and not is_end:
            return False
        if size is None:
            size = len(self._held)
            why: str | None = "the answer ends within it"
        else:
            why = self._take_calls(form, size)
        if why is not None:
            self._note(why if _mention(self._names).search(self._held[:size]) else "", self._held[:size])
            self._show(size)
        return True

    def _take_calls(self, form: Form, size: int) -> str | None:
        """The first ``size`` characters are complete: None if they are calls, or why not."""
        try:
            self._call(calls_of(form, self._held[:size], self._names))
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
        found = list(calls)
        wanted = found[: 1 - self._has_calls] if self._is_single else found
        if len(wanted) < len(found):
            left_out = ", ".join(call.name for call in found[len(wanted) :])
            self.notes.append(f"one tool call was asked for: left out {left_out}")
        self._calls += wanted
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
        self._closers.clear()
        self._go_past(size)

    def _go_past(self, size: int) -> None:
        self._held = self._held[size:]
        self._scan = None


class _Scan:
    """Finds the bracket that closes the first one, in a text that grows."""

    def __init__(self, lexeme: re.Pattern[str]) -> None:
        self.lexeme = lexeme
        self._at = 0
        self._depth = 0

    def end(self, text: str) -> int | None:
        """Where the closing bracket ends, or None if it isn't there yet."""
        while match := self.lexeme.match(text, self._at):
            self._at = match.end()
            self._depth += (match.lastgroup == "open") - (match.lastgroup == "close")
            if not self._depth and match.lastgroup == "close":
                return self._at
        return None


class _Mentions:
    """Whether text that was shown names a tool as calls do."""

    def __init__(self, names: Set[str]) -> None:
        self._pattern = _mention(names)
        self._before = max(map(len, names), default=0) + 3
        """So many characters may be needed of what was shown before."""
        self._last = ""
        self._is_cut = False
        self.tool: str | None = None

    def add(self, text: str) -> None:
        """The text goes on."""
        if self.tool or not text:
            return
        self._last += text
        if found := self._pattern.search(self._last, int(self._is_cut)):
            self.tool = found[found.lastindex or 0]
        self._is_cut = self._is_cut or len(self._last) > self._before
        self._last = self._last[-self._before :]


def _mention(names: Set[str]) -> re.Pattern[str]:
    """``"f"``, ``'f'``, ``f(`` and ``=f>``, for any of these names."""
    any_name = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)"
    return re.compile(rf"""["']({any_name})["']|(?<![\w.])({any_name})\(|=({any_name})>""")

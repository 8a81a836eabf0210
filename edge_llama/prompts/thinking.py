"""What a model thinks before it answers: text between two tags where an answer begins, a part of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from edge_llama.prompts.partial_tags import overlap


@dataclass(frozen=True, slots=True)
class Form:
    """How thoughts are marked."""

    opener: str
    closer: str


FORMS = (
    Form("<think>", "</think>"),
    Form("<thinking>", "</thinking>"),
    Form("<thought>", "</thought>"),
    Form("<reasoning>", "</reasoning>"),
    Form("<|begin_of_thought|>", "<|end_of_thought|>"),
    Form("[THINK]", "[/THINK]"),
    Form("<seed:think>", "</seed:think>"),
)
"""DeepSeek's and most others', and those of a few families. A model's is the one that its chat template writes."""


def form_in(template: str) -> Form | None:
    """The form that a chat template's source mentions; None if it knows of no thinking."""
    return next((form for form in FORMS if form.opener in template or form.closer in template), None)


@dataclass(frozen=True, slots=True)
class Split:
    """What is certain of an answer by now."""

    thinking: str = ""
    text: str = ""


class _At(Enum):
    START = auto()
    THINKING = auto()
    GAP = auto()
    """Behind the closer: blanks don't count."""
    ANSWER = auto()


class ThinkingParser:
    """Tells thoughts from the answer, holding back what may be the beginning of a tag, and blanks around both.

    Thoughts come first or not at all: a tag that stands later is text. How the text is cut makes no difference.
    """

    def __init__(self, form: Form, tags: Mapping[int, str], *, is_open: bool, closing: Sequence[int] = ()) -> None:
        """``tags`` are the control tokens among the form's tags; ``is_open``: the prompt ends with the opener.

        ``closing`` are tokens that end thoughts.
        """
        self.form = form
        self.tags = tags
        self.closing = closing
        self._at = _At.THINKING if is_open else _At.START
        self._has_thought = False
        self._held = ""

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is thought."""
        return self._at is _At.THINKING

    def feed(self, text: str) -> Split:
        """The answer goes on with ``text``; with a control token among ``tags``, as its text."""
        self._held += text
        thinking = ""
        if self._at is _At.START:
            self._start()
        if self._at is _At.THINKING:
            thinking = self._thought()
        if self._at is _At.GAP:
            self._held = self._held.lstrip()
            self._at = _At.ANSWER if self._held else _At.GAP
        if self._at is not _At.ANSWER:
            return Split(thinking)
        text, self._held = self._held, ""
        return Split(thinking, text)

    def finish(self) -> Split:
        """No more thoughts follow: what was held back is what it is."""
        at, self._at = self._at, _At.ANSWER
        held, self._held = self._held, ""
        if at is _At.THINKING:
            return Split(thinking=held.rstrip())
        return Split(text=held) if at is _At.START else Split()

    def _start(self) -> None:
        begun, opener = self._held.lstrip(), self.form.opener
        if begun.startswith(opener):
            self._at, self._held = _At.THINKING, begun.removeprefix(opener)
        elif not opener.startswith(begun):
            self._at = _At.ANSWER

    def _thought(self) -> str:
        if not self._has_thought:
            self._held = self._held.lstrip()
        thought, closer, rest = self._held.partition(self.form.closer)
        if closer:
            self._at, self._held = _At.GAP, rest
            return thought.rstrip()
        whole = len(thought) - overlap(thought, self.form.closer)
        thought = thought[:whole].rstrip()
        self._held = self._held[len(thought) :]
        self._has_thought = self._has_thought or bool(thought)
        return thought

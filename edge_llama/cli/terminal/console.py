"""What people see: text that streams, notices on stderr, nothing that a terminal would obey."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Protocol

from edge_llama.cli.terminal.escapes import harmless
from edge_llama.cli.terminal.modes import unechoed
from edge_llama.errors import OptionError, printable
from edge_llama.generation import Answer, Generation, Timings
from edge_llama.prompts.tokenizer import Tokenizer


def native_output_to_stderr() -> None:
    """From here on only Python writes to stdout: libraries of NPUs greet there, where nothing but results belongs."""
    try:
        sys.stdout.flush()
        kept = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    except (OSError, ValueError):  # one of them was closed
        return
    encoding, errors = getattr(sys.stdout, "encoding", None), getattr(sys.stdout, "errors", None)
    buffering = 1 if os.isatty(kept) else -1
    sys.stdout = os.fdopen(kept, "w", buffering, encoding, errors, closefd=False)  # as Python's own


@dataclass(slots=True)
class _Look:
    """How this process speaks to people: ``is_plain`` without styles, ``tells_speakers`` naming who speaks in words."""

    is_plain: bool = False
    tells_speakers: bool = False


_LOOK = _Look()


def speak(*, plainly: bool, tell_speakers: bool) -> None:
    """From here on: ``plainly`` has no styles and draws nothing again, ``tell_speakers`` says in words who speaks."""
    _LOOK.is_plain, _LOOK.tells_speakers = plainly, tell_speakers


def tell_speaker(name: str) -> None:
    """Say on stderr who speaks, if that is wanted and a terminal."""
    if _LOOK.tells_speakers and sys.stderr.isatty():
        sys.stderr.write(f"{name}: ")
        sys.stderr.flush()


class Output(Protocol):
    """Where an answer is shown as it comes."""

    def feed(self, text: str) -> None:
        """Go on with the answer."""

    def line(self, text: str) -> None:
        """A line of its own."""

    def finish(self) -> None:
        """End the last line."""


class Plain:
    """Text as the model writes it, to stdout; on a terminal without what could command it."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._is_within_line = False
        self._is_ended = False

    def feed(self, text: str) -> None:
        """Show a part of the answer at once."""
        if text:
            self._is_within_line, self._is_ended = not text.endswith("\n"), False
            self._write(text)

    def line(self, text: str) -> None:
        """Show a line of its own."""
        self._write(f"\n{text}\n" if self._is_within_line else f"{text}\n")
        self._is_within_line, self._is_ended = False, True

    def finish(self) -> None:
        """End the answer by a line break, unless a line of its own was the last."""
        if not self._is_ended:
            self._write("\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(harmless(text) if self._is_terminal else text)
        sys.stdout.flush()


def output(*, plain: bool) -> Output:
    """Rendered Markdown on a terminal that can show it, unless ``plain``; elsewhere text as it is."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    if plain or not sys.stdout.isatty() or encoding != "utf8" or os.environ.get("TERM", "dumb") == "dumb":
        return Plain()
    from edge_llama.cli.terminal.markdown import Markdown  # noqa: PLC0415 - loads rich and more: paid by people only
    from edge_llama.cli.terminal.page import terminal_console  # noqa: PLC0415

    return Markdown(terminal_console())


class Thoughts:
    """What a model thinks before it answers, dimmed, on stderr if that is a terminal: it is no result."""

    def __init__(self, *, are_hidden: bool) -> None:
        self._are_shown = not are_hidden and sys.stderr.isatty()
        self._is_open = False

    def feed(self, text: str) -> None:
        """Show a part of them at once."""
        if text and self._are_shown:
            if not self._is_open:
                tell_speaker("Thinking")
            self._is_open = True
            sys.stderr.write(f"\x1b[2m{harmless(text)}\x1b[0m" if self._is_dimmed else harmless(text))
            sys.stderr.flush()

    @cached_property
    def _is_dimmed(self) -> bool:
        return _has_colour()

    def finish(self) -> None:
        """What comes is the answer."""
        if self._is_open:
            self._is_open = False
            sys.stderr.write("\n\n")
            sys.stderr.flush()


def stream(generation: Generation, to: Output, *, hide_thinking: bool = False) -> None:
    """Show an answer as it comes; each tool call is a line of JSON.

    Ctrl-C stops the answer. What was made of it until then is shown, then KeyboardInterrupt is raised.
    """
    thoughts = Thoughts(are_hidden=hide_thinking)
    has_begun = False
    with unechoed(), _ctrl_c_stops(generation):
        try:
            for piece in generation:
                thoughts.feed(piece.thinking)
                if piece.text or piece.tool_calls:
                    thoughts.finish()
                    if not has_begun:
                        tell_speaker("Assistant")
                    has_begun = True
                to.feed(piece.text)
                for call in piece.tool_calls:
                    to.line(json.dumps(asdict(call), ensure_ascii=False))
        finally:
            generation.close()
            thoughts.finish()
            to.finish()


@contextmanager
def _ctrl_c_stops(generation: Generation) -> Iterator[None]:
    """Ctrl-C cancels ``generation`` in place of an exception, which could come in the middle of a word's output."""
    is_pressed = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal is_pressed
        if is_pressed:  # again: whatever is still to be done takes too long
            raise KeyboardInterrupt
        is_pressed = True
        generation.cancel()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # whoever started us wants it to be ignored
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if is_pressed:
        raise KeyboardInterrupt


def note(text: str, *, quiet: bool = False) -> None:
    """A notice for people, on stderr, dim on a terminal."""
    if not quiet:
        text = "\n".join(map(printable, text.split("\n")))
        sys.stderr.write(f"\x1b[2m{text}\x1b[0m\n" if _has_colour() else f"{text}\n")
        sys.stderr.flush()


def _has_colour() -> bool:
    if _LOOK.is_plain:
        return False
    from rich.console import Console  # noqa: PLC0415 - costs 30 ms and decides as rich does: NO_COLOR, TERM, terminal

    return Console(stderr=True).color_system is not None


def speed(timings: Timings) -> str:
    """A line of statistics."""
    new = timings.prompt_tokens - timings.cached_tokens
    return (
        f"prompt {timings.prompt_tokens:,} tokens ({timings.cached_tokens:,} cached, "
        f"{new:,} read at {timings.prompt_tokens_per_second:,.1f} tokens/s), "
        f"answer {timings.generated_tokens:,} tokens at {timings.tokens_per_second:,.1f} tokens/s"
    )


def ended(answer: Answer, *, n_ctx: int) -> str | None:
    """Why an answer stopped where neither the model ended it nor the user, or None."""
    if answer.stop_string is not None:
        return f"stopped: it reached the stop string {answer.stop_string!r}"
    if answer.finish_reason == "length":
        is_full = answer.timings.prompt_tokens + len(answer.tokens) >= n_ctx
        return "stopped: the context is full" if is_full else "stopped: --max-tokens is reached"
    return None


def logprob_lines(answer: Answer, tokenizer: Tokenizer) -> Iterator[str]:
    """A line for each token whose log-probability was asked for: it and the likeliest at its place."""
    for entry in answer.logprobs:
        top = "  ".join(f"{_label(other.token_id, tokenizer)} {other.logprob:.3f}" for other in entry.top)
        yield f"{_label(entry.token_id, tokenizer):16} {entry.logprob:8.3f}  {top}".rstrip()


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """A token as text; bytes that are no whole character become escapes."""
    return tokenizer.piece(token).decode("utf-8", "backslashreplace")


def _label(token: int, tokenizer: Tokenizer) -> str:
    text = token_text(token, tokenizer)
    return repr(text) if text else f"token {token}"


QUOTES = '"""'
"""Before and after a message of several lines, or one that begins as a command does."""


def is_unfinished(text: str) -> bool:
    """Whether a message that was begun by quotes has no closing ones yet."""
    return text.lstrip().startswith(QUOTES) and text.count(QUOTES) == 1


_BEGINS_QUOTED = re.compile(rf"/\w+\s+(?:\w+\s+)?{QUOTES}")


def goes_on(text: str) -> bool:
    """Whether a message, or what a command is given, was begun by quotes and has no closing ones yet."""
    return is_unfinished(text) or bool(_BEGINS_QUOTED.match(text) and text.count(QUOTES) == 1)


def unquoted(text: str) -> tuple[str, bool]:
    """A message without blanks and quotes around it, and whether there were quotes."""
    text = text.strip()
    inner = text.removeprefix(QUOTES).removesuffix(QUOTES)
    is_quoted = len(text) - len(inner) == 2 * len(QUOTES) and QUOTES not in inner
    return (inner.strip("\n"), True) if is_quoted else (text, False)


def messages_of_stdin() -> Iterator[str]:
    """Messages piped in: lines, and what is between quotes; none that is empty.

    OptionError names a byte that is not UTF-8, or says that closing quotes are missing.
    """
    text = ""
    for line in _decoded(sys.stdin.buffer):
        text += line
        if not is_unfinished(text):
            if message := unquoted(text)[0]:
                yield message
            text = ""
    if text:
        raise OptionError(f"stdin: a message begins with {QUOTES} and has no end", remedy=f"end it by {QUOTES}")


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    at = 0
    for line in lines:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise OptionError(
                f"stdin: byte {at + error.start:,} (0x{line[error.start]:02x}) is not UTF-8",
                remedy="convert it to UTF-8",
            ) from error
        yield text if at else text.removeprefix("\ufeff")
        at += len(line)


@contextmanager
def bars(*, quiet: bool) -> Iterator["Tell"]:
    """A bar as of :func:`progress` for each thing that is done, one after the other."""
    with ExitStack() as shown:
        label, update = "", None

        def tell(what: str, done: int, total: int, unit: str = "tokens") -> None:
            nonlocal label, update
            if what != label:
                shown.close()
                label, update = what, shown.enter_context(progress(what, quiet=quiet, unit=unit))
            if update:
                update(done, total)

        yield tell


class Tell(Protocol):
    """Is told what is done, how much of it, and of how much; ``unit`` says of what."""

    def __call__(self, what: str, done: int, total: int, unit: str = ...) -> None:
        """Show it."""


@contextmanager
def progress(label: str, *, quiet: bool, unit: str = "bytes") -> Iterator[Callable[[int, int], None] | None]:
    """A bar with how much is done, how fast, and the time left on stderr, if that is a terminal; ``unit``: of what."""
    if quiet or _LOOK.is_plain or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text  # noqa: PLC0415

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.{int(task.speed < 100)}f}/s" if task.speed else "")

    of_bytes = (DownloadColumn(), TransferSpeedColumn())
    done = of_bytes if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit), Rate())
    columns = (TextColumn("{task.description}"), BarColumn(), *done, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

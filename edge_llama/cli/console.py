"""What people see: text that streams, notices on stderr, nothing that a terminal would obey."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from edge_llama.errors import OptionError, printable
from edge_llama.generation import FinishReason, Generation, Timings

_UNSAFE = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def show(text: str) -> None:
    """Print a part of an answer at once; control characters could command a terminal and are left out there."""
    sys.stdout.write(text.translate(_UNSAFE) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def stream(generation: Generation) -> None:
    """Print an answer as it comes; the line is ended, and each tool call is a line of JSON.

    Ctrl-C stops the answer and is passed on.
    """
    is_within_line, is_ended = False, False
    try:
        for piece in generation:
            show(piece.text)
            if piece.text:
                is_within_line, is_ended = not piece.text.endswith("\n"), False
            for call in piece.tool_calls:
                line = json.dumps(asdict(call), ensure_ascii=False)
                show(f"\n{line}\n" if is_within_line else f"{line}\n")
                is_within_line, is_ended = False, True
    finally:
        generation.close()
        if not is_ended:
            show("\n")


def note(text: str, *, quiet: bool = False) -> None:
    """A notice for people, on stderr, dim on a terminal."""
    if not quiet:
        text = "\n".join(map(printable, text.split("\n")))
        sys.stderr.write(f"\x1b[2m{text}\x1b[0m\n" if _has_colour() else f"{text}\n")
        sys.stderr.flush()


def _has_colour() -> bool:
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


def ended(reason: FinishReason, *, is_full: bool) -> str | None:
    """Why an answer stopped before its end, or None."""
    if reason == "length":
        return "stopped: the context is full" if is_full else "stopped: --max-tokens is reached"
    return "stopped" if reason == "cancelled" else None


def lines_of_stdin() -> Iterator[str]:
    """Lines piped in, without their ends and without empty ones; OptionError names a byte that is not UTF-8."""
    return (line for line in map(str.strip, _decoded(sys.stdin.buffer)) if line)


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    at = 0
    for line in lines:
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise OptionError(
                f"stdin: byte {at + error.start:,} (0x{line[error.start]:02x}) is not UTF-8",
                remedy="convert it to UTF-8",
            ) from error
        at += len(line)


@contextmanager
def progress(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with bytes, rate and time left on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

"""What is piped in: a prompt, or the text that a prompt is about.

Whoever starts us without saying what stdin is (a program, ssh, CI) may leave us a pipe that stays open and says
nothing. Waiting for its end would be for ever, going on without it would be an answer about nothing where a pipeline
was only slow. So such a pipe is waited for half a minute, which is told, and refused then.
"""

import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from math import inf
from queue import Empty, Queue
from threading import Thread

from edge_llama.cli.terminal.console import note
from edge_llama.errors import OptionError

SECONDS_VARIABLE = "EDGE_LLAMA_STDIN_SECONDS"
_SECONDS = 30.0
_TOLD_AFTER = 3.0
_MOST = 256 << 20
"""More bytes than any context holds; beyond, they are not read."""


def prompt_of_stdin() -> str:
    """All of stdin, however long it takes. OptionError if that is nothing, or no UTF-8."""
    text = _decoded(sys.stdin.buffer.read(_MOST + 1))
    if not text.strip():
        raise OptionError("stdin: the prompt is empty", remedy="pipe some text in")
    return text


def context_of_stdin(*, quiet: bool = False) -> str:
    """What stdin holds if it is no terminal; "" for a terminal, for nothing and for white space.

    OptionError for what is no UTF-8, and for a pipe that is open and says nothing in half a minute, or in as many
    seconds as ``$EDGE_LLAMA_STDIN_SECONDS`` says. Once something came, its end is waited for.
    """
    if sys.stdin.isatty():
        return ""
    text = _decoded(_all(quiet=quiet))
    return text if text.strip() else ""


def before_prompt(context: str, prompt: str, *, raw: bool = False) -> str:
    """The text, a blank line and the prompt; ``raw``: nothing but the two, as they are."""
    if raw or not context:
        return context + prompt
    return f"{context.strip(chr(10))}\n\n{prompt}"


def _all(*, quiet: bool) -> bytes:
    try:
        descriptor = sys.stdin.fileno()
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except (io.UnsupportedOperation, OSError):  # a program's own stream in its place
        is_file = True
    try:
        return sys.stdin.buffer.read(_MOST + 1) if is_file else b"".join(_arriving(descriptor, quiet=quiet))
    except OSError as error:
        raise OptionError(f"stdin: cannot be read: {error.strerror}", remedy="for none: < /dev/null") from error


def _arriving(descriptor: int, *, quiet: bool) -> Iterator[bytes]:
    """What comes, up to its end. OptionError if nothing does."""
    pieces: Queue[bytes | OSError] = Queue(maxsize=16)
    # A thread, since Windows can't wait for a pipe; not by sys.stdin, whose lock it would hold when the program ends.
    Thread(target=_pump, args=(descriptor, pieces), daemon=True).start()
    piece, total = _first(pieces, quiet=quiet), 0
    while piece:
        if isinstance(piece, OSError):
            raise piece
        yield piece
        total += len(piece)
        piece = pieces.get() if total <= _MOST else b""


def _pump(descriptor: int, pieces: "Queue[bytes | OSError]") -> None:
    """Up to an empty piece: the end."""
    piece = b"-"
    while piece:
        try:
            piece = os.read(descriptor, 1 << 16)
        except BlockingIOError:  # whoever else has this pipe wants it so
            select.select([descriptor], [], [])
            continue
        except OSError as error:
            pieces.put(error)
            return
        pieces.put(piece)


def _first(pieces: "Queue[bytes | OSError]", *, quiet: bool) -> bytes | OSError:
    limit = _limit()
    try:
        return pieces.get(timeout=min(_TOLD_AFTER, limit))
    except Empty:
        note("stdin is an open pipe that says nothing: waiting for it (if nothing comes: < /dev/null)", quiet=quiet)
    try:
        return pieces.get(timeout=None if limit == inf else max(limit - _TOLD_AFTER, 0.01))
    except Empty:
        raise OptionError(
            f"stdin: an open pipe that said nothing for {limit:g} s",
            remedy=f"if nothing is to come, close it (< /dev/null, ssh -n, stdin=subprocess.DEVNULL); else set "
            f"{SECONDS_VARIABLE} to more seconds, or inf",
        ) from None


def _limit() -> float:
    given = os.environ.get(SECONDS_VARIABLE, "")
    try:
        seconds = float(given or _SECONDS)
    except ValueError:
        seconds = -1
    if not seconds > 0:
        raise OptionError(f"{SECONDS_VARIABLE} is {given!r:.100}, expected seconds, more than 0, or inf")
    return seconds


def _decoded(data: bytes) -> str:
    if len(data) > _MOST:
        raise OptionError(f"stdin: more than {_MOST:,} bytes, which no context holds", remedy="pipe a part of it in")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"stdin: byte {error.start:,} (0x{data[error.start]:02x}) is not UTF-8", remedy="convert it to UTF-8"
        ) from error

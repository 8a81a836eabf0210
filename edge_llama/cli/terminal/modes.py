"""How the terminal treats what is typed: POSIX's modes, which Windows has none of."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unechoed() -> Iterator[None]:
    """What is typed meanwhile, Ctrl-C's ^C too, does not get into the answer; the next prompt reads it."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios  # noqa: PLC0415 - there is none on Windows

    terminal = sys.stdin.fileno()
    with restored():
        silent = termios.tcgetattr(terminal)
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, silent)
        yield


@contextmanager
def restored() -> Iterator[None]:
    """The modes are afterwards what they were, whatever a program did with them and however it ended."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios  # noqa: PLC0415 - as above

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def leave_full_screen() -> None:
    """Undo what a program that was killed left: its own screen, a hidden cursor, styles, a mode of pasting."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?1049l\x1b[?25h\x1b[?2004l\x1b[0m")
        sys.stdout.flush()

"""A text in the editor that a person has chosen."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_llama.cli.terminal.modes import leave_full_screen, restored
from edge_llama.errors import OptionError
from edge_llama.host.child import environment_of_others
from edge_llama.host.regular_files import text_of

VARIABLES = ("VISUAL", "EDITOR")
_BY_DEFAULT = "notepad" if sys.platform == "win32" else ""


def edited(text: str) -> str:
    """``text`` as it was left in the editor, without line breaks at its end.

    The file lies in a folder that only its owner may open, and is deleted. OptionError if no editor is chosen, if it
    can't be started or fails (``:cq`` in vim), or what it left is no UTF-8.
    """
    command = _command()
    with tempfile.TemporaryDirectory(prefix="edge-llama-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, "utf-8")
        _run([*command, str(path)])
        return _read(path, command[0])


def _command() -> list[str]:
    """The editor's command line; its arguments may be in quotes."""
    name = next((name for name in VARIABLES if os.environ.get(name, "").strip()), "")
    chosen = os.environ.get(name, _BY_DEFAULT)
    try:
        words = shlex.split(chosen, posix=sys.platform != "win32")
    except ValueError as error:
        raise OptionError(f"{name} is {chosen!r}: {error}", remedy="close its quotes") from error
    if not words:
        raise OptionError("no editor is chosen", remedy=f"set {' or '.join(VARIABLES)}, as EDITOR=nano")
    return [word.strip('"') for word in words] if sys.platform == "win32" else words


def _run(command: list[str]) -> None:
    try:
        with restored(), _without_ctrl_c():
            done = subprocess.run(command, check=False, env=environment_of_others())  # noqa: S603 - what the user chose
            code = done.returncode
    except OSError as error:
        raise OptionError(
            f"the editor {command[0]} can't be started: {error.strerror or error}", remedy=f"see {VARIABLES[0]}"
        ) from error
    except BaseException:  # as SIGTERM: the editor was killed
        leave_full_screen()
        raise
    if code:
        if code < 0:
            leave_full_screen()
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        raise OptionError(f"the editor {command[0]} ended by {how}: nothing is sent")


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ctrl-C is the editor's own key; both are in the terminal's foreground, and get its signal.

    A handler in place of SIG_IGN, which the editor would inherit.
    """
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _read(path: Path, editor: str) -> str:
    try:
        text = text_of(path, "utf-8-sig")  # with any line breaks; notepad may put a mark before it
    except OSError as error:
        raise OptionError(f"the editor {editor} left no file: {error.strerror}: nothing is sent") from error
    except UnicodeDecodeError as error:
        raise OptionError(
            f"the editor {editor} left what is no UTF-8, at byte {error.start:,}", remedy="have it save as UTF-8"
        ) from error
    return text.rstrip("\n")

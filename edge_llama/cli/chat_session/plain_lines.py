"""What a person types who has it read aloud: the system's own line, in which nothing is drawn again or in colours."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from edge_llama.cli.chat_session.commands import NEARLY_FULL, Command, gauge
from edge_llama.cli.chat_session.completion import candidates
from edge_llama.cli.terminal.console import goes_on, note, unquoted

_PROMPT = "You: "
_SETTINGS = (
    "tab: complete",
    "set enable-bracketed-paste on",  # many lines are one message; Python's own prompt switches it off
    "set enable-active-region off",  # which would show what was pasted in other colours
)


class PlainLines:
    """Reads messages and commands. Where readline is GNU's, Tab completes, and what was pasted is one message."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands
        self._found: list[str] = []
        with suppress(ImportError):  # Windows, whose console edits lines itself
            import readline  # noqa: PLC0415

            _set_up(readline, self._complete)

    def read(self, used: int, n_ctx: int) -> tuple[str, bool]:
        """The next text, and whether it was in quotes; ``used`` tokens of ``n_ctx`` are taken.

        Raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C.
        """
        if used >= NEARLY_FULL * n_ctx:
            note(gauge(used, n_ctx, is_drawn=False))
        try:
            text = _line(_PROMPT)
            while goes_on(text):
                text += "\n" + _line("")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)  # noqa: T201 - what comes next begins a line
            raise
        return unquoted(text)

    def _complete(self, line: str, state: int) -> str | None:
        if state == 0:
            found = candidates(line, self._commands)
            self._found = [line[: len(line) - each.replaced] + each.text for each in found]
        return self._found[state] if state < len(self._found) else None


def _set_up(readline: Any, complete: Any) -> None:
    readline.set_completer_delims("")  # paths have spaces
    readline.set_completer(complete)
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
        return
    for setting in _SETTINGS:
        readline.parse_and_bind(setting)


def _line(prompt: str) -> str:
    """A line as the system reads it. The prompt goes where people look, also while answers go to a file."""
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()

"""What a person types: a line editor with completion, and messages of several lines."""

from collections.abc import Iterable, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from edge_llama.cli.chat_session.commands import PATH, Command, gauge
from edge_llama.cli.terminal.console import is_unfinished, unquoted

_NEARLY_FULL = 0.75
"""From this share of the context on, the gauge is shown below what is typed."""


class LineEditor:
    """Reads messages and commands. What was pasted with line breaks is one message; so is what quotes surround."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._prompt: PromptSession[str] = PromptSession(
            "> ",
            completer=_Completer(commands),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,  # no menu, which would keep eight lines free
            multiline=Condition(lambda: is_unfinished(get_app().current_buffer.text)),
            prompt_continuation="  ",
            style=Style.from_dict({"bottom-toolbar": "noreverse"}),
        )

    def read(self, used: int, n_ctx: int) -> tuple[str, bool]:
        """The next text, and whether it was in quotes; ``used`` tokens of ``n_ctx`` are taken.

        Raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C.
        """
        self._prompt.bottom_toolbar = gauge(used, n_ctx) if used >= _NEARLY_FULL * n_ctx else None
        return unquoted(self._prompt.prompt())


class _Completer(Completer):
    """Names of commands, what may follow them, and paths."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """For the last word before the cursor, where that belongs to a command."""
        name, space, rest = document.text_before_cursor.partition(" ")
        if not name.startswith("/"):
            return
        if not space:
            yield from _beginning_with(name, self._commands)
        elif command := self._commands.get(name):
            values = list(command.values(""))
            first, space, last = rest.partition(" ")
            word = rest
            if space and PATH not in values:  # a path may have spaces itself
                values, word = list(command.values(first)), last
            yield from _beginning_with(word, [value for value in values if value != PATH])
            if PATH in values:
                yield from self._paths.get_completions(Document(word), complete_event)


def _beginning_with(word: str, values: Iterable[str]) -> Iterable[Completion]:
    return (Completion(value, start_position=-len(word)) for value in values if value.startswith(word))

"""What a person types: a line editor with completion, and messages of several lines."""

from collections.abc import Iterable, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from edge_llama.cli.chat_session.commands import NEARLY_FULL, Command, gauge
from edge_llama.cli.chat_session.completion import candidates
from edge_llama.cli.terminal.console import goes_on, unquoted


class LineEditor:
    """Reads messages and commands. What was pasted with line breaks is one message; so is what quotes surround."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._prompt: PromptSession[str] = PromptSession(
            "> ",
            completer=_Completer(commands),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,  # no menu, which would keep eight lines free
            multiline=Condition(lambda: goes_on(get_app().current_buffer.text)),
            prompt_continuation="  ",
            enable_open_in_editor=True,  # Ctrl-X Ctrl-E, as in shells
            style=Style.from_dict({"bottom-toolbar": "noreverse"}),
        )

    def read(self, used: int, n_ctx: int) -> tuple[str, bool]:
        """The next text, and whether it was in quotes; ``used`` tokens of ``n_ctx`` are taken.

        Raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C.
        """
        self._prompt.bottom_toolbar = gauge(used, n_ctx) if used >= NEARLY_FULL * n_ctx else None
        return unquoted(self._prompt.prompt())


class _Completer(Completer):
    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002 - prompt_toolkit's
        """For what stands before the cursor."""
        for found in candidates(document.text_before_cursor, self._commands):
            yield Completion(found.text, start_position=-found.replaced, display=found.shown)

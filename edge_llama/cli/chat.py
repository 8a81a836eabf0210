"""``edge-llama chat``: a conversation in the terminal."""

import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Annotated, Any, Protocol

import typer

from edge_llama.cli import options
from edge_llama.cli.chat_session import adapter_texts, commands
from edge_llama.cli.chat_session.conversation import Conversation
from edge_llama.cli.chat_session.conversations import Kept
from edge_llama.cli.chat_session.documents import Retrieval
from edge_llama.cli.chat_session.local_choice import picked
from edge_llama.cli.chat_session.pictures import dropped
from edge_llama.cli.terminal.console import messages_of_stdin, note, speak, speed
from edge_llama.errors import EdgeLlamaError
from edge_llama.planning.options import OpenOptions

PLAIN_VARIABLE = "EDGE_LLAMA_PLAIN"
EXAMPLE = "What is the capital of Japan?"


class LineReader(Protocol):
    """Where messages and commands come from."""

    def read(self, used: int, n_ctx: int) -> tuple[str, bool]:
        """The next text, and whether it was in quotes; ``used`` tokens of ``n_ctx`` are taken.

        Raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C.
        """


@options.with_sampling
@options.with_opening(also_remote=True)
def chat(
    *,
    params: dict[str, Any],
    model: Annotated[
        str | None,
        typer.Argument(
            help="A .gguf file, a folder with a model, smollm2, or a server's URL. Default: $EDGE_LLAMA_MODEL, else "
            "smollm2."
        ),
    ] = None,
    system: options.System = None,
    opening: OpenOptions,
    adapter: options.Adapter = None,
    when_full: options.WhenFull = "error",
    continue_: options.Continue = None,
    no_history: options.NoHistory = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            envvar=PLAIN_VARIABLE,
            help="For screen readers: answers as they are written, nothing drawn or styled, who speaks in words.",
        ),
    ] = False,
    retrieve: options.Retrieve = False,
    embedding_model: options.EmbeddingModel = None,
    isolate: options.Isolate = False,
    hide_thinking: options.HideThinking = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Chat with a model, offline. Ctrl-C stops an answer, Ctrl-D leaves, /help shows the commands.

    Without a terminal each line of stdin gets one answer; with an empty stdin an example question is answered.
    Three double quotes before and after a message let it have several lines.
    A picture goes before the next message by /image PATH, or by being dropped into the terminal; a document by /file
    PATH.
    What is said is kept on this machine (edge-llama history); --continue goes on with it.

    Example: edge-llama chat llama-3.2-1b-q4_k_m.gguf --system "Answer briefly."

    With pictures: edge-llama chat llama4-scout/ --max-tiles 4

    With a model on a server: edge-llama chat http://127.0.0.1:8000/v1 --tokenizer llama-3.2-1b/
    """
    speak(plainly=plain, tell_speakers=plain and sys.stdin.isatty())
    files, weights = adapter_texts.parse(adapter)
    if files:
        opening = {**opening, "adapters": files}
    kept = Kept(continue_, off=no_history, quiet=quiet)
    if kept.model(model) is None:
        model = picked()
    conversation = Conversation(
        partial(options.open_model, isolate=isolate, verbose=verbose, also_remote=True),
        kept.model(model),
        params,
        kept,
        opening={**opening, **kept.caching},
        saved=kept.settings(model),
        retrieval=Retrieval(options.open_embedding_model, embedding_model, is_on=retrieve),
        system=system,
        when_full=options.when_full(when_full),
        plain=plain,
        hide_thinking=hide_thinking or quiet,
        adapters=weights,
    )
    with closing(conversation):
        note(f"{conversation.model.artifact.name}: {conversation.model.context}", quiet=quiet)
        if sys.stdin.isatty():
            note("/help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves", quiet=quiet)
            _talk(conversation)
        else:
            _answer_all(conversation, messages_of_stdin(), quiet=quiet)


def _answer_all(conversation: Conversation, messages: Iterator[str], *, quiet: bool) -> None:
    """Answer what was piped in, in turn, as one conversation."""
    for message in messages:
        conversation.send(message)
        conversation.keep()
    if conversation.last is None:
        note(f"> {EXAMPLE}", quiet=quiet)
        conversation.send(EXAMPLE)
        conversation.keep()
    if conversation.last is not None:
        note(speed(conversation.last.timings), quiet=quiet)


def _talk(conversation: Conversation) -> None:
    """Read, answer, repeat, until /exit or Ctrl-D."""
    editor = _editor(is_plain=conversation.is_plain)
    while not conversation.is_over:
        try:
            text, is_quoted = editor.read(conversation.used, conversation.model.n_ctx)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text:
            _handle(conversation, text, is_quoted=is_quoted)


def _editor(*, is_plain: bool) -> LineReader:
    if is_plain:
        from edge_llama.cli.chat_session.plain_lines import PlainLines  # noqa: PLC0415

        return PlainLines(commands.COMMANDS)
    from edge_llama.cli.chat_session.line_editor import LineEditor  # noqa: PLC0415 - prompt_toolkit costs 100 ms, paid by people only

    return LineEditor(commands.COMMANDS)


def _handle(conversation: Conversation, text: str, *, is_quoted: bool) -> None:
    """A command or a message. What goes wrong is told and the chat goes on; so it does after Ctrl-C."""
    try:
        paths, text = ([], text) if is_quoted else dropped(text)
        for path in paths:
            commands.show(conversation, path)
        if text.startswith("/") and not is_quoted and not paths:
            commands.run(conversation, text)
        elif text:
            conversation.send(text)
    except EdgeLlamaError as error:
        note(f"edge-llama: {error}")
    except OSError as error:
        if error.filename is None:  # the terminal itself is gone
            raise
        note(f"edge-llama: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        note("[stopped]")
    finally:
        conversation.keep()

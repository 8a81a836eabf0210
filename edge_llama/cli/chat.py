"""``edge-llama chat``: a conversation in the terminal."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from edge_llama.chat import Chat
from edge_llama.cli import options
from edge_llama.cli.console import ended, lines_of_stdin, note, speed, stream
from edge_llama.cli.conversations import Kept
from edge_llama.errors import InputError
from edge_llama.generation import Generation
from edge_llama.model import Model

EXAMPLE = "What is the capital of Japan?"
_COMMANDS = {
    "/help": "show this",
    "/clear": "forget the conversation, keep the system message",
    "/retry": "answer the last message again",
    "/system": "/system TEXT sets the system message, /system alone shows it, /system - removes it",
    "/stats": "speed of the last answer, and how full the context is",
    "/exit": "leave (so does Ctrl-D)",
}


def chat(
    model: Annotated[
        str | None, typer.Argument(help="A .gguf file, or smollm2. Default: $EDGE_LLAMA_MODEL, else smollm2.")
    ] = None,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    n_ctx: options.NCtx = None,
    threads: options.Threads = None,
    batch: options.Batch = None,
    flash_attn: options.FlashAttn = None,
    kv: options.Kv = None,
    device: options.Device = "auto",
    chat_template: options.ChatTemplate = None,
    when_full: options.WhenFull = "error",
    continue_: options.Continue = None,
    no_history: options.NoHistory = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Chat with a model, offline. Ctrl-C stops an answer, Ctrl-D leaves, /help shows the commands.

    Without a terminal each line of stdin gets one answer; with an empty stdin an example question is answered.
    What is said is kept on this machine (edge-llama history); --continue goes on with it.

    Example: edge-llama chat llama-3.2-1b-q4_k_m.gguf --system "Answer briefly."
    """
    params = options.given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
    )
    policy = options.when_full(when_full)
    kept = Kept(continue_, off=no_history, quiet=quiet)
    with options.open_model(
        kept.model(model),
        threads=threads,
        batch=batch,
        **kept.settings(model, n_ctx, flash_attn, kv),
        device=device,
        chat_template=chat_template,
        verbose=verbose,
    ) as opened:
        note(f"{opened.artifact.name}: {opened.context}", quiet=quiet)
        # Told also with --quiet: what the model no longer knows is no progress report.
        shortened = {"when_full": policy, "on_shortened": lambda told: note(f"[{told}]")}
        with kept.chat(opened, system=system, **shortened) as chat:
            conversation = _Conversation(opened, chat, params, kept)
            if sys.stdin.isatty():
                note("/help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves", quiet=quiet)
                conversation.talk()
            else:
                conversation.answer_lines(lines_of_stdin(), quiet=quiet)


class _Conversation:
    """The loop around a Chat."""

    def __init__(self, model: Model, chat: Chat, params: dict[str, Any], kept: Kept) -> None:
        self.kept = kept
        self.model = model
        self.chat = chat
        self.params = params
        self.last: Generation | None = None

    def answer_lines(self, lines: Iterator[str], *, quiet: bool) -> None:
        """Answer piped lines in turn, each as a message of one conversation."""
        for line in lines:
            self._answer(self.chat.send(line, **self.params))
            self.kept.keep(self.model, self.chat)
        if self.last is None:
            note(f"> {EXAMPLE}", quiet=quiet)
            self._answer(self.chat.send(EXAMPLE, **self.params))
            self.kept.keep(self.model, self.chat)
        if self.last is not None:
            note(speed(self.last.timings), quiet=quiet)

    def talk(self) -> None:
        """Read, answer, repeat, until /exit or Ctrl-D."""
        from prompt_toolkit import PromptSession  # noqa: PLC0415 - costs 100 ms, paid by people only
        from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415

        commands = WordCompleter(list(_COMMANDS), sentence=True)
        prompt: PromptSession[str] = PromptSession("> ", completer=commands, complete_while_typing=False)
        while True:
            try:
                line = prompt.prompt().strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if line == "/exit":
                return
            if line:
                self._handle(line)

    def _handle(self, line: str) -> None:
        """One line: a command or a message. Bad input is told and the chat goes on; so does Ctrl-C."""
        try:
            if line.startswith("/"):
                self._command(*line.split(maxsplit=1))
            else:
                self._answer(self.chat.send(line, **self.params))
        except InputError as error:
            note(f"edge-llama: {error}")
        except KeyboardInterrupt:
            note("[stopped]")
        finally:
            self.kept.keep(self.model, self.chat)

    def _answer(self, generation: Generation) -> None:
        self.last = generation
        stream(generation)
        answer = generation.result()
        used = answer.timings.prompt_tokens + len(answer.tokens)
        if why := ended(answer.finish_reason, is_full=used >= self.model.n_ctx):
            note(f"[{why}]")

    def _command(self, name: str, argument: str = "") -> None:
        if name == "/help":
            note("\n".join(f"{command:9}{text}" for command, text in _COMMANDS.items()))
        elif name == "/clear":
            self.chat.clear()
            note("the conversation is forgotten")
        elif name == "/retry":
            self._answer(self.chat.retry(**self.params))
        elif name == "/system":
            self._system(argument)
        elif name == "/stats":
            self._stats()
        else:
            note(f"{name} is unknown: /help shows the commands")

    def _system(self, text: str) -> None:
        if text:
            self.chat.system = None if text == "-" else text
        note(f"system message: {self.chat.system or 'none (the model may have its own)'}")

    def _stats(self) -> None:
        used = self.model.count_tokens(self.chat.messages)
        if self.last:
            note(speed(self.last.timings))
        note(f"context: {used:,} of {self.model.n_ctx:,} tokens")

"""What can be typed in a chat besides messages. To add a command, add a function here: help and completion follow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_llama.cli.chat_session import settings
from edge_llama.cli.chat_session.adapter_texts import weighted
from edge_llama.cli.chat_session.conversation import Conversation
from edge_llama.cli.chat_session.documents import attach
from edge_llama.cli.chat_session.pictures import CLIPS, unquoted
from edge_llama.cli.terminal.clipboard import copy
from edge_llama.cli.terminal.console import QUOTES, note, speed
from edge_llama.cli.terminal.editor import edited
from edge_llama.errors import OptionError
from edge_llama.files.artifact import BUILT_IN, server_url
from edge_llama.history.export import export
from edge_llama.media.documents.document import Document
from edge_llama.media.images import Image

PATH = "a path"
"""Among the values that an argument may take: any path."""
_Run = Callable[[Conversation, str], None]
_Values = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Command:
    """``run(conversation, argument)`` does it; ``usage`` begins with its name, or its names with commas between.

    ``values("")`` are what the argument may begin with, ``values(first word)`` what may follow that.
    """

    usage: str
    help: str
    run: _Run
    values: _Values

    @property
    def names(self) -> tuple[str, ...]:
        """With their slashes, the usual one first."""
        return tuple(word.rstrip(",") for word in self.usage.split() if word.startswith("/"))


COMMANDS: dict[str, Command] = {}
"""By all their names, in the order in which they are defined here."""


def run(conversation: Conversation, line: str) -> None:
    """Do what a line that begins with a slash says. OptionError if there is no such command."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise OptionError(
            f"{name} is unknown", remedy=f"/help shows the commands; {QUOTES} before and after a text sends it"
        )
    COMMANDS[name].run(conversation, argument.strip())


def _command(usage: str, help_: str, values: _Values = lambda _before: ()) -> Callable[[_Run], _Run]:
    def add(function: _Run) -> _Run:
        command = Command(usage, help_, function, values)
        COMMANDS.update(dict.fromkeys(command.names, command))
        return function

    return add


def _paths(before: str) -> Iterable[str]:
    return () if before else (PATH,)


def _setting_values(before: str) -> Iterable[str]:
    if not before:
        return (*settings.NAMES, "system")
    return (PATH,) if before in settings.FILES else ()


@_command("/help, /?", "show this")
def _help(_conversation: Conversation, _argument: str) -> None:
    note("\n".join(f"{command.usage:22} {command.help}" for command in dict.fromkeys(COMMANDS.values())))
    note(f"{QUOTES:22} before and after a message of several lines")


@_command("/retry, /regenerate", "answer the last message again")
def _retry(conversation: Conversation, _argument: str) -> None:
    conversation.retry()


@_command("/edit", "change the last message in $VISUAL or $EDITOR, and have that answered in its place")
def _edit(conversation: Conversation, _argument: str) -> None:
    if (last := conversation.last_message) is None:
        raise OptionError("there is no message to edit", remedy="send one first")
    text = edited(last.last_text)
    if not text.strip():
        note("the text is empty: nothing is sent")
    elif text == last.last_text.rstrip("\n"):
        note("the text is unchanged: nothing is sent")
    else:
        note(f"You: {text}" if conversation.is_plain else "\n".join(f"> {line}" for line in text.split("\n")))
        conversation.edit(text)


@_command("/undo [N]", "take back the last message and its answer, or the last N")
def _undo(conversation: Conversation, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise OptionError(f"/undo {argument}: expected a whole number")
    before = conversation.chat.messages
    conversation.chat.rewind(int(argument or 1))
    conversation.used = 0
    first = before[len(conversation.chat.messages)].shown
    note(f"taken back: {settings.shown(first)}")


@_command("/clear", "forget the conversation, keep the system message")
def _clear(conversation: Conversation, _argument: str) -> None:
    conversation.chat.clear()
    conversation.used = 0
    note("the conversation is forgotten")


@_command("/compact", "have the model summarise all but the last exchange, in their place")
def _compact(conversation: Conversation, _argument: str) -> None:
    if conversation.chat.compact() is None:
        note("there is nothing to summarise before the last exchange")
    else:
        conversation.used = 0


@_command("/system [TEXT]", "set the system message, show it, or remove it (/system -)")
def _system(conversation: Conversation, argument: str) -> None:
    if argument:
        conversation.chat.system = None if argument == "-" else _without_quotes(argument)
    note(f"system message: {conversation.chat.system or 'none (the model may have its own)'}")


@_command("/set [NAME [VALUE]]", "a sampling setting: set it, show it, show all; - takes its default", _setting_values)
def _set(conversation: Conversation, argument: str) -> None:
    name, _, text = argument.removeprefix("parameter ").lstrip().partition(" ")  # as ollama has it
    if name == "system":
        _system(conversation, text.strip())
        return
    if not name:
        note(settings.table(conversation.model.sampling(conversation.params), conversation.params))
        return
    settings.check_name(name)
    if text := text.strip():
        conversation.set(name, None if text == "-" else settings.parse(name, text))
    note(f"{name}: {settings.shown(getattr(conversation.model.sampling(conversation.params), name))}")


@_command("/image PATH", "show a picture with the next message; several in order; - shows none", _paths)
def _image(conversation: Conversation, argument: str) -> None:
    if argument == "-":
        conversation.shown.clear_pictures()
        note("the next message shows nothing")
    else:
        _show_image(conversation, _file(argument, "/image"))


@_command("/video PATH", "show a clip with the next message: frames of it, with their times", _paths)
def _video(conversation: Conversation, argument: str) -> None:
    _show_clip(conversation, _file(argument, "/video"))


@_command("/file PATH", "put a document before the next message: text, code, CSV, HTML, PDF, docx; - puts none", _paths)
def _document(conversation: Conversation, argument: str) -> None:
    if argument == "-":
        conversation.shown.documents = []
        note("the next message has no files")
        return
    document = Document.open(_file(argument, "/file"))
    attach(conversation.chat, conversation.shown.documents, document, is_searched=conversation.retrieval.is_on)


@_command(
    "/retrieve [on|off]",
    "where files don't fit, find the passages that belong to the message",
    lambda before: () if before else ("on", "off"),
)
def _retrieve(conversation: Conversation, argument: str) -> None:
    if argument not in {"", "on", "off"}:
        raise OptionError(f"/retrieve {argument}: expected on or off")
    if argument:
        conversation.retrieval.is_on = argument == "on"
    note(f"retrieve: {'on' if conversation.retrieval.is_on else 'off'}")


def show(conversation: Conversation, path: Path) -> None:
    """Show a picture or a clip, by its name's ending, with the next message."""
    (_show_clip if path.suffix.lower() in CLIPS else _show_image)(conversation, path)


def _show_image(conversation: Conversation, path: Path) -> None:
    image = Image.open(path)
    tokens = conversation.model.image_tokens(image)
    conversation.shown.images.append(image)
    for told in image.notes:
        note(f"[{path}: {told}]")
    note(f"with the next message: {path.name}, {image.width:,} x {image.height:,} pixels, {tokens:,} tokens")


def _show_clip(conversation: Conversation, path: Path) -> None:
    from edge_llama.media import video  # noqa: PLC0415 - an extra

    conversation.model.require_vision()
    seconds = video.duration(path)
    conversation.shown.clip = path
    note(f"with the next message: {path.name}, {seconds:,.1f} seconds, as many frames as the context holds")


@_command("/save FILE", "write the conversation to a file, with all that the model has read", _paths)
def _save(conversation: Conversation, argument: str) -> None:
    path = _file(argument, "/save")
    conversation.chat.save(path)
    note(f"saved: {path}, {path.stat().st_size:,} bytes")


@_command("/load FILE", "go on with a saved conversation in place of this one", _paths)
def _load(conversation: Conversation, argument: str) -> None:
    path = _file(argument, "/load")
    conversation.load(path)
    chat = conversation.chat
    note(f"loaded: {path}, {len(chat.messages):,} messages")
    if chat.reread_reason:
        note(f"it is read again with the next message: {chat.reread_reason}")


@_command(
    "/export FILE.md|.json", "write what was said to a file, for people or programs; --force replaces one", _paths
)
def _export(conversation: Conversation, argument: str) -> None:
    name = argument.removesuffix("--force").rstrip()
    path = _file(name, "/export")
    messages = conversation.all_said
    export(messages, path, force=name != argument)
    note(f"exported: {path}, {len(messages):,} messages, {path.stat().st_size:,} bytes")


@_command("/adapter [NAME[@WEIGHT] ...]", "answer with these adapters, show them, or answer without (/adapter -)")
def _adapter(conversation: Conversation, argument: str) -> None:
    if argument:
        given = [] if argument == "-" else argument.split()
        conversation.adapters = dict(map(weighted, given))
    used = conversation.adapters
    note(f"adapters: {', '.join(f'{name} {weight:g}' for name, weight in used.items()) or 'none'}")
    if others := [name for name in conversation.model.adapters if name not in used]:
        note(f"open and not used: {', '.join(others)}")
    if argument and conversation.chat.messages:
        count = conversation.tokens_to_prefill(used)
        note(f"{count:,} tokens are prefilled again with the next message: what other adapters computed is of no use")


def _models(before: str) -> Iterable[str]:
    return () if before else (PATH, BUILT_IN)


@_command("/model [PATH]", "go on with another model, or show this one", _models)
def _model(conversation: Conversation, argument: str) -> None:
    if argument:
        conversation.change_model(unquoted(argument))
    model = conversation.model
    note(f"{model.artifact.name} ({server_url(model.location) or model.artifact.path}): {model.context}")
    if argument and conversation.chat.messages:
        note(f"it reads the {len(conversation.chat.messages):,} messages so far with the next one")


@_command("/copy", "put the last answer into the clipboard")
def _copy(conversation: Conversation, _argument: str) -> None:
    answers = [message.content for message in conversation.chat.messages if message.role == "assistant"]
    if not answers:
        raise OptionError("there is no answer to copy")
    note(f"{len(answers[-1]):,} characters are in {copy(answers[-1])}")


@_command("/context", "how full the context is")
def _context(conversation: Conversation, _argument: str) -> None:
    used = conversation.model.count_tokens(conversation.chat.messages)
    note(gauge(used, conversation.model.n_ctx, is_drawn=not conversation.is_plain))


@_command("/speed", "the speed of the last answer")
def _speed(conversation: Conversation, _argument: str) -> None:
    note(speed(conversation.last.timings) if conversation.last else "there is no answer yet")


@_command("/exit, /quit, /bye", "leave (so does Ctrl-D)")
def _exit(conversation: Conversation, _argument: str) -> None:
    conversation.is_over = True


NEARLY_FULL = 0.75
"""From this share of the context on, the gauge is shown unasked."""


def gauge(used: int, n_ctx: int, *, is_drawn: bool = True) -> str:
    """How full the context is, in few characters."""
    filled = min(10, round(10 * used / n_ctx))
    bar = f"[{'#' * filled}{'.' * (10 - filled)}] " if is_drawn else ""
    return f"context: {bar}{used / n_ctx:.0%}, {used:,} of {n_ctx:,} tokens"


def _without_quotes(text: str) -> str:
    """A text of several lines, or as other programs want it."""
    for mark in (QUOTES, '"'):
        inner = text.removeprefix(mark).removesuffix(mark)
        if len(text) - len(inner) == 2 * len(mark) and mark not in inner:
            return inner.strip("\n")
    return text


def _file(argument: str, command: str) -> Path:
    if not argument:
        raise OptionError(f"{command}: which file?", remedy=f"{command} FILE")
    try:
        return Path(unquoted(argument)).expanduser()
    except RuntimeError as error:  # ~nobody
        raise OptionError(f"{command} {argument}: its owner's home is not known") from error

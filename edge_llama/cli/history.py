"""``edge-llama history``: conversations that were kept."""

import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_llama.cli import options
from edge_llama.cli.chat_session.conversations import completed
from edge_llama.cli.terminal.console import note
from edge_llama.cli.terminal.escapes import harmless
from edge_llama.errors import HistoryError, OptionError
from edge_llama.history import export as exporting
from edge_llama.history.search import Found
from edge_llama.history.store import FOLDER_VARIABLE, OFF, Conversation, Entry, History, folder
from edge_llama.prompts.messages import Message

VERBS = typer.Typer(
    help="Conversations of `chat`, kept on this machine: list, show, export, search, delete.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Limit = Annotated[int | None, typer.Option("-n", min=1, help="At most so many.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="An id, or how it begins.", autocompletion=completed)]


@VERBS.command("list")
def list_(limit: Limit = None, as_json: options.Json = False) -> None:
    """List conversations, the latest first.

    Example: edge-llama history list -n 10
    """
    entries = _history().entries(limit)
    if as_json:
        _print_json([_described(entry) for entry in entries])
    elif entries:
        _print_table([(entry, entry.title) for entry in entries])
    else:
        note("no conversations yet: edge-llama chat begins one")


@VERBS.command()
def show(conversation_id: Id, as_json: options.Json = False) -> None:
    """Show what was said.

    Example: edge-llama history show k7mp
    """
    conversation = _history().read(conversation_id)
    if as_json:
        _print_json(_described(conversation))
    else:
        _print("\n".join(_transcript(conversation)))


@VERBS.command()
def export(
    conversation_id: Id,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="FILE.md for people, FILE.json for programs.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write what was said to a file: Markdown, or a JSON list of messages as OpenAI's interface has them.

    Example: edge-llama history export k7mp talk.md
    """
    conversation = _history().read(conversation_id)
    exporting.export(conversation.all_messages, file, force=force)
    note(f"exported: {file}, {_count(len(conversation.messages), 'message')}, {file.stat().st_size:,} bytes")


@VERBS.command()
def search(
    words: Annotated[list[str], typer.Argument(help="Words, or how they begin; a message has all of them.")],
    limit: Limit = None,
    as_json: options.Json = False,
) -> None:
    """Search what was said. Exit code 1: nothing was found.

    Example: edge-llama history search capital japan
    """
    hits = _history().search(" ".join(words), limit)
    if as_json:
        _print_json([{**_described(entry), "role": hit.role, "excerpt": hit.excerpt} for entry, hit in hits])
    else:
        _print_table([(entry, _excerpt(hit)) for entry, hit in hits])
    if not hits:
        note("nothing was found")
        raise typer.Exit(1)


@VERBS.command()
def delete(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Ids, or how they begin.", autocompletion=completed)
    ] = None,
    delete_all: Annotated[
        bool, typer.Option("--all", help="Delete all conversations, and damaged databases that were set aside.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Don't ask.")] = False,
) -> None:
    """Delete conversations and their KV caches, so that nothing of them can be read any more.

    Example: edge-llama history delete k7mp
    """
    if bool(ids) == delete_all:
        raise OptionError("delete takes ids or --all", remedy="edge-llama history list shows the ids")
    history = _history()
    found = history.entries()
    if ids:
        wanted = {history.whole_id(beginning) for beginning in ids}
        found = [entry for entry in found if entry.id in wanted]
    if not force and not _is_confirmed(found):
        note("nothing is deleted")
        raise typer.Exit(1)
    if delete_all:
        history.delete_all()
    else:
        history.delete(entry.id for entry in found)
    note(f"deleted: {_count(len(found), 'conversation')}")


def _is_confirmed(entries: list[Entry]) -> bool:
    if not sys.stdin.isatty():
        raise OptionError("without a terminal nobody can be asked", remedy="--force deletes without asking")
    for entry in entries:
        note(f"{entry.id}  {_when(entry.updated)}  {_count(entry.n_messages, 'message')}  {entry.title}")
    return typer.confirm(f"Delete {_count(len(entries), 'conversation')} for good?", err=True)


def _history() -> History:
    if (place := folder()) is None:
        raise HistoryError(f"the history is off: {FOLDER_VARIABLE} is {OFF}", remedy="unset the variable")
    return History(place, note)


def _described(about: Entry | Conversation) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": about.id,
        "title": about.title,
        "model": {"name": about.model, "path": about.model_path, "identity": about.identity},
        "created": _iso(about.created),
        "updated": _iso(about.updated),
    }
    if isinstance(about, Entry):
        return data | {"n_messages": about.n_messages}
    return data | {"system": about.system, "messages": [message.to_json() for message in about.messages]}


def _transcript(conversation: Conversation) -> Iterable[str]:
    count = _count(len(conversation.messages), "message")
    yield f"{conversation.id}  {_when(conversation.updated)}  {conversation.model}  {count}"
    if conversation.system is not None:
        yield f"\nsystem: {conversation.system}"
    for message in conversation.messages:
        yield from _turn(message)


def _turn(message: Message) -> Iterable[str]:
    if message.role == "user":
        yield "\n> " + message.shown
    elif message.role == "tool":
        yield f"{message.name or 'tool'}: {message.content}"
    elif message.content:
        yield message.content
    for call in message.tool_calls:
        yield exporting.called(call)


def _print_table(rows: list[tuple[Entry, str]]) -> None:
    cells = [
        (entry.id, _when(entry.updated), entry.model, _count(entry.n_messages, "message"), text) for entry, text in rows
    ]
    from rich.cells import cell_len  # noqa: PLC0415 - names may be in letters that take two cells

    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        _print("  ".join(padded).rstrip())


def _excerpt(hit: Found) -> str:
    return f"> {hit.excerpt}" if hit.role == "user" else hit.excerpt


def _print(text: str) -> None:
    """What was said may hold what a terminal would obey."""
    print(harmless(text))  # noqa: T201


def _print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False))  # noqa: T201


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

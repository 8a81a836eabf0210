"""Conversations on disk: what was said in an SQLite database, and KV caches as session files beside it.

    FOLDER/history.db          every message; see database.py
    FOLDER/kv/ID.session       what the model had prefilled when the chat was left; see runtime/disk_cache.py

The messages are what counts. KV files, which models read and write, only save prefilling them again.
"""

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from edge_llama.errors import HistoryError
from edge_llama.history.database import Database
from edge_llama.history.search import Found, search
from edge_llama.prompts.messages import Message

FOLDER_VARIABLE = "EDGE_LLAMA_HISTORY"
OFF = "off"
_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that are taken for another: i l o 0 1
_TITLE = 60  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A conversation without its messages; times are seconds since 1970, ``n_messages`` leaves out the system's."""

    id: str
    title: str
    model: str
    model_path: str
    identity: str
    created: float
    updated: float
    n_messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """All that was said, and what of it the model has before it.

    When a chat outgrew its context, ``head`` (a summary, or nothing) stands in place of the first ``replaced``
    messages. ``identity`` tells models apart; ``revision`` counts what was stored.
    """

    messages: tuple[Message, ...]
    model: str
    model_path: str
    identity: str
    system: str | None = None
    head: tuple[Message, ...] = ()
    replaced: int = 0
    id: str = ""
    title: str = ""
    revision: int = 0
    created: float = 0.0
    updated: float = 0.0

    @property
    def context(self) -> list[Message]:
        """What the model goes on from."""
        return [*self._first, *self.head, *self.messages[self.replaced :]]

    @property
    def all_messages(self) -> list[Message]:
        """All that was said, with the system message before it."""
        return [*self._first, *self.messages]

    @property
    def _first(self) -> list[Message]:
        return [] if self.system is None else [Message("system", self.system)]


def folder() -> Path | None:
    """``$EDGE_LLAMA_HISTORY``, else a folder of the user's data; None if the variable says ``off``.

    HistoryError if the user has no home.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named == OFF:
        return None
    if named:
        return Path(named)
    import platformdirs  # noqa: PLC0415 - only when a chat begins

    try:
        return platformdirs.user_data_path("edge-llama", appauthor=False) / "history"
    except RuntimeError as error:  # as in a container that runs under a number nobody has
        raise HistoryError(
            f"no folder for the history: {error}", remedy=f"set {FOLDER_VARIABLE}, or use --no-history"
        ) from error


class History:
    """The conversations in a folder. Any number of processes may use it at once.

    Every method may raise HistoryError. ``tell`` is called with what a person should know: a damaged database is set
    aside and a new one begun.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.kv_folder = folder / "kv"
        """Where models keep the KV caches of conversations: their ``cache_dir``."""
        self._database = Database(folder / "history.db", tell)

    @property
    def times_set_aside(self) -> int:
        """How often a damaged database was set aside here."""
        return self._database.times_set_aside

    def entries(self, limit: int | None = None) -> list[Entry]:
        """The latest conversations, the last one first."""
        return self._database.read(lambda db: _entries(db, limit))

    def read(self, conversation_id: str) -> Conversation:
        """The conversation with this id, or the only one whose id begins so."""
        return self._database.read(lambda db: _read(db, _resolved(db, conversation_id)))

    def latest(self) -> Conversation:
        """The conversation that was last added to."""

        def latest(db: sqlite3.Connection) -> Conversation:
            if not (entries := _entries(db, 1)):
                raise HistoryError("there is no conversation to continue", remedy="begin one: edge-llama chat")
            return _read(db, entries[0].id)

        return self._database.read(latest)

    def whole_id(self, beginning: str) -> str:
        """The only id that begins so."""
        return self._database.read(lambda db: _resolved(db, beginning))

    def search(self, words: str, limit: int | None = None) -> list[tuple[Entry, Found]]:
        """Conversations with a message that has all these words, or their beginnings; else parts of words."""

        def searched(db: sqlite3.Connection) -> list[tuple[Entry, Found]]:
            found = {hit.conversation: hit for hit in search(db, words)}
            return [(entry, found[entry.id]) for entry in _entries(db, None) if entry.id in found]

        return self._database.read(searched)[:limit]

    def create(self, conversation: Conversation) -> Conversation:
        """Store a new one; as it is stored, with its id, its title and times."""
        now = time.time()
        new = replace(conversation, title=_title(conversation.messages), revision=1, created=now, updated=now)

        def insert(db: sqlite3.Connection) -> Conversation:
            stored = replace(new, id=_new_id(db))
            db.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (stored.id, stored.title, *_row(stored), stored.revision, stored.created, stored.updated),
            )
            _put(db, stored, 0)
            return stored

        return self._database.write(insert)

    def update(self, conversation: Conversation, first: int) -> Conversation | Literal["changed", "gone"]:
        """Store what became of a conversation whose messages before ``first`` are as they were.

        Nothing is stored if another process has ``changed`` it since it was read, or it was deleted.
        """
        new = replace(conversation, revision=conversation.revision + 1, updated=time.time())

        def update(db: sqlite3.Connection) -> Conversation | Literal["changed", "gone"]:
            row = db.execute("SELECT revision FROM conversations WHERE id = ?", (new.id,)).fetchone()
            if row is None or row[0] != conversation.revision:
                return "gone" if row is None else "changed"
            db.execute(
                "UPDATE conversations SET model = ?, model_path = ?, identity = ?, system = ?, head = ?, replaced = ?, "
                "revision = ?, updated = ? WHERE id = ?",
                (*_row(new), new.revision, new.updated, new.id),
            )
            db.execute("DELETE FROM messages WHERE conversation = ? AND position >= ?", (new.id, first))
            _put(db, new, first)
            return new

        return self._database.write(update)

    def has(self, conversation_id: str) -> bool:
        """Whether it is there."""
        found = "SELECT 1 FROM conversations WHERE id = ?"
        return self._database.read(lambda db: db.execute(found, (conversation_id,)).fetchone() is not None)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete conversations by their whole ids, and their KV files, so that nothing of them can be read."""
        gone = [(conversation_id,) for conversation_id in ids]
        self._database.erase(lambda db: db.executemany("DELETE FROM conversations WHERE id = ?", gone))
        for (conversation_id,) in gone:
            self._remove_kv(f"{conversation_id}.session")
            self._remove_kv(f".{conversation_id}.session.*")  # whose writer was killed

    def delete_all(self) -> None:
        """Delete every conversation and every KV file, also damaged databases that were set aside."""
        self._database.erase(lambda db: db.execute("DELETE FROM conversations"))
        self._remove_kv("*")
        for copy in self._database.copies_set_aside():
            copy.unlink(missing_ok=True)

    def kv_file(self, conversation_id: str) -> Path:
        """Where the KV cache of a conversation is kept, if it is."""
        return self.kv_folder / f"{conversation_id}.session"

    def _remove_kv(self, pattern: str) -> None:
        for path in self.kv_folder.glob(pattern):
            path.unlink(missing_ok=True)


def _entries(db: sqlite3.Connection, limit: int | None) -> list[Entry]:
    rows = db.execute(
        "SELECT id, title, model, model_path, identity, created, updated, "
        "(SELECT count(*) FROM messages WHERE conversation = id) FROM conversations "
        "ORDER BY updated DESC, created DESC LIMIT ?",
        (-1 if limit is None else limit,),
    )
    names = Entry.__slots__
    return [Entry(**dict(zip(names, row, strict=True))) for row in rows]


def _resolved(db: sqlite3.Connection, beginning: str) -> str:
    wanted = beginning.lower()
    rows = db.execute("SELECT id FROM conversations WHERE substr(id, 1, ?) = ?", (len(wanted), wanted)).fetchall()
    ids = sorted(row[0] for row in rows)
    if wanted in ids:
        return wanted
    if len(ids) == 1 and wanted:
        return str(ids[0])
    if not ids or not wanted:
        raise HistoryError(f"no conversation {beginning!r}", remedy="edge-llama history list shows them")
    raise HistoryError(f"{beginning!r} begins several conversations: {', '.join(ids)}", remedy="give more of the id")


def _read(db: sqlite3.Connection, conversation_id: str) -> Conversation:
    row = db.execute(
        "SELECT id, title, model, model_path, identity, system, head, replaced, revision, created, updated "
        "FROM conversations WHERE id = ?",
        (conversation_id,),
    ).fetchone()
    rows = db.execute("SELECT message FROM messages WHERE conversation = ? ORDER BY position", (conversation_id,))
    try:
        return Conversation(
            messages=tuple(Message.from_json(json.loads(text)) for (text,) in rows),
            head=tuple(map(Message.from_json, json.loads(row[6]))),
            **dict(zip(("id", "title", "model", "model_path", "identity", "system"), row, strict=False)),
            **dict(zip(("replaced", "revision", "created", "updated"), row[7:], strict=True)),
        )
    except (ValueError, TypeError) as error:
        raise HistoryError(
            f"conversation {conversation_id} can't be understood: {error}",
            remedy="a newer edge-llama may have written it: use that, or delete it",
        ) from error


def _row(conversation: Conversation) -> tuple[object, ...]:
    head = json.dumps([message.to_json() for message in conversation.head], ensure_ascii=False)
    model = (conversation.model, conversation.model_path, conversation.identity)
    return (*model, conversation.system, head, conversation.replaced)


def _put(db: sqlite3.Connection, conversation: Conversation, first: int) -> None:
    as_json = partial(json.dumps, ensure_ascii=False)
    new = enumerate(conversation.messages[first:], first)
    rows = [(conversation.id, at, as_json(message.to_json())) for at, message in new]
    db.executemany("INSERT INTO messages VALUES (?, ?, ?)", rows)


def _new_id(db: sqlite3.Connection) -> str:
    """Four letters; one more whenever so many are taken that ten in turn were."""
    for draw in range(10_000):
        drawn = "".join(secrets.choice(_ID_LETTERS) for _ in range(4 + draw // 10))
        if db.execute("SELECT 1 FROM conversations WHERE id = ?", (drawn,)).fetchone() is None:
            return drawn
    raise AssertionError("ids of a thousand letters are never all taken")


def _title(messages: Sequence[Message]) -> str:
    """The first words of the first question, or which files it shows if it has none."""
    question = next((message for message in messages if message.role == "user"), None)
    said = (question.own_text.strip() or question.shown) if question else ""
    text = " ".join(said[: 20 * _TITLE].split())
    if len(text) <= _TITLE:
        return text
    words = text[:_TITLE].rpartition(" ")[0]
    return f"{words or text[: _TITLE - 1]}…"

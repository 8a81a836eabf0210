"""Finding messages by their words.

The index is made for each search, in memory: it takes 0.1 s for a thousand long answers, a database that any build of
SQLite reads stays one, and what is deleted has no words left in an index.
"""

import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from edge_llama.errors import OptionError

_SHOWN = 40  # characters on each side of a word that was found


@dataclass(frozen=True, slots=True)
class Found:
    """The best place in a conversation: who said it, and the text around it on one line."""

    conversation: str
    role: str
    excerpt: str


def search(db: sqlite3.Connection, words: str) -> list[Found]:
    """Messages that have all ``words``: as words or their beginnings, or else anywhere, as within compound words.

    One for each conversation. Upper and lower case are the same, in the first way accents too. The index knows letters
    and digits only, so what has other characters is looked for in the second way alone.
    """
    wanted = words.split()
    if not wanted:
        raise OptionError("there are no words to search for", remedy="give some: edge-llama history search WORDS")
    found = list(_by_words(db, wanted)) if all(map(str.isalnum, wanted)) else []
    found = found or list(_by_parts(db, wanted))
    first: dict[str, Found] = {}
    for hit in found:
        first.setdefault(hit.conversation, hit)
    return list(first.values())


def _texts(db: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """Conversation, role and all text of each message, calls of tools included."""
    for conversation, data in db.execute("SELECT conversation, message FROM messages ORDER BY conversation, position"):
        message = json.loads(data)
        calls = [call["function"] for call in message.get("tool_calls", ())]
        content = message["content"]
        if not isinstance(content, str):  # with images
            content = "".join(part["text"] for part in content if part["type"] == "text")
        parts = [content, *(f"{call['name']} {call['arguments']}" for call in calls)]
        yield conversation, message["role"], "\n".join(parts)


def _by_words(db: sqlite3.Connection, wanted: list[str]) -> Iterator[Found]:
    try:
        db.execute(
            "CREATE VIRTUAL TABLE temp.words USING "
            "fts5(conversation UNINDEXED, role UNINDEXED, text, tokenize = 'unicode61 remove_diacritics 2')"
        )
    except sqlite3.OperationalError:  # SQLite was built without it
        return
    db.executemany("INSERT INTO temp.words VALUES (?, ?, ?)", _texts(db))
    query = " ".join(f'"{word}"*' for word in wanted)
    rows = db.execute(
        "SELECT conversation, role, snippet(words, 2, '', '', '…', 16) FROM temp.words WHERE words MATCH ? "
        "ORDER BY rank",
        (query,),
    )
    for conversation, role, excerpt in rows:
        yield Found(conversation, role, " ".join(excerpt.split()))


def _by_parts(db: sqlite3.Connection, wanted: list[str]) -> Iterator[Found]:
    patterns = [re.compile(re.escape(word), re.IGNORECASE) for word in wanted]
    for conversation, role, text in _texts(db):
        places = [pattern.search(text) for pattern in patterns]
        if all(places) and (place := places[0]):
            start, end = max(0, place.start() - _SHOWN), place.end() + _SHOWN
            excerpt = " ".join(text[start:end].split())
            yield Found(conversation, role, f"{'…' * (start > 0)}{excerpt}{'…' * (end < len(text))}")

"""The file that holds the history: an SQLite database that is opened for each piece of work and closed after it.

So nothing is held while a chat waits all day: other processes work in between, and a process that is killed leaves at
most a write-ahead log, which SQLite puts in order by itself. Every write is one transaction, synced before it counts.
"""

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from edge_llama.errors import HistoryError
from edge_llama.host.windows import move

VERSION = 1
_WAIT = 5.0  # seconds that another process may hold the lock
_SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    model TEXT NOT NULL,
    model_path TEXT NOT NULL,
    identity TEXT NOT NULL,
    system TEXT,
    head TEXT NOT NULL,
    replaced INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE TABLE messages (
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (conversation, position)
) WITHOUT ROWID;
"""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_IN_PROCESS = threading.RLock()
"""POSIX locks belong to the process: when one thread closes the file, those of all its threads are lost."""
_Result = TypeVar("_Result")


class _DamagedError(Exception):
    """The database can't be trusted."""


class Database:
    """The database at ``path``. A damaged one is set aside under another name and a new one begun, which is told."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self.path = path
        self.times_set_aside = 0
        self._tell = tell
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), mode=0o600)
        self._is_checked = False

    def read(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """What ``work`` gives; it sees one state of the database, whatever others write meanwhile."""
        return self._do("BEGIN", work)

    def write(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Do ``work`` whole or not at all. HistoryError if the database can't be used, or is locked for too long."""
        return self._do("BEGIN IMMEDIATE", work)

    def erase(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Write, and leave nothing of what it deletes in the files."""
        done = self.write(work)

        def rewrite(db: sqlite3.Connection) -> None:
            db.execute("VACUUM")
            is_busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if is_busy:
                raise HistoryError(
                    f"{self.path}: what was deleted is still in its log, which another process reads",
                    remedy="close other chats, and delete again",
                )

        self._do(None, rewrite)
        return done

    def copies_set_aside(self) -> list[Path]:
        """Damaged databases that were set aside, and what belongs to them."""
        return sorted(self.path.parent.glob(f"{self.path.name}*.damaged-*"))

    def _do(self, begin: str | None, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        try:
            with _IN_PROCESS:
                try:
                    return self._once(begin, work)
                except _DamagedError:
                    self._set_aside()
                    return self._once(begin, work)
        except _DamagedError as error:
            raise HistoryError(f"{self.path}: damaged again at once: {error}", remedy="check the disk") from error
        except OSError as error:
            raise HistoryError(f"{self.path}: cannot be used: {error.strerror or error}", remedy=_ELSEWHERE) from error

    def _once(self, begin: str | None, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        with self._opened() as db:
            if not self._is_checked:
                self._check(db)
            if begin is None:
                return work(db)
            db.execute(begin)
            try:
                done = work(db)
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # it may have ended by itself, as on a full disk
                    db.execute("ROLLBACK")
                raise
            return done

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        self._make_private()
        db: sqlite3.Connection | None = None
        try:
            # autocommit: transactions begin and end where this file says so.
            db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
            self._prepare(db)
            yield db
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        finally:
            if db is not None:
                db.close()

    def _make_private(self) -> None:
        """Have the folder and the file, for nobody but their owner; SQLite gives its log the mode of the file."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with suppress(FileNotFoundError):  # set aside by another process, just now: SQLite makes a new one
            if stat.S_IMODE(self.path.stat().st_mode) & 0o077 and os.name != "nt":
                self.path.chmod(0o600)

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Settings of the connection; a new database gets its tables."""
        db.execute("BEGIN")
        version = self._checked_version(db)
        db.execute("COMMIT")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA temp_store = MEMORY")  # what people said stays out of the system's temporary folder
        if version == 0:
            with self._lock:  # SQLite does not wait where several change the journal's mode
                self._begin(db)

    def _begin(self, db: sqlite3.Connection) -> None:
        """Make the tables, unless another process was faster."""
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        if self._checked_version(db) == 0:
            for statement in _SCHEMA.split(";")[:-1]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    def _checked_version(self, db: sqlite3.Connection) -> int:
        """0 for a new database. Within a transaction, so that version and tables are of one moment."""
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise HistoryError(
                f"{self.path}: written by a newer edge-llama (version {version}, this one knows {VERSION})",
                remedy="use the newer one, or --no-history",
            )
        if version == 0 and (table := db.execute("SELECT name FROM sqlite_master").fetchone()):
            raise HistoryError(f"{self.path}: another program's database, with {table[0]!r}", remedy=_ELSEWHERE)
        return version

    def _check(self, db: sqlite3.Connection) -> None:
        """Once for each process: look at every page, since damage is seldom where one happens to read."""
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise _DamagedError(found)
        self._is_checked = True

    def _meaning(self, error: sqlite3.Error) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells kinds of the same error apart
        if code in _DAMAGE:
            return _DamagedError(str(error))
        if code in _BUSY:
            return HistoryError(
                f"{self.path}: locked by another process for more than {_WAIT:g} seconds",
                remedy="wait for it, or use --no-history",
            )
        return HistoryError(f"{self.path}: cannot be used: {error}", remedy=_ELSEWHERE)

    def _set_aside(self) -> None:
        with self._lock:
            try:  # another process may have done it meanwhile
                with self._opened() as db:
                    self._check(db)
                return
            except _DamagedError as error:
                problem = str(error)
            ending = f".damaged-{time.strftime('%Y%m%d-%H%M%S')}"
            aside = self.path.with_name(self.path.name + ending)
            for name in ("-wal", "-shm", ""):
                part = self.path.with_name(self.path.name + name)
                try:
                    move(part, part.with_name(part.name + ending))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise HistoryError(
                        f"{self.path}: damaged ({problem}), and can't be set aside: {error.strerror or error}",
                        remedy=_ELSEWHERE,
                    ) from error
            self.times_set_aside += 1
        self._tell(f"the history was damaged ({problem}): it is set aside as {aside}, and a new one begun")


_ELSEWHERE = "set EDGE_LLAMA_HISTORY to another folder, or use --no-history"

"""Responses that can be asked for again, and gone on with: in memory, or as files that a restart finds."""

import json
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_llama.errors import OutputError
from edge_llama.host.atomic import new_file
from edge_llama.server.failures import encoded

_log = logging.getLogger("edge_llama.server")
_ID = re.compile(r"resp_[0-9a-f]{32}")
"""No other name is looked for: a request can't name any file but those that are written here."""
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, and the conversation that it ended: what the model read, and its own items."""

    response: Mapping[str, Any]
    read: list[dict[str, Any]]
    """Items: the earlier conversation's, and the request's."""

    @property
    def items(self) -> list[dict[str, Any]]:
        """The whole conversation."""
        return [*self.read, *self.response["output"]]


@dataclass(slots=True)
class _Entry:
    """Where a record is: in ``data``, or written to its file."""

    size: int
    data: bytes | None


class ResponseStore:
    """Any thread may use it. Beyond its number or bytes the least recently used are forgotten; the newest never is.

    A thread of its own keeps one after another. With a folder it writes them there, nobody but the owner may read them,
    and those that lie there already are found. Files of other names are left alone.
    """

    def __init__(self, folder: Path | None, *, max_number: int, max_bytes: int) -> None:
        """OutputError if the folder can't be."""
        self._folder = folder
        self._max_number, self._max_bytes = max_number, max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """The least recently used first."""
        self._bytes = 0
        self._kept = threading.Condition(self._lock)
        self._count_put = self._count_kept = 0
        """How many were put so far, and how many of them are kept."""
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="edge-llama responses")
        if folder:
            self._find(folder)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, stored: Stored) -> None:
        """Have it kept, by the response's id: this does not wait, :meth:`get` and :meth:`delete` do."""
        name = stored.response["id"]
        with self._lock:
            self._writing.submit(self._keep, name, stored)
            self._count_put += 1

    def _keep(self, name: str, stored: Stored) -> None:
        try:
            self._put_record(name, _record(stored))
        except Exception as error:
            _log.warning("a response is not kept: %s", type(error).__name__)
        finally:
            with self._kept:
                self._count_kept += 1
                self._kept.notify_all()

    def _put_record(self, name: str, data: bytes) -> None:
        with self._lock:
            self._drop(name)
            self._add(name, _Entry(len(data), data))
            self._make_room()
            if self._folder:
                self._writing.submit(self._write, self._folder, name)

    def _wait(self) -> None:
        """Until all are kept that were put before. The lock is held."""
        count = self._count_put
        self._kept.wait_for(lambda: self._count_kept >= count)

    def get(self, name: str) -> Stored | None:
        """The one of that id; None if it isn't kept, or is damaged. It may take a while, and read a file."""
        with self._kept:
            self._wait()
            entry = self._entries.get(name)
            if entry is None:
                return None
            self._entries.move_to_end(name)
            data = entry.data
        return _stored(data if data is not None else self._read(name))

    def delete(self, name: str) -> bool:
        """Forget it; False if it isn't kept."""
        with self._kept:
            self._wait()
            return self._drop(name)

    def close(self) -> None:
        """Wait until all is kept, and written."""
        with self._kept:
            self._wait()
        self._writing.shutdown()

    def _find(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = [path for path in folder.iterdir() if path.suffix == _SUFFIX and _ID.fullmatch(path.stem)]
            known = sorted((path.stat().st_mtime_ns, path.stem, path.stat().st_size) for path in found)
        except OSError as error:
            raise OutputError(
                f"{folder}: responses can't be kept there: {error.strerror}", remedy="give a folder that can be written"
            ) from error
        with self._lock:
            for _, name, size in known:
                self._add(name, _Entry(size, None))
            self._make_room()

    def _add(self, name: str, entry: _Entry) -> None:
        self._entries[name] = entry
        self._bytes += entry.size

    def _make_room(self) -> None:
        while len(self._entries) > 1 and (len(self._entries) > self._max_number or self._bytes > self._max_bytes):
            self._drop(next(iter(self._entries)))

    def _drop(self, name: str) -> bool:
        """Its file is deleted by the thread that may be writing it."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return False
        self._bytes -= entry.size
        if self._folder:
            self._writing.submit(_remove, self._path(self._folder, name))
        return True

    def _write(self, folder: Path, name: str) -> None:
        with self._lock:
            entry = self._entries.get(name)
        if entry is None or entry.data is None:
            return
        try:
            with new_file(self._path(folder, name), is_private=True) as file:
                file.write(entry.data)
        except OSError as error:
            _log.warning("%s: a response stays in memory alone: %s", folder, error)
            return
        with self._lock:
            entry.data = None

    def _read(self, name: str) -> bytes | None:
        assert self._folder  # noqa: S101 - only then data is not in memory
        path = self._path(self._folder, name)
        try:
            os.utime(path)  # the least recently used goes first after a restart too
            return path.read_bytes()
        except OSError as error:
            _log.warning("%s: a response can't be read: %s", path, error)
            return None

    def _path(self, folder: Path, name: str) -> Path:
        return folder / f"{name}{_SUFFIX}"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s: a response can't be deleted: %s", path, error)


def _record(stored: Stored) -> bytes:
    """Item by item: while one is put into JSON no other thread runs."""
    return b'{"response":%s,"read":[%s]}' % (encoded(stored.response), b",".join(map(encoded, stored.read)))


def _stored(data: bytes | None) -> Stored | None:
    if data is None:
        return None
    try:
        record = json.loads(data)
        return Stored(record["response"], record["read"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _log.warning("a kept response is damaged: %s", error)
        return None

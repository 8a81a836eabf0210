"""Sequences of the engine's cache on disk, which outlive the process: a folder for all models, under one cap.

Each is a session file without messages (:mod:`edge_llama.runtime.session_file`), readable by its owner only:
``TAG.session``, the last of a conversation, or ``-HASH.session`` if it is of none. Files appear whole, so processes may
share the folder: a file that another has removed is as good as none.
"""

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import EdgeLlamaError, OptionError, OutputError, SessionError
from edge_llama.host.atomic import PARTIAL
from edge_llama.runtime import session_file
from edge_llama.runtime.session_file import SavedChat, State

_log = logging.getLogger(__name__)
LIMIT_VARIABLE = "EDGE_LLAMA_HISTORY_KV_BYTES"
SUFFIX = ".session"
UNTAGGED = "-"
_BYTES = 4_000_000_000
_ABANDONED = 3600  # seconds


@dataclass(eq=False, slots=True)
class Stored:
    """A sequence on disk: its ``tokens``, int32 ``(n,)``."""

    path: Path
    tokens: NDArray[np.int32]

    @property
    def tag(self) -> str:
        """Of which conversation it is; "" if of none."""
        return "" if self.path.name.startswith(UNTAGGED) else self.path.name.removesuffix(SUFFIX)


class DiskCache:
    """What a folder has of one model with its settings. ``write`` and ``remove`` may be called by any thread."""

    def __init__(
        self, folder: Path, model: str, identity: str, settings: Mapping[str, Any], needed: Mapping[str, Any]
    ) -> None:
        """``needed``: what the engine's bytes depend on, a part of the ``settings``. OutputError for a bad folder."""
        self._folder = folder
        self._model, self._identity, self._settings, self._needed = model, identity, dict(settings), dict(needed)
        self.keeps_untagged = True
        """Whether sequences are kept that are of no conversation."""
        self.refused: dict[str, str] = {}
        """Why what there is of a conversation can't be used, by its tag."""
        self._forgotten: set[str] = set()
        self._pending: dict[Path, State] = {}
        """What will be written."""
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[State | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: can't be made: {error.strerror or error}", remedy="name another") from error

    def entries(self) -> list[Stored]:
        """What can be used, the least recently used first; by the files' beginnings: they may be damaged yet."""
        found = []
        for path in sorted(self._files(), key=_used):
            try:
                about = session_file.peek(path)
            except SessionError as error:
                _log.debug("%s", error)
                continue
            stored = Stored(path, about.tokens)
            if about.identity != self._identity or not len(about.tokens):
                continue
            if reason := difference(about.settings, self._needed):
                self.refused[stored.tag] = reason
            else:
                found.append(stored)
        return found

    def load(self, stored: Stored) -> State | None:
        """What was stored; None if it is gone or damaged, which is told: then it is removed."""
        with self._lock:
            if (pending := self._pending.get(stored.path)) is not None:
                return pending
        try:
            state = session_file.read(stored.path).state
            os.utime(stored.path)
        except (SessionError, OSError) as error:
            if stored.path.exists():
                _log.warning("a conversation that was kept can't be used, it is prefilled again: %s", error)
                self.remove(stored)
            return None
        if state is not None:
            state.tag = stored.tag
        return state

    def write(self, state: State) -> None:
        """Keep a sequence, in place of those that went before. OutputError if it can't be written."""
        session_file.write(self._path(state), SavedChat(self._model, self._identity, self._settings, (), state))
        self._make_room()

    def _path(self, state: State) -> Path:
        key = repr((self._identity, sorted(self._needed.items()))).encode()
        name = state.tag or f"{UNTAGGED}{hashlib.sha256(state.tokens.tobytes() + key).hexdigest()[:16]}"
        return self._folder / f"{name}{SUFFIX}"

    def put(self, state: State) -> Stored | None:
        """Have a thread :meth:`write` it, a failure is told in the log; None if it is not to be kept.

        It can be loaded from now on.
        """
        if state.tag in self._forgotten or not (state.tag or self.keeps_untagged):
            return None
        stored = Stored(self._path(state), state.tokens)
        with self._lock:
            self._pending[stored.path] = state
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="edge-llama-disk", daemon=True)
            self._thread.start()
        self._jobs.put(state)
        return stored

    def forget(self, tag: str) -> None:
        """Keep nothing of a conversation, also of what is being written."""
        path = self._folder / f"{tag}{SUFFIX}"
        with self._lock:
            self._forgotten.add(tag)
            self._pending.pop(path, None)
        path.unlink(missing_ok=True)

    def remove(self, stored: Stored) -> None:
        """Keep it no longer."""
        with suppress(OSError):
            stored.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait until all is written."""
        if self._thread:
            self._jobs.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (state := self._jobs.get()) is not None:
            path = self._path(state)
            if self._pending.get(path) is not state:
                continue  # forgotten, or a later one waits
            try:
                self.write(state)
            except EdgeLlamaError as error:
                _log.warning("%s tokens can't be kept on disk: %s", f"{len(state.tokens):,}", error)
            with self._lock:
                if self._pending.get(path) is state:
                    del self._pending[path]
                if state.tag in self._forgotten:  # meanwhile
                    path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if path.suffix == SUFFIX]
        except OSError:
            return []

    def _make_room(self) -> None:
        """Remove the least recently used files beyond the limit, and what killed writers left."""
        for path in self._folder.glob(f".*{SUFFIX}.*{PARTIAL}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        sizes = [(path, path.stat().st_size) for path in sorted(self._files(), key=_used) if path.exists()]
        used, limit = sum(size for _, size in sizes), limit_bytes(self._folder)
        for path, size in sizes:
            if used <= limit:
                return
            path.unlink(missing_ok=True)
            used -= size


def limit_bytes(folder: Path) -> int:
    """Bytes that a folder may take: ``$EDGE_LLAMA_HISTORY_KV_BYTES``, else 4 GB or a tenth of the free disk."""
    if given := os.environ.get(LIMIT_VARIABLE):
        if not given.isdecimal():
            raise OptionError(f"{LIMIT_VARIABLE} is {given!r}", remedy="give a number of bytes")
        return int(given)
    return min(_BYTES, shutil.disk_usage(folder).free // 10)


def difference(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """What differs between the settings that made an engine's bytes and those here."""
    odd = [f"{key} was {saved.get(key)} and is {value}" for key, value in here.items() if saved.get(key) != value]
    return ", ".join(odd) or None


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

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
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet
from edge_llama.backends.base import TextTower
from edge_llama.errors import EdgeLlamaError, OptionError, OutputError, SessionError
from edge_llama.files.artifact import Artifact
from edge_llama.host.atomic import PARTIAL
from edge_llama.runtime import session_file
from edge_llama.runtime.session_file import SavedChat, State

_log = logging.getLogger(__name__)
LIMIT_VARIABLE = "EDGE_LLAMA_HISTORY_KV_BYTES"
SUFFIX = ".session"
UNTAGGED = "-"
_BYTES = 4_000_000_000
_ABANDONED = 3600  # seconds
_BEFORE: Mapping[str, Any] = {"device": "cpu"}
"""What was so before it was kept."""


Loading = Future[State | None]
"""A file that is being read: its sequence, or None if it is gone or damaged."""


@dataclass(eq=False, slots=True)
class Stored:
    """A sequence on disk: its ``tokens``, int32 ``(n,)``."""

    path: Path
    tokens: NDArray[np.int32]
    adapters: AdapterSet = ()
    """What it was computed with."""

    @property
    def tag(self) -> str:
        """Of which conversation it is; "" if of none."""
        return "" if self.path.name.startswith(UNTAGGED) else self.path.name.removesuffix(SUFFIX)


class DiskCache:
    """What a folder has of one model with its settings. Any thread may use it."""

    def __init__(
        self,
        folder: Path,
        model: str,
        identity: str,
        settings: Mapping[str, Any],
        needed: Mapping[str, Any],
        n_ctx: int,
        *,
        keeps_untagged: bool = True,
    ) -> None:
        """``needed``: what the engine's bytes depend on, a part of the ``settings``; ``n_ctx``: tokens that it takes.

        ``keeps_untagged``: whether sequences are kept that are of no conversation. OutputError for a folder that can't
        be made.
        """
        self._folder = folder
        self._model, self._identity, self._settings, self._needed = model, identity, dict(settings), dict(needed)
        self._n_ctx = n_ctx
        self.keeps_untagged = keeps_untagged
        self._refused: dict[str, str] = {}
        """Why what there is of a conversation can't be used, by its tag."""
        self._forgotten: set[str] = set()
        self._outlived: set[Path] = set()
        """Files that had to go for others: what is in memory of them is not written again in place of those."""
        self._pending: dict[Path, State] = {}
        """What will be written."""
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[State | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._fails = False
        self._readers: ThreadPoolExecutor | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: can't be made: {error.strerror or error}", remedy="name another") from error

    def entries(self) -> list[Stored]:
        """What can be used, the least recently used first; by the files' beginnings: they may be damaged yet."""
        found = (self._found(path) for path in sorted(self._files(), key=_used))
        return [stored for stored in found if stored]

    def why_not_kept(self, tag: str) -> str | None:
        """Why nothing of a conversation can be used; None if something can, or could when it was loaded."""
        gone = None if (self._folder / f"{tag}{SUFFIX}").exists() else "its KV cache is not kept any more"
        return self._refused.get(tag) or gone

    def load(self, stored: Stored) -> State | None:
        """What was stored; None if it is gone or damaged, which is told: then it is removed."""
        if pending := self._pending.get(stored.path):
            return pending
        try:
            state = session_file.read(stored.path).state
        except SessionError as error:
            if stored.path.exists():
                _log.warning("a conversation that was kept can't be used, it is prefilled again: %s", error)
                self._refused[stored.tag] = str(error)
                self.remove(stored)
            return None
        with suppress(OSError):  # as in a folder that may not be written
            os.utime(stored.path)
        if state is not None:
            state.tag = stored.tag
        return state

    def load_apart(self, stored: Stored, on_done: Callable[[], None]) -> Loading:
        """:meth:`load` it in a thread; ``on_done`` is called then."""
        self._readers = self._readers or ThreadPoolExecutor(1, "edge-llama-disk-reader")
        loading = self._readers.submit(self.load, stored)
        loading.add_done_callback(lambda _: on_done())
        return loading

    def write(self, state: State) -> Stored | None:
        """Keep a sequence, in place of the conversation's last; None if it shall not be. OutputError if it can't be."""
        if not self._is_kept(state):
            return None
        path = self._path(state)
        try:
            limit = limit_bytes(self._folder)
            if state.nbytes > limit:
                _log.info("%s: %s bytes are not kept: the limit is %s", path, f"{state.nbytes:,}", f"{limit:,}")
                path.unlink(missing_ok=True)  # what went before is of no use without
                return None
            self._outlived.discard(path)
            session_file.write(path, SavedChat(self._model, self._identity, self._settings, (), state))
            self._refused.pop(state.tag, None)
            if state.tag in self._forgotten:  # since it was begun
                path.unlink(missing_ok=True)
            self._make_room(limit)
        except OSError as error:
            raise OutputError(f"{path}: can't be kept: {error.strerror or error}") from error
        return Stored(path, state.tokens, state.adapters)

    def keep(self, state: State) -> Stored | None:
        """:meth:`write` it; a failure is told in the log, once while all fail."""
        try:
            stored = self.write(state)
            self._fails = False
        except EdgeLlamaError as error:
            level = logging.DEBUG if self._fails else logging.WARNING
            _log.log(level, "%s tokens can't be kept on disk: %s", f"{len(state.tokens):,}", error)
            self._fails = True
            return None
        return stored

    def put(self, state: State) -> Stored | None:
        """Have a thread :meth:`keep` it: what there will be then, and can be loaded already; None if nothing."""
        if not self._is_kept(state):
            return None
        path = self._path(state)
        with self._lock:
            self._pending[path] = state
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="edge-llama-disk", daemon=True)
            self._thread.start()
        self._jobs.put(state)
        return Stored(path, state.tokens, state.adapters)

    def forget(self, tag: str) -> None:
        """Keep nothing of a conversation, also of what is being written."""
        self._forgotten.add(tag)
        self.remove(Stored(self._folder / f"{tag}{SUFFIX}", np.empty(0, np.int32)))

    def has(self, stored: Stored) -> bool:
        """Whether it is still there, or will be, or had to go for others: another process may have removed it."""
        return stored.path in self._pending or stored.path in self._outlived or stored.path.exists()

    def remove(self, stored: Stored) -> None:
        """Keep it no longer."""
        with self._lock:
            self._pending.pop(stored.path, None)
        with suppress(OSError):
            stored.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait until all is written that was put."""
        if self._readers:
            self._readers.shutdown(cancel_futures=True)
        if self._thread:
            self._jobs.put(None)
            self._thread.join()

    def _is_kept(self, state: State) -> bool:
        return state.tag not in self._forgotten and bool(state.tag or self.keeps_untagged)

    def _path(self, state: State) -> Path:
        key = repr((self._identity, sorted(self._needed.items()), *state.adapters)).encode()
        name = state.tag or f"{UNTAGGED}{hashlib.sha256(state.tokens.tobytes() + key).hexdigest()[:16]}"
        return self._folder / f"{name}{SUFFIX}"

    def _serve(self) -> None:
        while (state := self._jobs.get()) is not None:
            path = self._path(state)
            if self._pending.get(path) is not state:
                continue  # forgotten, or a later one waits
            self.keep(state)
            with self._lock:
                if self._pending.get(path) is state:
                    del self._pending[path]

    def _files(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if path.suffix == SUFFIX]
        except OSError:
            return []

    def _found(self, path: Path) -> Stored | None:
        """What the file has, if it can be used here."""
        stored, reason = Stored(path, np.empty(0, np.int32)), None
        try:
            about = session_file.peek(path)
        except SessionError as error:
            reason = str(error)
        else:
            stored.tokens, stored.adapters = about.tokens, about.adapters
            if about.identity != self._identity:
                reason = "its KV cache is another model's"
            elif len(about.tokens) > self._n_ctx:
                reason = f"its {len(about.tokens):,} tokens don't fit the context of {self._n_ctx:,}"
            else:
                reason = difference(about.settings, self._needed)
        if reason:
            _log.debug("%s: %s", path, reason)
            self._refused[stored.tag] = reason
        return None if reason or not len(stored.tokens) else stored

    def _make_room(self, limit: int) -> None:
        """Remove the least recently used files beyond the limit, and what killed writers left."""
        for path in self._folder.glob(f".*{SUFFIX}.*{PARTIAL}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        sizes = []
        for path in sorted(self._files(), key=_used):
            with suppress(FileNotFoundError):  # another process has removed it
                sizes.append((path, path.stat().st_size))
        used = sum(size for _, size in sizes)
        for path, size in sizes:
            if used <= limit:
                return
            path.unlink(missing_ok=True)
            self._outlived.add(path)
            used -= size


def limit_bytes(folder: Path) -> int:
    """Bytes that a folder may take: ``$EDGE_LLAMA_HISTORY_KV_BYTES``, else 4 GB or a tenth of the free disk."""
    if given := os.environ.get(LIMIT_VARIABLE):
        if not given.isdecimal():
            raise OptionError(f"{LIMIT_VARIABLE} is {given!r}", remedy="give a number of bytes")
        return int(given)
    return min(_BYTES, shutil.disk_usage(folder).free // 10)


def needed_settings(tower: TextTower, artifact: Artifact) -> dict[str, Any]:
    """What the engine's bytes depend on, besides the model."""
    context = {"n_ctx": tower.n_ctx} if artifact.cache_depends_on_context else {}
    return {**tower.settings, **context}


def difference(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """What differs between the settings that made an engine's bytes and those here."""
    saved = {**_BEFORE, **saved}
    odd = [f"{key} was {saved.get(key)} and is {value}" for key, value in here.items() if saved.get(key) != value]
    return ", ".join(odd) or None


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

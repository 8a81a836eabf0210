"""How a conversation outlives ``chat``: one is taken up, each exchange kept, the KV cache saved at the end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Unpack

from edge_llama.backends.towers import locate
from edge_llama.chat import Chat, ChatOptions
from edge_llama.cli.terminal.console import note
from edge_llama.cli.terminal.optional_values import LAST
from edge_llama.errors import EdgeLlamaError, HistoryError, SessionError
from edge_llama.files.artifact import server_url
from edge_llama.history.recorder import Recording
from edge_llama.history.store import FOLDER_VARIABLE, OFF, Conversation, History, folder
from edge_llama.model import Model
from edge_llama.planning.options import OpenOptions
from edge_llama.prompts.messages import Message
from edge_llama.runtime.chat_sessions import session_settings


class Kept:
    """The history as one run of ``chat`` needs it. When it can't be used that is told, and the chat goes on without."""

    def __init__(self, wanted: str | None, *, off: bool, quiet: bool) -> None:
        """``wanted`` is the id of a conversation to go on with, LAST for the last one, None for a new one.

        HistoryError if that one can't be had.
        """
        self._tell = partial(note, quiet=quiet)
        self._problem = ""
        self._at: tuple[Model, Chat] | None = None
        self._recording: Recording | None = None
        self._history = None if off else self._opened(is_needed=wanted is not None)
        self._kv_folder = self._opened_kv_folder()
        self._wanted = self._found(wanted)

    def model(self, model: str | None) -> str | None:
        """The model to open: the one that was given, else that of the conversation. HistoryError if it is gone."""
        if model or not self._wanted or server_url(self._wanted.model_path):
            return model or (self._wanted.model_path if self._wanted else None)
        if not Path(self._wanted.model_path).is_file():
            raise HistoryError(
                f"{self._wanted.id} was with {self._wanted.model}, which is gone: {self._wanted.model_path}",
                remedy=f"name a model: edge-llama chat MODEL --continue {self._wanted.id}",
            )
        return self._wanted.model_path

    def settings(self, model: str | None) -> OpenOptions:
        """The options that made the conversation's KV cache, if it goes on with the same model.

        Of one on a server, what it is called there.
        """
        if url := server_url(model or (self._wanted.model_path if self._wanted else None)):
            wanted = self._wanted
            return {"remote_model": wanted.model} if wanted and wanted.model_path == url else {}
        is_same = self._wanted and (model is None or str(locate(model).resolve()) == self._wanted.model_path)
        if self._wanted and self._history and is_same:
            with suppress(SessionError):  # told when it is loaded
                path = self._history.kv_file(self._wanted.id)
                return session_settings(path) if path.exists() else {}
        return {}

    @property
    def caching(self) -> OpenOptions:
        """The options for models to keep the KV caches of conversations beside the history."""
        return {"cache_dir": self._kv_folder, "cache_tagged_only": True} if self._kv_folder else {}

    @contextmanager
    def chat(self, model: Model, *, system: str | None, **options: Unpack[ChatOptions]) -> Iterator[Chat]:
        """The chat to lead, new or going on; on leaving, however that comes about, its KV cache is saved.

        SIGTERM and the terminal's hangup leave it too.
        """
        if self._wanted and self._recording:
            chat = self._recording.resume(model, self._wanted, **options)
            self._tell(f"{self._wanted.id} goes on: {self._wanted.title}")
            if reason := self._recording.reread_reason:
                self._tell(f"it is read again with the next message: {reason}")
            if system is not None and system != chat.system:
                chat.system = system
                self._tell("it is read again with the next message: the system message is another one")
        else:
            chat = model.chat(system=system, **options)
        self._at = model, chat
        with _left_by_signals():
            try:
                yield chat
            finally:
                self._leave()

    def keep(self, model: Model, chat: Chat) -> None:
        """Store what is new in the chat; call it whenever something may have been said, cleared or taken back."""
        self._at = model, chat
        if self._recording:
            with self._told_once():
                self._recording.keep(model, chat)

    def all_said(self, model: Model, chat: Chat) -> list[Message]:
        """All messages, also those that a summary replaced; without a history those that the model has before it."""
        self.keep(model, chat)
        kept = self._recording.conversation if self._recording else None
        if kept and all(one is other or one == other for one, other in zip_longest(kept.context, chat.messages)):
            return kept.all_messages
        return list(chat.messages)

    def _leave(self) -> None:
        if self._recording and self._at:
            with self._told_once():
                self.keep(*self._at)
                self._recording.leave(*self._at)

    def _opened(self, *, is_needed: bool) -> History | None:
        try:
            if (place := folder()) is None:
                return None
            history = History(place, lambda told: note(f"[{told}]"))
            history.entries(limit=1)  # what is wrong with it is told now, not after the first answer
        except HistoryError as error:
            if is_needed:
                raise
            note(f"[this chat is not kept: {error}]")
            return None
        self._recording = Recording(history, lambda told: note(f"[{told}]"))
        return history

    def _opened_kv_folder(self) -> Path | None:
        """Where KV caches are kept; None if nowhere, which is told where they should be."""
        if self._history is None:
            return None
        try:
            self._history.kv_folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            note(f"[KV caches are not kept: {self._history.kv_folder}: {error.strerror or error}]")
            return None
        return self._history.kv_folder

    def _found(self, wanted: str | None) -> Conversation | None:
        if wanted is None:
            return None
        if self._history is None:
            raise HistoryError(
                "there is no history to continue from",
                remedy=f"leave out --no-history, and set {FOLDER_VARIABLE} to another value than {OFF}",
            )
        return self._history.latest() if wanted == LAST else self._history.read(wanted)

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        """What fails is told, once while it stays the same; the chat goes on."""
        try:
            yield
            self._problem = ""
        except (EdgeLlamaError, OSError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                with suppress(OSError):  # the terminal may be gone
                    note(f"[the history is not up to date: {error}]")


@contextmanager
def _left_by_signals() -> Iterator[None]:
    def leave(number: int, _frame: object) -> None:
        for other in before:  # a second one must not stop the saving
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    before = {number: signal.signal(number, leave) for name in names if (number := getattr(signal, name, None))}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def completed(incomplete: str) -> list[tuple[str, str]]:
    """Ids that begin so, with their titles, for the shell's completion; none if the history can't be read."""
    with suppress(EdgeLlamaError):
        if (place := folder()) and place.is_dir():
            entries = History(place, lambda _: None).entries()
            return [(entry.id, entry.title) for entry in entries if entry.id.startswith(incomplete.lower())]
    return []

"""KV caches of a model's chats, as chats use them: a fork shares one, a session file keeps one, a model adopts one."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from edge_llama.backends.adapters import AdapterSet
from edge_llama.errors import EngineError, SessionError
from edge_llama.files.artifact import Artifact
from edge_llama.media.images import Image
from edge_llama.planning.options import SAVED, OpenOptions, checked
from edge_llama.prompts.messages import Message, check_messages, images_of
from edge_llama.runtime import session_file
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.disk_cache import DiskCache, difference, needed_settings
from edge_llama.runtime.scheduler import Scheduler
from edge_llama.runtime.session_file import SavedChat, State


class ChatSessions:
    """The KV caches of one model's chats, each known by its :class:`CacheOwner`. Any thread may use it."""

    def __init__(
        self,
        engine: Scheduler,
        artifact: Artifact,
        identity: str,
        settings: Mapping[str, Any],
        disk: DiskCache | None = None,
    ) -> None:
        """``identity`` is that of ``artifact``, which is asked for once, when the model is opened.

        ``settings`` go into session files beside the tower's own: options with which the model shall be opened again.
        """
        self._settings = settings
        self._disk = disk
        self._engine = engine
        self._artifact = artifact
        self._identity = identity

    def share(self, owner: CacheOwner, other: CacheOwner) -> None:
        """Keep for ``other`` what is kept for ``owner`` at this point of the engine's work."""

        def share() -> None:
            other.tokens, other.adapters = owner.tokens, owner.adapters

        self._engine.call(share)

    def tag(self, owner: CacheOwner, conversation: str) -> None:
        """What the owner's answers leave is kept on disk as this conversation's."""
        self._engine.call(lambda: self._engine.cache.tag(owner, conversation))

    def forget(self, conversation: str) -> None:
        """Keep nothing of a conversation any more, in memory or on disk."""
        self._engine.call(lambda: self._engine.cache.forget(conversation))

    def store(self, owner: CacheOwner) -> None:
        """Write what the owner's last answer left to disk now. OutputError if that fails."""
        cache, disk = self._engine.cache, self._disk

        def new_state() -> State | None:
            state = cache.state(owner)
            return None if state is None or cache.copies.is_stored(state, state.tokens, owner.tag) else state

        if disk and (state := self._engine.call(new_state)):
            state.tag = owner.tag
            if stored := disk.write(state):
                self._engine.call(lambda: cache.copies.stored(stored))

    def why_not_kept(self, conversation: str) -> str | None:
        """Why what there is of a conversation on disk can't be used, if so."""
        return self._disk.why_not_kept(conversation) if self._disk else "no KV cache is kept on disk"

    def save(self, path: str | os.PathLike[str], messages: Sequence[Message], owner: CacheOwner) -> None:
        """Write ``messages`` and what is kept for ``owner`` to a session file.

        Raises OutputError, or OptionError for what is no path.
        """
        target = session_file.checked_path(path)
        state = self._engine.call(lambda: self._engine.cache.state(owner))
        tower = self._engine.tower
        settings = {**tower.settings, **self._settings}
        checked = check_messages(messages)
        hashes = tuple(dict.fromkeys(image.digest for image in images_of(checked)))
        saved = SavedChat(self._artifact.name, self._identity, settings, checked, state, hashes)
        session_file.write(target, saved)

    def load(self, path: str | os.PathLike[str]) -> SavedChat:
        """What a session file holds. SessionError if it is damaged, of another model, or has images and this none."""
        saved = session_file.read(session_file.checked_path(path))
        if saved.identity != self._identity:
            raise SessionError(
                f"{path}: a session of {saved.model} (identity {saved.identity[:12]}), the open model is "
                f"{self._artifact.name} ({self._identity[:12]}, {self._artifact.path})",
                remedy="open the model that it was saved with",
            )
        if saved.images and self._engine.encoder is None:
            raise SessionError(
                f"{path}: it has {len(saved.images)} images, and the open model has no vision tower",
                remedy="open the model with the one that it had (--vision FILE)",
            )
        return saved

    def resume(
        self, path: str | os.PathLike[str], owner: CacheOwner, adapters: AdapterSet = ()
    ) -> tuple[tuple[Message, ...], str | None]:
        """The messages of a session file, whose cache the engine takes over for ``owner``; why it can't, if so.

        SessionError as :meth:`load` and :meth:`adopt` raise it.
        """
        saved = self.load(path)
        return saved.messages, self.adopt(saved, owner, adapters)

    def adopt(self, saved: SavedChat, owner: CacheOwner, adapters: AdapterSet = ()) -> str | None:
        """Have the engine take over the cache of a saved chat for ``owner``, who goes on with these ``adapters``.

        Why it can't, if so.
        SessionError for tokens that the model doesn't have.
        """
        state = saved.state
        if state is None:
            return "its KV cache was not kept when it was saved" if saved.messages else None
        self._check_tokens(state)
        if reason := difference(saved.settings, needed_settings(self._engine.tower, self._artifact)):
            return reason
        if state.adapters != adapters:
            return f"its KV cache was computed {_with(state.adapters)}, the chat goes on {_with(adapters)}"
        n_ctx = self._engine.tower.n_ctx
        if len(state.tokens) > n_ctx:
            return f"its {len(state.tokens):,} tokens don't fit the context of {n_ctx:,}"

        def adopt() -> str | None:
            try:
                self._engine.cache.adopt(state, owner)
            except EngineError as error:
                return str(error)
            return None

        return self._engine.call(adopt) or self._unknown_images(state, images_of(saved.messages))

    def _check_tokens(self, state: State) -> None:
        """Before they reach the engine, which trusts them."""
        n_vocab = self._artifact.n_vocab
        # Also a conversation without images may have prefilled some: they were taken back since.
        is_odd = (state.tokens >= n_vocab) | ((state.tokens < 0) if self._engine.encoder is None else False)
        if is_odd.any() or (state.logits is not None and len(state.logits) != n_vocab):
            raise SessionError("the session's tokens are not those of its model", remedy="begin a new chat")

    def _unknown_images(self, state: State, images: Sequence[Image]) -> str | None:
        """Why images are decoded again although the cache is used, if so: their ids are others here."""
        if (encoder := self._engine.encoder) is None:
            return None
        known = set(state.tokens[state.tokens < 0].tolist())
        count = sum(not known.issuperset(id_ for id_ in encoder.ids(image) if id_ < 0) for image in images)
        return f"{count:,} images were read by another vision tower, or in other tiles (max_tiles)" if count else None


def _with(adapters: AdapterSet) -> str:
    """Sets of adapters, for people."""
    told = ", ".join(f"{use.identity[:12]} of weight {use.weight:g}" for use in adapters)
    return f"with adapters ({told})" if adapters else "without adapters"


def session_settings(path: str | os.PathLike[str]) -> OpenOptions:
    """The settings that a saved chat was made with, to give to :func:`edge_llama.open`: only so is nothing read again.

    Raises SessionError if the file is damaged, no session or of a newer version.

    Examples:
        >>> model.chat().save("empty.session")
        >>> edge_llama.session_settings("empty.session")["n_ctx"] == model.n_ctx
        True
    """
    saved = session_file.read(session_file.checked_path(path)).settings
    return checked({key: saved[key] for key in SAVED if key in saved})

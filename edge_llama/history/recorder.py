"""Keeps a chat in the history as it goes on, and takes it up again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypedDict, Unpack

from edge_llama.chat import Chat, ChatOptions
from edge_llama.errors import EdgeLlamaError
from edge_llama.history.store import Conversation, History
from edge_llama.model import Model
from edge_llama.prompts.context_overflow import SUMMARY_REQUEST
from edge_llama.prompts.messages import Message


class _About(TypedDict):
    model: str
    model_path: str
    identity: str


class Recording:
    """One chat after another, each a conversation of ``history``; ``tell`` is called with what a person should know.

    Messages are told apart by being the same objects: a chat keeps them, also when it is shortened or taken back.
    """

    def __init__(self, history: History, tell: Callable[[str], None]) -> None:
        self.conversation: Conversation | None = None
        """The one that the chat is kept as; None until it has messages."""
        self._history = history
        self._tell = tell
        self._times_set_aside = history.times_set_aside
        self._seen: tuple[object, ...] = ()
        self._shortened: object = None
        self._is_deleted = False
        self._tagged: set[str] = set()
        """The conversations whose KV caches this process may keep."""
        self._has_new = False

    def resume(self, model: Model, conversation: Conversation, **options: Unpack[ChatOptions]) -> Chat:
        """A conversation of the history as a chat of ``model``; ``reread_reason`` says what is read again.

        ``options`` are those of :meth:`Model.load_chat`.
        """
        chat = model.chat(**options)
        chat.messages = conversation.context
        self.reread_reason = self._prefetched(model, conversation, chat)
        self.conversation, self._seen = conversation, _state(model, chat)
        return chat

    def keep(self, model: Model, chat: Chat) -> None:
        """Store what the chat has that is not stored yet; call it whenever something may have been said.

        A chat that was emptied goes on as a new conversation. HistoryError leaves it to the next call.
        """
        state = _state(model, chat)
        if self._is_deleted or (len(state) == len(self._seen) and all(map(_same, state, self._seen))):
            return
        messages = [message for message in chat.messages if message.role != "system"]
        if messages:
            self._store(model, chat, messages)
            self._tag(model, chat)
        else:
            self.conversation = None
        self._seen = state
        self._shortened = chat.shortened
        self._has_new = True

    def leave(self, model: Model, chat: Chat) -> None:
        """Write the KV cache of the conversation, if there is anything new in it, and none of those deleted meanwhile.

        HistoryError, or OutputError if it can't be written.
        """
        for gone in [each for each in self._tagged if not self._history.has(each)]:
            model.sessions.forget(gone)
        if self.conversation and self._has_new and not self._is_deleted:
            model.sessions.store(chat.cache_owner)
            self._has_new = False

    def _prefetched(self, model: Model, conversation: Conversation, chat: Chat) -> str | None:
        """Have what is kept of the conversation in the engine; why the model must read (some of) it again, if so."""
        if conversation.identity != model.identity:
            return f"it was with {conversation.model}, now with {model.artifact.name}"
        try:
            if chat.prefetch():
                return None
        except EdgeLlamaError as error:  # as of images that the model, opened so, can't see
            return str(error)
        older = "its KV cache is older than the last message, or of other adapters; what both have is not"
        return model.sessions.why_not_kept(conversation.id) or older

    def _tag(self, model: Model, chat: Chat) -> None:
        """The KV cache is the conversation's from here on; of one that was deleted none is kept."""
        assert self.conversation  # noqa: S101 - it was stored
        if self._is_deleted:
            model.sessions.forget(self.conversation.id)
        else:
            model.sessions.tag(chat.cache_owner, self.conversation.id)
            self._tagged.add(self.conversation.id)

    def _store(self, model: Model, chat: Chat, messages: list[Message]) -> None:
        said = self.conversation.messages if self.conversation else ()
        about = _About(model=model.artifact.name, model_path=model.location, identity=model.identity)
        is_shortened = chat.shortened is not self._shortened
        head, start, kept = _aligned(said, messages, is_shortened=is_shortened)
        if self.conversation is None or (kept == 0 and not is_shortened):
            new = Conversation(messages=tuple(messages), system=chat.system, **about)
            self.conversation = self._history.create(new)
            return
        new = replace(
            self.conversation,
            messages=(*said[: start + kept], *messages[head + kept :]),
            head=tuple(messages[:head]),
            replaced=start,
            system=chat.system,
            **about,
        )
        self._update(new, start + kept)

    def _update(self, new: Conversation, first: int) -> None:
        stored = self._history.update(new, first)
        if isinstance(stored, Conversation):
            self.conversation = stored
        elif stored == "changed" or self._history.times_set_aside > self._times_set_aside:
            self.conversation = self._history.create(new)
            if stored == "changed":
                self._tell(f"{new.id} was continued elsewhere: this chat goes on as {self.conversation.id}")
        else:
            self._is_deleted = True
            self._tell(f"{new.id} was deleted: this chat is no longer kept")
        self._times_set_aside = self._history.times_set_aside


def _state(model: Model, chat: Chat) -> tuple[object, ...]:
    return model.identity, chat.system, *(message for message in chat.messages if message.role != "system")


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, str) and one == other)


def _aligned(said: Sequence[Message], messages: Sequence[Message], *, is_shortened: bool) -> tuple[int, int, int]:
    """How ``messages`` go with all that was ``said``: how many stand before what was said, from where on and how much.

    So messages[head : head + kept] are said[start : start + kept]; those before are a summary, those after are new.
    """
    at = {id(message): place for place, message in enumerate(said) if message is not SUMMARY_REQUEST}
    head = next((place for place, message in enumerate(messages) if id(message) in at), None)
    if head is None:  # all was left out or summarised; or it is another conversation
        return (2 if is_shortened and messages[0] is SUMMARY_REQUEST else 0), len(said), 0
    start = at[id(messages[head])]
    kept = 0
    while head + kept < len(messages) and start + kept < len(said) and messages[head + kept] is said[start + kept]:
        kept += 1
    return head, start, kept

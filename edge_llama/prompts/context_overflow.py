"""What to do when a conversation no longer fits the context: leave out its oldest exchanges, or summarise them.

Nothing is ever cut without being told: each shortening is a :class:`Shortened`, given to whoever owns the chat.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

from edge_llama.errors import OptionError
from edge_llama.prompts.messages import Message, images_of

WhenFull = Literal["error", "compact", "drop-oldest"]
"""``error``: a message that doesn't fit is refused; or older exchanges are summarised, or dropped."""

SUMMARY_REQUEST = Message(
    "user",
    "Summarize our conversation so far in a few sentences. Keep names, numbers, decisions and open questions.",
)
"""Stands before the summary in the conversation, so that user and assistant go on in turn, as templates demand."""

_Exchanges = list[list[Message]]


@dataclass(frozen=True, slots=True)
class Shortened:
    """A conversation was made shorter: how many messages a summary replaced, and how many were left out.

    ``images`` and ``documents`` were in them: the model is shown these no more.

    Examples:
        >>> told = edge_llama.Shortened(summarized=0, dropped=8, tokens_before=261, tokens_after=115, n_ctx=256)
        >>> print(told)
        the oldest 8 messages are left out: 261 tokens become 115 of 256
        >>> chat = model.chat(temperature=0, max_tokens=40)
        >>> for question in ("What is the capital of Japan?", "And of Egypt?"):
        ...     answer = chat.send(question).result()
        >>> chat.compact().summarized  # all but the last exchange
        2
    """

    summarized: int
    dropped: int
    tokens_before: int
    tokens_after: int
    n_ctx: int
    images: int = 0
    documents: int = 0

    def __str__(self) -> str:
        """One line for people."""
        done = [
            f"the oldest {count:,} messages {what}"
            for count, what in ((self.summarized, "are summarized"), (self.dropped, "are left out"))
            if count
        ]
        shown = ((self.images, "images"), (self.documents, "files"))
        lost = " and ".join(f"{count:,} {what}" for count, what in shown if count)
        unseen = f", with {lost} that the model sees no more" if lost else ""
        return (
            f"{' and '.join(done) or 'nothing could be left out'}{unseen}: {self.tokens_before:,} tokens become "
            f"{self.tokens_after:,} of {self.n_ctx:,}"
        )


def check_when_full(value: object) -> WhenFull:
    """``value`` if it is one; OptionError otherwise."""
    for known in get_args(WhenFull):
        if value == known:
            return known  # type: ignore[no-any-return] # get_args forgets
    raise OptionError(f"when_full is {value!r}", remedy=f"known: {', '.join(get_args(WhenFull))}")


def exchanges_of(messages: Sequence[Message]) -> tuple[list[Message], _Exchanges]:
    """The system message, if any, and the rest cut before each message of the user."""
    head = [message for message in messages if message.role == "system"]
    exchanges: _Exchanges = []
    for message in messages:
        if message.role == "user" or (not exchanges and message.role != "system"):
            exchanges.append([])
        if message.role != "system":
            exchanges[-1].append(message)
    return head, exchanges


def least_of(messages: Sequence[Message]) -> list[Message]:
    """What no shortening takes away: the system message and the last exchange."""
    head, exchanges = exchanges_of(messages)
    return [*head, *exchanges[-1]]


class Shortening:
    """Makes conversations shorter. It decides; what it needs of the model it is given as functions."""

    def __init__(
        self,
        n_ctx: int,
        count: Callable[[Sequence[Message]], int],
        summarize: Callable[[Sequence[Message], int], str],
    ) -> None:
        """``count`` gives a conversation's tokens, ``summarize(messages, max_tokens)`` an answer to them."""
        self.n_ctx = n_ctx
        self._count = count
        self._summarize = summarize
        self._summary_tokens = max(16, min(512, n_ctx // 8))

    def fit(
        self, messages: Sequence[Message], how: Literal["compact", "drop-oldest"], max_tokens: int | None
    ) -> tuple[Sequence[Message], Shortened | None]:
        """``messages``, the last of which is a question, or fewer: such as leave room for an answer; and what was done.

        Room is a quarter of the context, or ``max_tokens`` if that is less.
        """
        room = min(max_tokens or self.n_ctx, self.n_ctx // 4)
        if len(exchanges_of(messages)[1]) < 2 or self._count(messages) + room <= self.n_ctx:
            return messages, None
        return self.compact(messages) if how == "compact" else self.drop_oldest(messages)

    def drop_oldest(self, messages: Sequence[Message]) -> tuple[list[Message], Shortened]:
        """Leave out the oldest exchanges until half of the context is free: what remains is prefilled again, so seldom.

        The system message and the last exchange always stay, whether they fit or not.
        """
        head, exchanges = exchanges_of(messages)
        first = self._first_to_keep(head, exchanges, self.n_ctx // 2)
        kept = [*head, *_flat(exchanges[first:])]
        return kept, self._told(messages, kept, summarized=0, dropped=len(_flat(exchanges[:first])))

    def compact(self, messages: Sequence[Message], *, keep: int | None = None) -> tuple[list[Message], Shortened]:
        """Put a summary by the model in place of the oldest exchanges: all but the last ``keep``.

        ``keep`` None keeps as many as leave half of the context free, at least the last. An exchange so long that it
        can't even be summarised is left out.
        """
        head, exchanges = exchanges_of(messages)
        if keep is None:
            first = self._first_to_keep(head, exchanges, self.n_ctx // 2 - self._summary_tokens)
        else:
            first = max(0, len(exchanges) - keep)
        summary, summarized, dropped = self._summary(head, exchanges[:first])
        kept = [*head, *summary, *_flat(exchanges[first:])]
        return kept, self._told(messages, kept, summarized=summarized, dropped=dropped)

    def _first_to_keep(self, head: list[Message], exchanges: _Exchanges, limit: int) -> int:
        """The first exchange from which on all fit in ``limit`` tokens; the last one in any case."""
        numbers = range(len(exchanges) - 1)
        return bisect_left(numbers, True, key=lambda at: self._count([*head, *_flat(exchanges[at:])]) <= limit)

    def _summary(self, head: list[Message], exchanges: _Exchanges) -> tuple[list[Message], int, int]:
        """The summary as an exchange, and how many messages it replaces and how many are lost.

        It is made in as many rounds as the context demands, each of which has the last one's summary before it.
        """
        summary: list[Message] = []
        done = summarized = dropped = 0
        while done < len(exchanges):
            rest = exchanges[done:]
            count = self._how_many([*head, *summary], rest)
            messages = _flat(rest[: max(count, 1)])
            request = [*head, *summary, *messages, SUMMARY_REQUEST]
            text = self._summarize(request, self._summary_tokens).strip() if count else ""
            if text:
                summary = [SUMMARY_REQUEST, Message("assistant", text)]
                summarized += len(messages)
            else:
                dropped += len(messages)
            done += max(count, 1)
        return summary, summarized, dropped

    def _how_many(self, before: list[Message], exchanges: _Exchanges) -> int:
        """How many of the exchanges fit the context together with the request for a summary and the summary."""
        limit = self.n_ctx - self._summary_tokens

        def is_too_long(count: int) -> bool:
            return self._count([*before, *_flat(exchanges[:count]), SUMMARY_REQUEST]) > limit

        return bisect_left(range(1, len(exchanges) + 1), True, key=is_too_long)

    def _told(self, before: Sequence[Message], after: Sequence[Message], *, summarized: int, dropped: int) -> Shortened:
        images = len(images_of(before)) - len(images_of(after))
        documents = sum(len(message.documents) for message in before) - sum(len(message.documents) for message in after)
        tokens = self._count(before), self._count(after)
        return Shortened(summarized, dropped, *tokens, self.n_ctx, images, documents)


def _flat(exchanges: _Exchanges) -> list[Message]:
    return list(chain.from_iterable(exchanges))

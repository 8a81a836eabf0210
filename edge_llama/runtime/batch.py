"""What goes into a decode: rows of requests that are being answered, and as much of prompts as there is room for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from edge_llama.backends.base import Rows
from edge_llama.runtime.cache_entries import Held
from edge_llama.runtime.encoder_thread import Embedded
from edge_llama.runtime.request import Request
from edge_llama.runtime.session_file import State


@dataclass(eq=False, slots=True)
class Running:
    """A request with a sequence of the engine, or with a copy of it while others have the cells."""

    request: Request
    held: Held
    todo: Sequence[int]
    """Tokens to append: what is left of the prompt, then what the last logits gave."""
    is_decoding: bool = False
    """Whether its prompt is prefilled."""
    suspended: State | None = None
    embedded: Embedded | None = None
    """The embeddings of a tile, the last ``embedded_left`` of which are ``todo``'s first."""
    embedded_left: int = 0
    since: float = field(default_factory=time.monotonic)
    """When it began, or was last decoded, by time.monotonic."""

    @property
    def is_ready(self) -> bool:
        """Whether a decode can go on with it: not while it waits for an image, or for cells."""
        if self.suspended or not self.todo or self.request.is_cancelled:
            return False
        embedded = self.embedded
        return self.todo[0] >= 0 or (embedded is not None and embedded.done() and embedded.exception() is None)

    @property
    def has_picture(self) -> bool:
        """Whether what comes next stands for a part of one."""
        return bool(self.todo) and self.todo[0] < 0

    def rows(self, most: int) -> Rows:
        """The next rows, at most so many, all of one kind."""
        todo = self.todo[:most]
        embeddings = None
        if todo[0] >= 0:
            todo = tuple(takewhile(lambda token: token >= 0, todo)) if min(todo) < 0 else todo
        else:
            assert self.embedded  # noqa: S101 - it is ready
            todo = todo[: self.embedded_left]
            values = self.embedded.result()
            start = len(values) - self.embedded_left
            embeddings = values[start : start + len(todo)]
        return Rows(self.held.number, todo, embeddings, needs_logits=len(todo) == len(self.todo))

    def decoded(self, rows: Rows) -> None:
        """These rows are in the cache."""
        count = len(rows.tokens)
        self.since = time.monotonic()
        self.todo = self.todo[count:]
        if rows.embeddings is not None:
            self.embedded_left -= count
            if not self.embedded_left:
                self.embedded = None


Batch = list[tuple[Running, Rows]]
"""One decode: each request with what it appends."""


def batches(
    ready: Sequence[Running], n_batch: int, free_cells: int, budget: int | None, *, with_pictures: bool = True
) -> list[Batch]:
    """What each request appends in a step, in one decode of tokens and one of embeddings, as far as there are any.

    Nothing if there are no cells for all that are being answered. ``budget``: tokens of prompts, at most; None: as many
    as there is room for. With a budget prompts are of one kind: of pictures ``with_pictures``, else of tokens, if there
    are such. Pictures then take half of it, since a decode of their own reads all weights again.
    """
    answers = [running for running in ready if running.is_decoding]
    prompts = [running for running in ready if not running.is_decoding]
    if budget is not None:
        prompts = [each for each in prompts if each.has_picture is with_pictures] or prompts
        budget = -(-budget // 2) if prompts and prompts[0].has_picture else budget
    found: Batch = []
    room, free = n_batch, free_cells
    for at, running in enumerate(answers):
        rows = running.rows(min(room - (len(answers) - at - 1), len(running.todo)))
        if len(rows.tokens) > free:
            return []
        found.append((running, rows))
        room, free = room - len(rows.tokens), free - len(rows.tokens)
    room = min(room, free) if budget is None else min(room, free, budget)
    # Those with the fewest tokens left go first, so that few wait; half of the room is for the one that came first: it
    # would wait for ever where short ones keep coming.
    kept = min(len(prompts[0].todo), -(-room // 2)) if prompts else 0
    for running in sorted(prompts, key=lambda each: len(each.todo)):
        kept = 0 if running is prompts[0] else kept
        if share := min(len(running.todo), room - kept):
            found.append((running, rows := running.rows(share)))
            room -= len(rows.tokens)
    tokens = [each for each in found if each[1].embeddings is None]
    embeddings = [each for each in found if each[1].embeddings is not None]
    return [batch for batch in (tokens, embeddings) if batch]

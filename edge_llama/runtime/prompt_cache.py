"""What the engine has prefilled, for all requests, chats, sessions and forks: nothing is prefilled twice.

A radix tree of token ids (images are ids too), one for each set of adapters, leads to sequences of the engine's cache
and to copies of such in memory. A request goes on from whichever begins as its prompt for the most tokens: it takes
over a sequence that is idle, shares the cells of one that is in use, or loads a copy. What is idle slows the others,
whose rows attend over all cells: it is copied out, one sequence at a time, between steps or while the engine rests. The
least recently used copies go when room is short. To copy a sequence of the built-in model takes 5 to 80 us per token
(the most where its cells lie scattered among those of others), to prefill it again some 4,000.
"""

import logging
import weakref
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet
from edge_llama.backends.base import TextTower
from edge_llama.errors import EngineError
from edge_llama.runtime.cache_entries import Beginning, CacheOwner, Entry, Held, Tokens, divergence
from edge_llama.runtime.cells import Cells
from edge_llama.runtime.copies import Copies, tell_lost
from edge_llama.runtime.disk_cache import DiskCache, Stored
from edge_llama.runtime.entry_trees import EntryTrees
from edge_llama.runtime.known_beginnings import KnownBeginnings
from edge_llama.runtime.session_file import State

_log = logging.getLogger(__name__)
_IDLE_CELLS = 256
"""Cells of idle sequences that may slow others: llama.cpp's attention takes so many at once."""
_WORTH_KEEPING = 32
"""Tokens of a sequence that nobody owns, from which on it is not cut for who begins as it did."""


class PromptCache:
    """The engine's sequences and the copies of such. Used by the engine's thread alone."""

    def __init__(
        self,
        tower: TextTower,
        room: Callable[[int], int] = lambda _used: 0,
        slice_size: int = 0,
        disk: DiskCache | None = None,
    ) -> None:
        """``room(used)`` is how many bytes all copies may take, ``used`` of which they take already.

        What leaves the memory, and what is there in the end, goes to ``disk``.
        With a ``slice_size`` only whole slices of prompts are reused, which were prefilled as such: so no number
        depends on what was prefilled before.
        """
        self._tower = tower
        self._slice_size = slice_size
        self._tree = EntryTrees()
        self._known = KnownBeginnings(self._tree, slice_size, has_disk=disk is not None)
        self._free = list(range(tower.n_sequences))[::-1]
        self._cells = Cells(tower.n_sequences)
        self._held: list[Held] = []  # the least recently used first
        self.copies = Copies(self._tree, room, disk, lambda tag: any(held.tag == tag for held in self._held))

    @property
    def used_cells(self) -> int:
        """Cells that sequences take, running or idle."""
        return self._cells.used

    @property
    def free_cells(self) -> int:
        """Cells that nothing takes."""
        return self._tower.n_cells - self._cells.used

    def known(self, prompt: Tokens, adapters: AdapterSet = ()) -> int:
        """How many tokens of the prompt are prefilled already, somewhere, with these adapters."""
        return self._known.best(prompt, adapters)[0]

    def is_loading(self, prompt: Tokens, adapters: AdapterSet, on_done: Callable[[], None]) -> bool:
        """Whether what the prompt goes on from is being read from disk, as it is from now on; ``on_done`` says when.

        :meth:`begin` reads it otherwise, while the engine waits.
        """
        while isinstance(found := self._known.best(prompt, adapters)[1], Stored):
            if self.copies.is_loading(found, on_done):
                return True
        return False

    def begin(self, prompt: Tokens, owner: CacheOwner | None = None, adapters: AdapterSet = ()) -> Beginning | None:
        """A sequence that has as much of the prompt as is known; None while there are no cells for it.

        What has any of it was computed with the same ``adapters``.

        If the whole prompt is there with its last logits, these are kept in the sequence; else a token is left.
        """
        length, found = self._found(prompt, adapters)
        diverged = divergence(prompt, length, found)
        held = self._taken(length, found, owner, adapters)
        if held is None:
            return None
        if not (length == len(prompt) == len(held.tokens) and held.logits is not None):
            self.cut(held, min(length, len(prompt) - 1))
        held.is_running = True
        held.owner = weakref.ref(owner) if owner else None
        self._index(held, prompt)
        self._touch(held)
        self.copies.make_room(0)  # one that came from disk may be one too many
        return Beginning(held, len(held.tokens), diverged)

    def appended(self, held: Held, tokens: Sequence[int]) -> None:
        """The tower decoded these tokens into the sequence."""
        if self._slice_size and held.fixed == len(held.tokens) and len(tokens) == self._slice_size:
            held.fixed += len(tokens)
        held.tokens += tokens
        held.logits = None
        held.is_scattered = held.is_scattered or sum(each.is_running for each in self._held) > 1
        self._cells.append(held.number, len(tokens))

    def cut(self, held: Held, length: int) -> None:
        """Keep the first ``length`` tokens, or none where the tower's memory can't be cut there."""
        if length < len(held.tokens):
            held.logits = None
            self._tower.cut(held.number, length)
        self.synchronize(held)

    def synchronize(self, held: Held) -> None:
        """Have the tokens that the tower has, after work of it that failed."""
        length = self._tower.length(held.number)
        if length < len(held.tokens):
            del held.tokens[length:]
            held.logits = None
            held.fixed = min(held.fixed, length)
            self._cells.cut(held.number, length)

    def end(self, held: Held, logits: NDArray[np.float32] | None = None) -> None:
        """The sequence is idle: others may go on from it. ``logits`` are those of its last position."""
        held.is_running = False
        held.logits = logits
        if not held.tokens:
            self._release(held)
            return
        self._index(held, np.array(held.tokens, np.int32))
        if held.owner and (owner := held.owner()):
            owner.tokens, owner.adapters, held.tag = held.indexed, held.adapters, owner.tag

    def suspend(self, held: Held) -> State:
        """Take a running sequence out of the engine, as a value that :meth:`resume` brings back."""
        state = self._copy(held)
        self._release(held)
        return state

    def resume(self, state: State, prompt: Tokens, owner: CacheOwner | None) -> Held | None:
        """What was suspended, running again; None while there are no cells for it."""
        if (held := self._loaded(state)) is not None:
            held.owner = weakref.ref(owner) if owner else None
            self._index(held, prompt)
        return held

    def is_crowded(self, prompt_tokens: int = 0) -> bool:
        """Whether idle sequences take so many cells that they slow who runs. One may, if none is running.

        ``prompt_tokens`` are about to be prefilled. Attention takes each of them over all cells: if they are many, it
        is faster to copy out whatever is idle, and is done where no other copy has to leave for it.
        """
        running = {held.number for held in self._held if held.is_running}
        if len(self._held) - len(running) <= (0 if running else 1):
            return False
        idle_cells = self._cells.used - self._cells.used_by(running)
        if prompt_tokens >= _IDLE_CELLS and 0 < idle_cells <= _IDLE_CELLS:
            return self.copies.has_room(self._bytes(self._oldest_idle()))
        return idle_cells > _IDLE_CELLS

    def relieve(self) -> bool:
        """Copy out the idle sequence that was used least recently; whether no other copy had to leave for it.

        One at a time: nobody waits for long, and who comes back meanwhile finds its own.
        """
        idle = self._oldest_idle()
        has_room = self.copies.has_room(self._bytes(idle))
        self._move_out(idle)
        return has_room

    def tidy(self) -> bool:
        """While nothing is running, do a part of what makes the next steps fast; False if nothing is left to do.

        What is idle is copied out, in place of what was used before it if need be, but for the last that was used: it
        is likely to go on. The cells of each that stays are brought together: attention takes all up to the last that
        is used, and to copy them out takes less.
        """
        if self.is_crowded() and self.copies.may_have(self._bytes(self._oldest_idle())):
            self.relieve()
            return True
        for held in self._held:
            if held.is_scattered and self._may_compact(held):
                self._compact(held)
                return True
        return False

    def _may_compact(self, held: Held) -> bool:
        """Whether nothing has to leave for it, and it is kept whatever happens."""
        return self.free_cells >= len(held.tokens) and self.copies.may_have(self._bytes(held))

    def _compact(self, held: Held) -> None:
        held.is_scattered = False
        if (state := self._tried_copy(held)) is None:
            return
        place = self._held.index(held)
        self._release(held)
        try:
            again = self._loaded(state)
        except EngineError as error:
            _log.warning("a conversation of %s tokens stays a copy: %s", f"{len(state.tokens):,}", error)
            again = None
        if again is None:
            self.copies.keep(state)
        else:
            # Its owner may have begun another sequence since: which of them is its last is not for this to say.
            again.owner, again.tag, again.is_running, again.logits = held.owner, held.tag, False, state.logits
            self._index(again, state.tokens)
            self._held.insert(place, self._held.pop())  # as recently used as it was

    def _oldest_idle(self) -> Held:
        return next(held for held in self._held if not held.is_running)

    def make_cells(self, count: int) -> bool:
        """Whether so many cells are free, for which idle sequences may have to leave."""
        while self.free_cells < count:
            idle = next((held for held in self._held if not held.is_running), None)
            if idle is None:
                return False
            self._move_out(idle)
        return True

    def state(self, owner: CacheOwner) -> State | None:
        """What is kept of the owner's last answer, perhaps with more after it."""
        if owner.tokens is None:
            return None
        for length, entry in self._tree.matches(owner.tokens, owner.adapters):
            if length < len(owner.tokens):
                return None
            if isinstance(entry, State):
                return entry
            if isinstance(entry, Held) and not entry.is_running:
                return self._copy(entry)
        return None

    def adopt(self, state: State, owner: CacheOwner) -> None:
        """Keep ``state`` for ``owner``, in a sequence. EngineError if the engine refuses it.

        The engine is given its bytes as they are: they must come from :meth:`state`, of the same model and settings.
        """
        held = self._loaded(state)
        if held is None:
            raise EngineError("there is no room in the engine's cache: others use it", remedy="try again later")
        held.owner = weakref.ref(owner)
        self.end(held, state.logits)

    def clear(self) -> None:
        """Forget everything that is idle."""
        for held in [each for each in self._held if not each.is_running]:
            self._release(held)
        for state in list(self.copies.states):
            self.copies.drop(state)

    def tag(self, owner: CacheOwner, tag: str) -> None:
        """What the owner's answers leave is of this conversation."""
        owner.tag = tag
        for held in self._held:
            if held.owner is not None and held.owner() is owner:
                held.tag = tag
        for entry in self._tree.prefixes(owner.tokens, owner.adapters) if owner.tokens is not None else ():
            if isinstance(entry, State) and not entry.tag:
                entry.tag = tag

    def forget(self, tag: str) -> None:
        """Keep nothing of a conversation, but what is being answered."""
        for held in [each for each in self._held if each.tag == tag and not each.is_running]:
            self._release(held)
        self.copies.forget(tag)

    def prefetch(self, prompt: Tokens, owner: CacheOwner, adapters: AdapterSet = ()) -> int:
        """Have what is known of the prompt in a sequence, ready to go on; how many tokens that is."""
        beginning = self.begin(prompt, owner, adapters)
        if beginning is None:
            return 0
        self.end(beginning.held, beginning.held.logits)
        return beginning.reused

    def close(self) -> None:
        """What is there goes to disk, also what was being answered."""
        disk = self.copies.disk
        if disk is None:
            return
        for held in [each for each in self._held if each.is_running]:
            self.end(held)
        disk.close()
        for entry in self._last(disk):
            try:
                if stored := disk.keep(entry if isinstance(entry, State) else self._copy(entry)):
                    self.copies.stored(stored)
            except EngineError as error:
                _log.warning("%s tokens can't be kept on disk: %s", f"{len(entry.tokens):,}", error)

    def _last(self, disk: DiskCache) -> list[Held | State]:
        """What the disk lacks, the least recently used first; of a conversation its last."""
        found: list[Held | State] = []
        tags: set[str] = set()
        latest_first: list[Held | State] = [*self._held[::-1], *self.copies.states[::-1]]
        for entry in latest_first:
            tokens = np.array(entry.tokens, np.int32)
            is_last = (
                entry.tag not in tags if entry.tag else disk.keeps_untagged and not self._is_beginning(entry, tokens)
            )
            if is_last and not self.copies.is_stored(entry, tokens, entry.tag):
                found.append(entry)
            tags.add(entry.tag)
        return found[::-1]

    def _is_beginning(self, entry: Held | State, tokens: Tokens) -> bool:
        """Whether something else has all its tokens, and more."""
        return any(
            length == len(tokens) < len(other.tokens)
            for length, other in self._tree.matches(tokens, entry.adapters)
            if other is not entry
        )

    def _found(self, prompt: Tokens, adapters: AdapterSet) -> tuple[int, Entry | None]:
        """What to go on from: no copy that is too long for the cells, if they are enough for the prompt."""
        length, found = self._known.best(prompt, adapters)
        cells = self._cells_to_have()
        while isinstance(found, Stored) and len(found.tokens) <= cells:
            self.copies.load(found)
            length, found = self._known.best(prompt, adapters)
        if isinstance(found, State | Stored) and len(found.tokens) > cells >= len(prompt):
            return self._known.longest(prompt, adapters, Held)
        return length, found

    def _cells_to_have(self) -> int:
        """How many there are if all that is idle leaves."""
        return self._tower.n_cells - self._cells.used_by({held.number for held in self._held if held.is_running})

    def _taken(self, length: int, found: Entry | None, owner: CacheOwner | None, adapters: AdapterSet) -> Held | None:
        """A sequence whose first ``length`` tokens are those of what was found."""
        if found is None:
            return self._new(adapters)
        if not isinstance(found, Held) and len(found.tokens) > self._cells_to_have():
            return None
        assert not isinstance(found, Stored)  # noqa: S101 - what there are cells for was loaded
        if isinstance(found, State):
            return self._loaded_again(found, length)
        if not found.is_running and (length == len(found.tokens) or _may_be_cut(found, length, owner)):
            return found
        held = self._new(adapters, found)
        if held:
            self._tower.share(found.number, held.number, length)
            self._cells.share(found.number, held.number, length)
            held.tokens = found.tokens[:length]
            held.fixed = min(found.fixed, length)
        elif not found.is_running:
            state, found.tag = self._worth_keeping(found), ""
            if state:
                self.copies.keep(state)
            return found
        return held

    def _new(self, adapters: AdapterSet, found: Held | None = None) -> Held | None:
        """An empty sequence, for which an idle one may have to leave, but not the one that was ``found``."""
        if not self._free:
            idle = next((held for held in self._held if not held.is_running and held is not found), None)
            if idle is None:
                return None
            self._move_out(idle)
        held = Held(self._free.pop(), adapters)
        self._held.append(held)
        return held

    def _loaded_again(self, state: State, length: int) -> Held | None:
        """A copy as a sequence; an empty one if the engine refuses it."""
        self.copies.drop(state)  # before others are copied out: it makes room
        try:
            held = self._loaded(state)
        except EngineError as error:
            _log.warning("a conversation that was kept can't be used, it is prefilled again: %s", error)
            return self._new(state.adapters)
        if held is None or length < len(state.tokens):  # else the sequence has it all
            self.copies.keep(state)
        return held

    def _loaded(self, state: State) -> Held | None:
        """A new sequence with the contents of ``state``, or None if there are no cells. EngineError if it is refused.

        The beginning that another sequence has too is then shared with it.
        """
        if not self.make_cells(len(state.tokens)) or (held := self._new(state.adapters)) is None:
            return None
        try:
            self._tower.load(held.number, state.kv, len(state.tokens))
        except EngineError:
            self._release(held)
            raise
        held.tokens, held.logits, held.fixed = state.tokens.tolist(), state.logits, state.fixed
        held.tag = state.tag
        self._cells.append(held.number, len(held.tokens))
        if self._tower.n_sequences > 1:
            self._share_beginning(held, state.tokens)
        return held

    def _share_beginning(self, held: Held, tokens: Tokens) -> None:
        for length, entry in self._tree.matches(tokens, held.adapters):
            if isinstance(entry, Held) and entry is not held:
                common = min(length, len(entry.tokens))
                self._tower.share(entry.number, held.number, common)
                self._cells.share(entry.number, held.number, common)
                return

    def _move_out(self, held: Held) -> None:
        state = self._worth_keeping(held)
        self._release(held)
        if state:
            self.copies.keep(state)

    def _worth_keeping(self, held: Held) -> State | None:
        """A copy of a sequence for memory or disk, if there is room and nothing else has as much."""
        matches = self._tree.matches(held.indexed, held.adapters)
        others = (entry for length, entry in matches if length == len(held.indexed))
        if any(
            entry is not held and not isinstance(entry, Stored) and len(entry.tokens) >= len(held.tokens)
            for entry in others
        ):
            return None
        has_room = self.copies.make_room(self._bytes(held))
        if not has_room and not self.copies.disk:
            tell_lost(held.tokens)
            return None
        return self._tried_copy(held)

    def _tried_copy(self, held: Held) -> State | None:
        try:
            return self._copy(held)
        except (EngineError, MemoryError) as error:
            _log.warning("a conversation of %s tokens can't be kept: %s", f"{len(held.tokens):,}", error)
            return None

    def _bytes(self, held: Held) -> int:
        """What a copy takes."""
        beside = 4 * len(held.tokens) + (0 if held.logits is None else held.logits.nbytes)
        return beside + self._tower.saved_bytes(held.number)

    def _copy(self, held: Held) -> State:
        tokens = np.array(held.tokens, np.int32)
        return State(tokens, self._tower.save(held.number), held.logits, held.fixed, held.tag, held.adapters)

    def _release(self, held: Held) -> None:
        """The sequence is empty and free."""
        if len(held.indexed):
            self._tree.remove(held.indexed, held)
        self._tower.cut(held.number, 0)
        self._cells.cut(held.number, 0)
        self._held.remove(held)
        self._free.append(held.number)

    def _index(self, held: Held, tokens: Tokens) -> None:
        if len(held.indexed):
            self._tree.remove(held.indexed, held)
        self._tree.insert(tokens, held)
        held.indexed = tokens

    def _touch(self, held: Held) -> None:
        self._held.remove(held)
        self._held.append(held)


def _may_be_cut(held: Held, length: int, owner: CacheOwner | None) -> bool:
    """Whether what the sequence has after ``length`` tokens may be lost: its owner left it, or it is little."""
    known = held.owner() if held.owner else None
    if known is None:
        return not held.tag and len(held.tokens) - length < _WORTH_KEEPING
    return known is owner

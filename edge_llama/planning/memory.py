"""Will it fit: how much context a model gets in the memory that there is."""

from collections.abc import Callable
from dataclasses import dataclass

from edge_llama.backends.estimates import Need
from edge_llama.errors import OptionError
from edge_llama.files.artifact import Artifact

DEFAULT_LIMIT = 16384  # a day's chat; more costs memory that most never use
_STEP = 256  # llama.cpp pads the cache to this
_WHAT_FITS = "what fits"

Needed = Callable[[int, int], Need]
"""What a model takes with a context of so many tokens, and so many cells for all conversations."""


@dataclass(frozen=True, slots=True)
class ContextSize:
    """A conversation may have ``n_ctx`` positions; ``reason`` says why this many.

    All share ``n_cells`` positions of KV cache, which take ``bytes``; ``needed`` is what the model takes in all.
    Both are 0 where a server has it.
    """

    n_ctx: int
    bytes: int
    reason: str
    n_cells: int
    needed: int

    @property
    def is_cut(self) -> bool:
        """Whether memory, and nothing else, says that it is no more."""
        return self.reason == _WHAT_FITS

    def __str__(self) -> str:
        cells = f" of {self.n_cells:,} cells for all conversations" if self.n_cells != self.n_ctx else ""
        cache = f", KV cache{cells} {self.bytes / 1e6:,.0f} MB" if self.n_cells else ""
        return f"{self.n_ctx:,} tokens of context ({self.reason}){cache}"


def context_size(
    artifact: Artifact,
    requested: int | None,
    needed: Needed,
    available: int,
    *,
    kv_cells: int | None = None,
    is_forced: bool = False,
) -> ContextSize:
    """The context to open: ``requested`` if it fits, else as much as is useful and fits in ``available`` bytes.

    The KV cache has ``kv_cells`` positions, if so many are asked for, else as many as a conversation may have. Raises
    OptionError if what was requested is no size, exceeds what the model was trained for, or does not fit, unless it
    ``is_forced``: with the numbers and the largest that does.
    """
    room = _Room(artifact, needed, available, kv_cells, is_forced)
    return room.chosen() if requested is None else room.asked(requested)


@dataclass(frozen=True, slots=True)
class _Room:
    artifact: Artifact
    needed: Needed
    available: int
    kv_cells: int | None
    is_forced: bool

    def chosen(self) -> ContextSize:
        """As much as is useful and fits."""
        trained, least = self.artifact.n_ctx_train, min(_STEP, self.artifact.n_ctx_train)
        # Half of what is free: the rest is for others, and for the pages of the model's own file.
        room = self._largest(lambda n_ctx: self._need(n_ctx).beside_weights, max(0, self._beside_weights) // 2)
        n_ctx, reason = min((trained, "all it was trained for"), (DEFAULT_LIMIT, "the default"), (room, _WHAT_FITS))
        if n_ctx < least and not self.is_forced:
            need = self._need(least)
            raise OptionError(
                f"{self.artifact.path}: not enough memory: the model takes {self.artifact.weight_bytes:,} bytes and "
                f"with {least:,} tokens of context {need.nbytes:,}, {self.available:,} are available",
                remedy=f"close other programs, use a smaller model{self._or_mapped}, or run it anyway (--force-fit)",
            )
        return self._size(max(n_ctx, least), reason)

    def asked(self, n_ctx: int) -> ContextSize:
        """What was requested."""
        trained = self.artifact.n_ctx_train
        if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or not 1 < n_ctx <= trained:
            raise OptionError(
                f"n_ctx is {n_ctx!r}, expected a whole number from 2 to {trained:,}, what the model was trained for"
            )
        if self._need(n_ctx).nbytes > self.available and not self.is_forced:
            largest = self._largest(lambda size: self._need(size).nbytes, self.available)
            beside = self._need(n_ctx).beside_weights
            raise OptionError(
                f"n_ctx {n_ctx:,} needs {beside:,} bytes beside the model's {self.artifact.weight_bytes:,}, "
                f"{self.available:,} are available",
                remedy=f"at most {largest:,} fit" if largest else "use a smaller model, or --force-fit",
            )
        return self._size(n_ctx, "as asked")

    def _size(self, n_ctx: int, reason: str) -> ContextSize:
        """With its cells. OptionError if they don't hold one whole conversation, or don't fit."""
        cells = n_ctx if self.kv_cells is None else self.kv_cells
        need = self.needed(n_ctx, cells)
        if cells < n_ctx:
            raise OptionError(
                f"kv_cells is {cells:,}, less than the {n_ctx:,} tokens of context that a conversation may use",
                remedy="give more, or a smaller n_ctx",
            )
        if self.kv_cells is not None and need.nbytes > self.available and not self.is_forced:
            largest = most(n_ctx, cells, lambda count: self.needed(n_ctx, count).nbytes <= self.available)
            raise OptionError(
                f"kv_cells {cells:,} need {need.beside_weights:,} bytes beside the model, "
                f"{max(0, self._beside_weights):,} are available",
                remedy=f"at most {largest:,} fit",
            )
        return ContextSize(n_ctx, need.kv_cache, reason, cells, need.nbytes)

    @property
    def _or_mapped(self) -> str:
        return ", map it (--mmap)" if self.artifact.shape.n_expert else ""

    @property
    def _beside_weights(self) -> int:
        """What the weights leave, as far as they must be there: of mapped ones not all."""
        return self.available - self._need(min(_STEP, self.artifact.n_ctx_train)).weights

    def _need(self, n_ctx: int) -> Need:
        return self.needed(n_ctx, n_ctx)

    def _largest(self, nbytes: Callable[[int], int], room: int) -> int:
        """The largest context, of whole steps, that takes at most ``room``; 0 if none does."""
        steps = most(0, self.artifact.n_ctx_train // _STEP, lambda count: nbytes(_STEP * count) <= room)
        return self.artifact.n_ctx_train if nbytes(self.artifact.n_ctx_train) <= room else _STEP * steps


def most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from ``low`` to ``high`` that ``fits``, as do all below it; ``low`` if none does."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low

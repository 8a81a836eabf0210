"""Will it fit: arithmetic over the model's sizes and this machine's memory."""

from dataclasses import dataclass, replace

from edge_llama.errors import OptionError
from edge_llama.files.artifact import Artifact
from edge_llama.files.formats import Format

DEFAULT_LIMIT = 16384  # a day's chat; more costs memory that most never use
_STEP = 256  # llama.cpp pads the cache to this
WORK_BYTES = 256 << 20  # compute buffers, logits and the process itself
_WHAT_FITS = "what fits"


@dataclass(frozen=True, slots=True)
class ContextSize:
    """A conversation may have ``n_ctx`` positions; ``reason`` says why this many.

    All share ``n_cells`` positions of KV cache, which take ``bytes``: none where a server has the cache.
    """

    n_ctx: int
    bytes: int
    reason: str
    n_cells: int

    @property
    def is_cut(self) -> bool:
        """Whether memory, and nothing else, says that it is no more."""
        return self.reason == _WHAT_FITS

    def __str__(self) -> str:
        cells = f" of {self.n_cells:,} cells for all conversations" if self.n_cells != self.n_ctx else ""
        cache = f", KV cache{cells} {self.bytes / 1e6:,.0f} MB" if self.n_cells else ""
        return f"{self.n_ctx:,} tokens of context ({self.reason}){cache}"


def context_size(
    artifact: Artifact, requested: int | None, kv_format: Format, available: int, kv_cells: int | None = None
) -> ContextSize:
    """The context to open: ``requested`` if it fits, else as much as is useful and fits in ``available`` bytes.

    The KV cache has ``kv_cells`` positions, if so many are asked for, else as many as a conversation may have. Raises
    OptionError if what was requested is no size, exceeds what the model was trained for, or does not fit: with the
    numbers and the largest that does.
    """
    size = _context_size(artifact, requested, kv_format, available)
    return size if kv_cells is None else _with_cells(size, kv_cells, available - artifact.weight_bytes - WORK_BYTES)


def _with_cells(size: ContextSize, kv_cells: int, room: int) -> ContextSize:
    """OptionError if the cells don't hold one whole conversation, or take more than ``room`` bytes."""
    if kv_cells < size.n_ctx:
        raise OptionError(
            f"kv_cells is {kv_cells:,}, less than the {size.n_ctx:,} tokens of context that a conversation may use",
            remedy="give more, or a smaller n_ctx",
        )
    nbytes = size.bytes * kv_cells // size.n_ctx
    if nbytes > room:
        raise OptionError(
            f"kv_cells {kv_cells:,} need {nbytes:,} bytes beside the model, {max(0, room):,} are available",
            remedy=f"at most {max(0, room) * size.n_ctx // max(size.bytes, 1):,} fit",
        )
    return replace(size, n_cells=kv_cells, bytes=nbytes)


def _context_size(artifact: Artifact, requested: int | None, kv_format: Format, available: int) -> ContextSize:
    per_token = artifact.kv_values_per_token * kv_format.block_bytes // kv_format.block_size
    room = available - artifact.weight_bytes - WORK_BYTES
    largest = max(0, room // max(per_token, 1) // _STEP * _STEP)
    trained = artifact.n_ctx_train
    if requested is None:
        # Half of what is free: the rest is for others, and for the pages of the model's own file.
        n_ctx, reason = min(
            (trained, "all it was trained for"), (DEFAULT_LIMIT, "the default"), (largest // 2, _WHAT_FITS)
        )
        if n_ctx < min(_STEP, trained):
            raise OptionError(
                f"{artifact.path}: not enough memory: the model takes {artifact.weight_bytes:,} bytes, "
                f"{available:,} are available",
                remedy="close other programs, or use a smaller model",
            )
        return ContextSize(n_ctx, n_ctx * per_token, reason, n_ctx)
    if isinstance(requested, bool) or not isinstance(requested, int) or not 1 < requested <= trained:
        raise OptionError(
            f"n_ctx is {requested!r}, expected a whole number from 2 to {trained:,}, what the model was trained for"
        )
    if requested > largest:
        raise OptionError(
            f"n_ctx {requested:,} needs {requested * per_token:,} bytes beside the model's {artifact.weight_bytes:,}, "
            f"{available:,} are available",
            remedy=f"at most {min(largest, trained):,} fit",
        )
    return ContextSize(requested, requested * per_token, "as asked", requested)


def fits_beside(artifact: Artifact, requested: int | None, available: int, other: int) -> bool:
    """Whether a model gets as much context in ``available`` bytes as with ``other`` more, which another model takes.

    OptionError if it does not fit even with those.
    """
    alone = context_size(artifact, requested, artifact.kv_format, available + other)
    try:
        return context_size(artifact, requested, artifact.kv_format, available) == alone
    except OptionError:
        return False

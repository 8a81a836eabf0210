"""What each matrix of a checkpoint is multiplied by, in sums of squares: what llama-imatrix gathers from a file.

It leaves the same out: all that is not a matrix within a layer (``tools/imatrix/imatrix.cpp``, ggml 0.25).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.architectures import for_config
from converters.checkpoint import Checkpoint
from converters.evidence.stages import Floats
from converters.evidence.streamed import Ids, OnProgress, StreamedTower
from quant.importance import Importance, Sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NO_ROWS = np.empty((0, 0), np.float32)


class Squares:
    """Adds up what matrices are told to multiply (:class:`~converters.evidence.tower.OnInput`)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """For the matrices of ``checkpoint``; CheckpointError if it is not whole, or no GGUF file can hold it."""
        weights = [weight.tensor for weight in for_config(checkpoint).weights(checkpoint)]
        self._experts = {tensor.name: tensor.shape[0] if len(tensor.shape) > 2 else 1 for tensor in weights}
        self.sums: dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
        """By the matrices' names in GGUF, of each expert the sums (n_experts, columns), and over how many tokens."""
        self._last: tuple[Floats, NDArray[np.float64]] = _NO_ROWS, np.empty(0)

    def __call__(self, tensor: str, rows: Floats, expert: int | None) -> None:
        """Add ``rows``, ``(n, columns)``: of all of ``tensor``, or of one expert."""
        if rows is not self._last[0]:  # queries, keys and values are told the same one after the other
            self._last = rows, np.square(rows).sum(axis=0, dtype=np.float64)
        if tensor not in self.sums:
            count = self._experts[tensor]
            self.sums[tensor] = np.zeros((count, rows.shape[1])), np.zeros(count, np.int64)
        sums, counts = self.sums[tensor]
        sums[expert or 0] += self._last[1]
        counts[expert or 0] += len(rows)

    def add(self, other: "Squares") -> None:
        """Add what ``other`` has, of the same checkpoint."""
        for name, (sums, counts) in other.sums.items():
            known = self.sums.get(name)
            self.sums[name] = (sums, counts) if known is None else (known[0] + sums, known[1] + counts)

    def entries(self) -> dict[str, Sums]:
        """As files have them."""
        return {name: Sums(sums.astype(np.float32), counts) for name, (sums, counts) in self.sums.items()}


def add_chunks(
    squares: Squares,
    checkpoint: Checkpoint,
    chunks: Sequence[Ids],
    *,
    threads: int,
    folder: Path,
    on_progress: OnProgress | None = None,
    features: Sequence[Floats | None] = (),
) -> None:
    """Add what comes of ``chunks`` of token ids, each read from an empty context; ``features`` as in ``prepare``.

    After an error ``squares`` are as before. So what is long is gone on from: some chunks at a time. Memory, ``folder``
    and errors are those of :class:`StreamedTower`.
    """
    found = Squares(checkpoint)
    with StreamedTower(checkpoint, threads=threads, folder=folder, on_input=found) as tower:
        tower.prepare(chunks, on_progress, features)
    squares.add(found)


def of_checkpoint(
    checkpoint: Checkpoint,
    chunks: Sequence[Ids],
    *,
    threads: int,
    folder: Path,
    on_progress: OnProgress | None = None,
    features: Sequence[Floats | None] = (),
    datasets: Sequence[str] = (),
    notes: Mapping[str, str] | None = None,
) -> Importance:
    """The importance matrix of ``checkpoint`` over ``chunks`` of token ids, each read from an empty context.

    ``features`` are images' rows for negative ids, ``datasets`` and ``notes`` are for the file. ``chunk_size`` is the
    most frequent length. Errors are those of :class:`Squares` and :func:`add_chunks`.
    """
    squares = Squares(checkpoint)
    add_chunks(squares, checkpoint, chunks, threads=threads, folder=folder, on_progress=on_progress, features=features)
    size = Counter(map(len, chunks)).most_common(1)[0][0]
    return Importance(squares.entries(), len(chunks), size, tuple(datasets), notes or {})

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
    """Adds up what matrices are told to multiply (:class:`~converters.evidence.tower.OnInput`), in float64.

    ``experts`` has for each matrix how many it holds, by its name in GGUF.
    """

    def __init__(self, experts: Mapping[str, int]) -> None:
        self._experts = experts
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._last: tuple[Floats, NDArray[np.float64]] = _NO_ROWS, np.empty(0)

    def __call__(self, tensor: str, rows: Floats, expert: int | None) -> None:
        """Add ``rows``, ``(n, columns)``: of all of ``tensor``, or of one expert."""
        if rows is not self._last[0]:  # queries, keys and values are told the same one after the other
            self._last = rows, np.square(rows).sum(axis=0, dtype=np.float64)
        count = self._experts[tensor]
        sums = self._sums.setdefault(tensor, np.zeros((count, rows.shape[1])))
        sums[expert or 0] += self._last[1]
        self._counts.setdefault(tensor, np.zeros(count, np.int64))[expert or 0] += len(rows)

    def entries(self) -> dict[str, Sums]:
        """What has come together, by the matrices' names."""
        return {name: Sums(sums.astype(np.float32), self._counts[name]) for name, sums in self._sums.items()}


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
    most frequent length. Memory, ``folder`` and errors are those of :class:`StreamedTower`.
    """
    weights = [weight.tensor for weight in for_config(checkpoint).weights(checkpoint)]
    squares = Squares({tensor.name: tensor.shape[0] if len(tensor.shape) > 2 else 1 for tensor in weights})
    with StreamedTower(checkpoint, threads=threads, folder=folder, on_input=squares) as tower:
        tower.prepare(chunks, on_progress, features)
    size = Counter(map(len, chunks)).most_common(1)[0][0]
    return Importance(squares.entries(), len(chunks), size, tuple(datasets), notes or {})

"""A checkpoint's text tower run layer by layer: full-precision logits in the memory of one layer, without torch.

All chunks go through a layer before the next one's weights are read. Between layers their hidden states lie in a
folder.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Checkpoint
from converters.evidence.head import AHEAD, Embedding, Head
from converters.evidence.layers import bounds_of, run_states
from converters.evidence.needs import needed_bytes
from converters.evidence.states import ELSEWHERE, Floats, StoredStates
from converters.evidence.tower import OnInput, OnLayer, Tower, Watch
from edge_llama.errors import OptionError, OutputError

Ids = NDArray[np.int64]
OnProgress = Callable[[int, int], None]
_NOTHING = np.empty((0, 0), np.float32)


class StreamedTower:
    """The text tower of ``checkpoint``; a source of logits as :mod:`edge_llama.fidelity.source` has it.

    ``folder`` is where hidden states lie, in files without a name; ``on_input`` is told what every matrix multiplies,
    ``on_layer`` what every layer does. To be closed. Raises CheckpointError for a checkpoint that is not whole or
    sound, OptionError for chunks that don't fit it, OutputError if ``folder`` has no room, EngineError if ONNX Runtime
    fails.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int,
        folder: Path,
        on_input: OnInput | None = None,
        on_layer: OnLayer | None = None,
    ) -> None:
        self._checkpoint, self._threads, self._folder = checkpoint, threads, folder
        self._on_input, self._on_layer = on_input, on_layer
        self.name = checkpoint.path.name
        self.n_vocab = Tower(checkpoint, threads=threads, longest=1).hp.n_vocab
        self._files: list[StoredStates] = []
        self._bounds: list[tuple[int, int]] = []
        self._head: Head | None = None
        self._ahead: tuple[int, Floats] = 0, _NOTHING

    def __enter__(self) -> "StreamedTower":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the room in the folder back."""
        for file in self._files:
            file.close()
        self._files, self._head = [], None
        self._ahead = 0, _NOTHING

    def prepare(
        self,
        chunks: Sequence[Ids],
        on_progress: OnProgress | None = None,
        features: Sequence[Floats | None] = (),
    ) -> None:
        """Run all layers over ``chunks``, ids ``(n,)`` each; ``on_progress`` gets tokens times layers.

        ``features`` has for each chunk the rows ``(m, n_embd)`` that stand for its negative ids, in order: images'.
        """
        self.close()
        if not chunks or not all(map(len, chunks)):
            raise OptionError("there is no token to run", remedy="give longer texts")
        try:
            self._run(chunks, on_progress, features or [None] * len(chunks))
        except BaseException:
            self.close()
            raise

    def _run(self, chunks: Sequence[Ids], on_progress: OnProgress | None, features: Sequence[Floats | None]) -> None:
        tower = Tower(self._checkpoint, threads=self._threads, longest=max(map(len, chunks)))
        self._bounds = bounds_of(list(map(len, chunks)))
        n_layer, n_tokens = tower.hp.n_layer, self._bounds[-1][1]
        states = self._begin(tower, list(map(len, chunks)))
        embedding = Embedding(tower)
        for (start, _), ids, given in zip(self._bounds, chunks, features, strict=True):
            states.write(start, embedding.states(np.asarray(ids, np.int64), given))
        for layer in range(n_layer):

            def tell(share: float, layer: int = layer) -> None:
                if on_progress:
                    on_progress(layer * n_tokens + round(share * n_tokens), n_layer * n_tokens)

            watch = Watch(self._on_input, self._on_layer, tell)
            run_states(tower, layer, states, self._bounds, watch, lambda: self._states(tower.hp.n_embd))
            self._drop_scratch()
        self._head = Head(tower)

    def _begin(self, tower: Tower, lengths: Sequence[int]) -> StoredStates:
        """The place for states, once there is room for all."""
        nbytes = needed_bytes(tower, lengths, is_watched=self._on_layer is not None).disk
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be written: {error.strerror}", remedy=ELSEWHERE) from error
        if free < nbytes:
            raise OutputError(
                f"{self._folder}: {free:,} bytes are free, but hidden states need {nbytes:,}", remedy=ELSEWHERE
            )
        return self._states(tower.hp.n_embd)

    def _states(self, columns: int) -> StoredStates:
        file = StoredStates(self._folder, columns)
        self._files.append(file)
        return file

    def _drop_scratch(self) -> None:
        for file in self._files[1:]:
            file.close()
        del self._files[1:]

    def logits(self, number: int, start: int, stop: int) -> Floats:
        """The logits after the tokens ``start`` to ``stop - 1`` of chunk ``number``: ``(stop - start, n_vocab)``."""
        if self._head is None:
            raise OptionError("logits are asked for before chunks were given", remedy="prepare them")
        begin, end = self._bounds[number]
        first, last = begin + start, begin + stop
        known, rows = self._ahead
        if not known <= first <= last <= known + len(rows):
            del rows
            self._ahead = 0, _NOTHING  # before there are others
            more = max(stop - start, AHEAD // (4 * self.n_vocab))
            states = self._files[0].read(first, min(first + more, end))
            known, rows = self._ahead = first, self._head.logits(states)
        return rows[first - known : last - known].copy()  # who keeps a part doesn't keep the whole

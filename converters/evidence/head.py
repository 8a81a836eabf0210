"""Both ends of a tower: rows of the embedding, and logits by blocks of the vocabulary."""

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from converters.evidence.stages import Floats, Stage, read, read_rows
from converters.evidence.tower import Tower
from converters.tensors.split import rows as rows_of
from edge_llama.errors import InputError

_BLOCK = 32 << 20
"""Bytes of a block of the head, in float32."""
_KEPT = 256 << 20
"""A head of no more is read once."""
AHEAD = 256 << 20
"""Bytes of logits that are computed ahead, so that the head is read as seldom."""
_STATES, _LOGITS = "states", "logits"


class Embedding:
    """Rows of the table; in place of negative ids, rows that are given."""

    def __init__(self, tower: Tower) -> None:
        self._table = tower.tensors["model.embed_tokens.weight"]
        self._path = tower.path
        self._scale = np.float32(tower.hp.embedding_scale)

    def states(self, ids: NDArray[np.int64], features: Floats | None = None) -> Floats:
        """What the first layer is given for ``ids`` ``(n,)``: ``(n, n_embd)``.

        ``features``, ``(m, n_embd)``, are for the negative ids, in order. InputError for ids past the vocabulary and
        another number of features.
        """
        if len(ids) and ids.max() >= self._table.rows:
            raise InputError(
                f"token {ids.max()} is past the vocabulary of {self._table.rows:,} tokens",
                remedy="encode texts by this checkpoint's own tokenizer",
            )
        is_given = ids < 0
        columns = self._table.columns
        given = (0, columns) if features is None else features.shape
        if given != (is_given.sum(), columns):
            raise InputError(
                f"{is_given.sum()} ids stand for images' embeddings of {columns:,} values, but {list(given)} are given",
                remedy="give a row for each negative id",
            )
        states = np.empty((len(ids), columns), np.float32)
        known, places = np.unique(ids[~is_given], return_inverse=True)
        rows = [read_rows(self._table, token, token + 1, self._path)[0] * self._scale for token in known.tolist()]
        if rows:
            states[~is_given] = np.stack(rows)[places]
        if features is not None:
            states[is_given] = features
        return states


class Head:
    """The norm after the last layer, and the matrix after it, block by block."""

    def __init__(self, tower: Tower) -> None:
        self._tower, self.n_vocab = tower, tower.hp.n_vocab
        self._name = "model.embed_tokens.weight" if tower.hp.tied else "lm_head.weight"
        table = tower.tensors[self._name]
        step = table.step
        self._size = min(max(_BLOCK // (4 * table.columns) // step, 1) * step, table.rows)
        self._stages: dict[int, Stage] = {}
        self._is_kept = 4 * table.rows * table.columns <= _KEPT
        self._kept: dict[int, dict[str, Floats]] = {}

    def logits(self, states: Floats) -> Floats:
        """``(n, n_vocab)`` of the last layer's output, ``(n, n_embd)``. CheckpointError for a weight that is NaN."""
        found = np.empty((len(states), self.n_vocab), np.float32)
        for start in range(0, self.n_vocab, self._size):
            stop = min(start + self._size, self.n_vocab)
            stage, weights = self._block(start, stop)
            found[:, start:stop] = stage.run({**weights, _STATES: states[None]}, [_LOGITS])[0][0]
        return found

    def _block(self, start: int, stop: int) -> tuple[Stage, dict[str, Floats]]:
        block = rows_of(self._tower.tensors[self._name], start, stop).renamed(self._name)
        stage = self._stages.get(stop - start) or self._stage(block)
        self._stages[stop - start] = stage
        if start in self._kept:
            return stage, self._kept[start]
        weights = {
            name: read(block if tensor.name == self._name else tensor, self._tower.path)
            for name, tensor in stage.weights.items()
        }
        if self._is_kept:
            self._kept[start] = weights
        return stage, weights

    def _stage(self, block: Tensor) -> Stage:
        """The graph for a block of this size."""
        writer, graph = self._tower.writer({**self._tower.tensors, self._name: block})
        states = graph.input(_STATES, ("batch", "sequence", self._tower.hp.n_embd))
        normed = writer.ops.norm(states, self._tower.tensors["model.norm.weight"], "norm")
        shown = graph.show(writer.logits(normed))
        assert shown == _LOGITS  # noqa: S101 - its writer calls it so
        return Stage(graph, self._tower.threads)


def block_bytes(tower: Tower) -> int:
    """Bytes of the head that are in memory at once, in float32."""
    whole = 4 * tower.hp.n_vocab * tower.hp.n_embd
    return whole if whole <= _KEPT else 2 * _BLOCK

"""Rows of a merged tensor, computed while they are read: float32, whatever the base's format.

Low rank: ``base + scale * (B @ A)``. DoRA (https://arxiv.org/abs/2402.09353): that, scaled so that each output has the
length which was trained. Sums are made in float64: then the bytes don't depend on how a BLAS library splits the work.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from edge_llama.errors import CheckpointError
from edge_llama.files.formats import F32
from quant.kernels import NonFiniteError, recode

Matrix = Callable[[Tensor], NDArray[np.float64]]
"""Reads a small tensor whole."""
_CHUNK = 1 << 20  # weights of a base read at once, where all of it is needed


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of a module: A ``(r, inputs)``, B ``(outputs, r)``; of an embedding both are transposed."""

    path: Path
    a: Tensor
    b: Tensor

    @property
    def is_embedding(self) -> bool:
        """Whether inputs are tokens, so that a row of the base is an input and not an output."""
        return "lora_embedding_" in self.a.name

    def check(self, base: Tensor, rank: int, remedy: str) -> None:
        """CheckpointError unless the shapes fit together, and fit the base's."""
        outputs, inputs = reversed(base.shape) if self.is_embedding else base.shape
        for tensor, shape in ((self.a, (rank, inputs)), (self.b, (outputs, rank))):
            check_shape(self.path, tensor, shape, f"rank {rank} and the base imply", remedy)

    def factors(self, matrix: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Left ``(rows, r)`` and right ``(r, columns)``, whose product has the base's shape."""
        a, b = matrix(self.a), matrix(self.b)
        return (a.T, b.T) if self.is_embedding else (b, a)


def check_shape(path: Path, tensor: Tensor, shape: Sequence[int], reason: str, remedy: str) -> None:
    """CheckpointError with both shapes unless ``tensor`` has ``shape``."""
    if tensor.shape != tuple(shape):
        raise CheckpointError(
            f"{path}: {tensor.name!r} has shape {list(tensor.shape)}, {reason} {list(shape)}", remedy=remedy
        )


def low_rank(base: Tensor, pair: Pair, scale: float, matrix: Matrix) -> Tensor:
    """``base + scale * left @ right``, float32 rows."""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        left, right = pair.factors(matrix)
        rows = _floats(base, start, stop)
        delta = (left[start:stop] @ right * scale).astype(np.float32)
        return (rows + delta).view(np.uint8)

    return replace(base, format=F32, read=read).reading(pair.a, pair.b)


def dora(base: Tensor, pair: Pair, scale: float, magnitude: Tensor, matrix: Matrix) -> Tensor:
    """The low-rank sum, each output as long as ``magnitude`` says: a row, or in an embedding a column."""
    summed = low_rank(base, pair, scale, matrix)
    lengths = _ColumnLengths(summed)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        rows = summed.read(start, stop).view(np.float32)
        wanted = matrix(magnitude)[0]
        with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros has no direction: NaN, as in peft
            factor = wanted / lengths() if pair.is_embedding else (wanted[start:stop] / _lengths(rows))[:, None]
            scaled: NDArray[np.float32] = (rows * factor).astype(np.float32)
        return scaled.view(np.uint8)

    return replace(summed, read=read).reading(magnitude)


def _lengths(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
    return lengths


class _ColumnLengths:
    """The lengths of a tensor's columns: all of it is read once, when they are first asked for."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._lock = threading.Lock()
        self._found: NDArray[np.float64] | None = None

    def __call__(self) -> NDArray[np.float64]:
        with self._lock:
            if self._found is None:
                self._found = self._computed()
            return self._found

    def _computed(self) -> NDArray[np.float64]:
        tensor = self._tensor
        step = max(_CHUNK // tensor.columns // tensor.step, 1) * tensor.step
        squares = np.zeros(tensor.columns)
        for start in range(0, tensor.rows, step):
            rows = tensor.read(start, min(start + step, tensor.rows)).view(np.float32)
            squares += np.square(rows, dtype=np.float64).sum(axis=0)
        return np.sqrt(squares)


def with_rows(base: Tensor, indices: Sequence[int], rows: Tensor, matrix: Matrix) -> Tensor:
    """``base`` with ``rows`` in place of those that ``indices`` name; of one that is named twice the last counts."""
    at = np.array(indices, np.int64)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        found = _floats(base, start, stop)
        inside = (at >= start) & (at < stop)
        found[at[inside] - start] = matrix(rows)[inside]
        return found.view(np.uint8)

    return replace(base, format=F32, read=read).reading(rows)


def plus(base: Tensor, added: Tensor, scale: float, matrix: Matrix) -> Tensor:
    """``base + scale * added``, float32: of a bias."""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        delta = (matrix(added)[start:stop] * scale).astype(np.float32)
        return (_floats(base, start, stop) + delta).view(np.uint8)

    return replace(base, format=F32, read=read).reading(added)


def finite(tensor: Tensor, path: Path) -> Tensor:
    """``tensor``, whose reading fails with the adapter's name where it is NaN or infinite."""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        raw = tensor.read(start, stop)
        _recoded(raw, tensor, path)
        return raw

    return replace(tensor, read=read)


def matrix_reader(path: Path) -> Matrix:
    """Reads a small tensor whole. A tensor's chunks follow each other, so a few matrices in memory are enough."""

    @lru_cache(maxsize=8)
    def matrix(tensor: Tensor) -> NDArray[np.float64]:
        return _recoded(tensor.read(0, tensor.rows), tensor, path).view(np.float32).astype(np.float64)

    return matrix


def _recoded(raw: NDArray[np.uint8], tensor: Tensor, path: Path) -> NDArray[np.uint8]:
    try:
        return recode(raw, tensor.format, F32)
    except NonFiniteError as error:
        raise CheckpointError(f"{path}: {tensor.name!r}: {error}", remedy="the training went wrong") from error


def _floats(tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows as float32, which the caller may change."""
    return recode(tensor.read(start, stop), tensor.format, F32).view(np.float32).copy()

"""Each matrix of a GGUF file beside the checkpoint's own, row by row: which is wrong, and whether rounding explains it.

The checkpoint's rows are recoded to the file's format here, so that what the format alone costs is known exactly; a row
that is much further off was not rounded but is another one.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.architectures import Weight
from converters.checkpoint import Tensor
from converters.tensors.integers import floats
from edge_llama.errors import CheckpointError
from edge_llama.files.formats import F32, Format
from quant.kernels import NonFiniteError, recode
from quant.loading import Need, loading_kernels
from quant.reference import ggml

_AT_ONCE = 1 << 20
"""Weights of a tensor that are compared at once, by each thread: 4 MB in float32, of which there are three."""
_TIMES, _MORE = 2.5, 2e-3
"""A row may be so many times as far off as its rounding, and so much more."""
_UNLIKE, _UNLIKE_TIMES = 1.0, 1.5
"""So far off, zeros would be as near to a row: below this many times its rounding that is a format's doing.

Rows that were rounded by importance may be as far off as that, too: it moves errors to columns that count for little.
"""
_FAINT = 1e-3
"""Rows that are fainter than this part of the others are measured by the others' size."""


@dataclass(frozen=True, slots=True)
class MatrixError:
    """A tensor of the file beside the checkpoint's. ``error`` is the length of the difference by that of the tensor."""

    name: str
    layer: int
    role: str
    error: float
    expected: float
    """What recoding the checkpoint's own to this format costs."""
    rows: int
    rows_off: int
    """Rows that rounding does not explain."""
    worst: int = 0
    """The row that is furthest off beyond its rounding."""
    problem: str = ""
    """Why they could not be compared: it is missing, or of another shape."""

    @property
    def is_off(self) -> bool:
        """Whether it is another matrix than the checkpoint's."""
        return bool(self.problem or self.rows_off)


@dataclass(frozen=True, slots=True)
class Compared:
    """All matrices, and the SHA-256 of the checkpoint's weights, as they were read: by name, shape and content."""

    matrices: tuple[MatrixError, ...]
    source_sha256: str


def compare(
    weights: Sequence[Weight],
    stored: Mapping[str, Tensor],
    *,
    is_weighted: bool = False,
    threads: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Compared:
    """Compare ``weights``, the checkpoint's in GGUF's terms, with ``stored``, those of the file.

    ``is_weighted``: they were quantized by importance. ``on_progress`` is told weights. CheckpointError for one that is
    NaN or infinite, or can't be read.
    """
    work = Counter[Need]()
    for weight in weights:
        if (own := stored.get(weight.tensor.name)) is not None and own.format.is_quantized:
            work[_need(own.format)] += own.rows * own.columns
    total, done = sum(weight.tensor.rows * weight.tensor.columns for weight in weights), 0
    found, hashes = [], []
    with loading_kernels(work, threads), ThreadPoolExecutor(threads, "edge-llama-matrices") as pool:
        for error, digest in _in_order(pool, weights, stored, is_weighted, 2 * threads):
            found.append(error)
            hashes.append(digest)
            tensor = weights[len(found) - 1].tensor
            done += tensor.rows * tensor.columns
            if on_progress:
                on_progress(done, total)
    return Compared(tuple(found), hashlib.sha256(b"".join(sorted(hashes))).hexdigest())


def _in_order(
    pool: ThreadPoolExecutor, weights: Sequence[Weight], stored: Mapping[str, Tensor], is_weighted: bool, ahead: int
) -> Iterator[tuple[MatrixError, bytes]]:
    waiting = []
    for weight in weights:
        waiting.append(pool.submit(_compared, weight, stored.get(weight.tensor.name), is_weighted))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _compared(weight: Weight, own: Tensor | None, is_weighted: bool) -> tuple[MatrixError, bytes]:
    tensor = weight.tensor
    digest = hashlib.sha256(f"{tensor.name} {tensor.shape} {tensor.format.name}\n".encode())
    problem = _problem(tensor, own)
    sums = _Sums(is_weighted and own is not None and own.format.is_quantized)
    for start, stop in _chunks(tensor):
        raw = tensor.read(start, stop)
        digest.update(raw.tobytes())
        if own is None or problem:
            continue
        true = _numbers(raw, tensor)
        rounded = rounded_to(raw, tensor, own.format)
        sums.add(start, true, floats(own, start, stop), true if rounded is None else rounded)
    found = sums.found(tensor.name, weight.layer, weight.role, tensor.rows, problem)
    return found, digest.digest()


def _problem(tensor: Tensor, own: Tensor | None) -> str:
    if own is None:
        return "is missing"
    return "" if own.shape == tensor.shape else f"has the shape {list(own.shape)} instead of {list(tensor.shape)}"


def _chunks(tensor: Tensor) -> Iterator[tuple[int, int]]:
    rows = max(_AT_ONCE // tensor.columns // tensor.step, 1) * tensor.step
    for start in range(0, tensor.rows, rows):
        yield start, min(start + rows, tensor.rows)


def _numbers(raw: NDArray[np.uint8], tensor: Tensor) -> NDArray[np.float32]:
    return recode(raw, tensor.format, F32, check=False).view(np.float32)


def rounded_to(raw: NDArray[np.uint8], tensor: Tensor, format_: Format) -> NDArray[np.float32] | None:
    """What rows of ``tensor`` are in ``format_``, in float32; None if they stay as they are.

    CheckpointError for what that format can't hold.
    """
    if format_ is tensor.format or format_ is F32:
        return None
    importance = np.ones(tensor.columns, np.float32) if _need(format_).has_importance else None
    try:
        stored = recode(raw, tensor.format, format_, importance=importance)
        return recode(stored, format_, F32).view(np.float32)
    except NonFiniteError as error:
        raise CheckpointError(f"tensor {tensor.name!r}: {error}", remedy="it is damaged: download it again") from error
    except ValueError as error:
        raise CheckpointError(f"tensor {tensor.name!r}: {error}", remedy="convert to bf16 or f32") from error


def _need(format_: Format) -> Need:
    return Need(format_, has_importance=ggml.requires_importance(format_))


class _Sums:
    """Squares of differences, rows at a time."""

    def __init__(self, is_weighted: bool) -> None:
        self._is_weighted = is_weighted
        self._size = self._error = self._expected = 0.0
        self._off, self._worst, self._excess = 0, 0, 0.0

    def add(
        self, start: int, true: NDArray[np.float32], own: NDArray[np.float32], rounded: NDArray[np.float32]
    ) -> None:
        size, error, expected = _squares(true), _squares(own - true), _squares(rounded - true)
        self._size += float(size.sum())
        self._error += float(error.sum())
        self._expected += float(expected.sum())
        floor = np.maximum(size, _FAINT**2 * size.mean())
        floor[floor == 0] = 1.0
        off, usual = np.sqrt(error / floor), np.sqrt(expected / floor)
        most = np.maximum(_UNLIKE, _UNLIKE_TIMES * usual)
        if not self._is_weighted:
            most = np.minimum(most, _TIMES * usual + _MORE)
        excess = off - most
        self._off += int((excess > 0).sum())
        if (largest := float(excess.max())) > self._excess:
            self._excess, self._worst = largest, start + int(excess.argmax())

    def found(self, name: str, layer: int, role: str, rows: int, problem: str) -> MatrixError:
        size = self._size or 1.0
        error, expected = float(np.sqrt(self._error / size)), float(np.sqrt(self._expected / size))
        return MatrixError(name, layer, role, error, expected, rows, self._off, self._worst, problem)


def _squares(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return found

"""Matrices in integers as NPUs multiply them: 8 or 4 bits with a scale for each output, or low-power blocks of 4 bits.

In such a block (Qualcomm calls it LPBQ) a weight is a whole number times the block's own whole number of 1 to 16 times
a float32 scale of its output: the HTP multiplies by these in integers, where it dequantizes blocks with float scales at
every step, which takes four to five times as long.
"""

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from converters.checkpoint import Tensor
from converters.tensors.integers import floats
from edge_llama.files.formats import F32, FORMATS
from quant.kernels import recode
from quant.ranges import LEAST

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

I8 = FORMATS["i8"]
_CHUNK = 1 << 20  # weights looked through at once
_FINEST = 16
"""The largest whole number that a block's scale is of its output's."""
_ROUNDING = np.float32(1e-4)
"""So that the largest block's number is 16, whatever the division leaves."""


@dataclass(frozen=True, slots=True)
class RowForm:
    """How the weights of an output are stored: in ``bits``, 4 or 8, with one scale or one for each ``block`` (0: one).

    Blocks are of 4 bits.
    """

    bits: int
    block: int = 0

    @property
    def most(self) -> int:
        """The largest number; the least is its negative."""
        return 127 if self.bits == 8 else 7

    def of(self, matrix: Tensor) -> "RowForm":
        """The form that ``matrix`` can have: two numbers of neighbouring outputs share a byte, and blocks are whole."""
        if self.bits == 4 and matrix.rows % 2:
            return RowForm(8)
        return RowForm(4) if self.block and matrix.columns % self.block else self


class Integers:
    """A matrix in ``form``, which it must be able to have: what is stored of it, computed while it is read.

    What a row's numbers are worth is looked up once, however often and by how many threads it is asked for. What is
    read raises CheckpointError for weights that are NaN or infinite.
    """

    def __init__(self, matrix: Tensor, form: RowForm) -> None:
        self._matrix, self._form = matrix, form
        self._lock = threading.Lock()
        self._worth: NDArray[np.float32] | None = None

    @property
    def numbers(self) -> Tensor:
        """Its weights in int8, whatever ``form.bits``: each row by its scale and its blocks'."""
        matrix, form = self._matrix, self._form
        twice = f"{matrix.format} to int{form.bits}" if matrix.format.is_quantized else ""
        return replace(matrix, format=I8, read=_Numbers(matrix, form, self._worth_of_rows), requantized=twice)

    @property
    def scales(self) -> Tensor:
        """What a number of each row is worth, or of its finest block a sixteenth of that: float32 (rows,)."""

        def read(_start: int, _stop: int) -> "NDArray[np.uint8]":
            return self._worth_of_rows().view(np.uint8)[None]

        return Tensor(f"{self._matrix.name} scales", (self._matrix.rows,), F32, read)

    @property
    def block_numbers(self) -> Tensor:
        """By which whole number, 1 to 16, a block's weights are larger than its row's scale: uint8 (blocks, rows)."""
        matrix, form = self._matrix, self._form
        n_blocks = matrix.columns // form.block

        def read(start: int, stop: int) -> "NDArray[np.uint8]":
            factors = in_chunks(matrix, lambda rows: _factors(rows, form, _scales(rows, form)))
            by_block: NDArray[np.uint8] = np.ascontiguousarray(factors.T[start:stop]).astype(np.uint8)
            return by_block

        return Tensor(f"{matrix.name} block scales", (n_blocks, matrix.rows), I8, read, step=n_blocks)

    def _worth_of_rows(self) -> "NDArray[np.float32]":
        with self._lock:
            if self._worth is None:
                scales = in_chunks(self._matrix, lambda rows: _scales(rows, self._form))
                self._worth = np.ascontiguousarray(scales, np.float32)
            return self._worth


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    """Rows of ``source`` in ``form``; ``worth`` gives what the numbers of each of all rows are worth, (rows,).

    A stripe costs no more than its columns: a large matrix is transposed in many.
    """

    source: Tensor
    form: RowForm
    worth: "Callable[[], NDArray[np.float32]]"

    def __call__(self, start: int, stop: int) -> "NDArray[np.uint8]":
        return self.stripe(start, stop, 0, self.source.columns)

    def stripe(self, start: int, stop: int, first: int, last: int) -> "NDArray[np.uint8]":
        worth = self.worth()[start:stop]
        block = self.form.block or 1
        begin = first // block * block
        rows = _columns(self.source, (start, stop), (begin, -(-last // block) * block))
        if self.form.block:
            steps_of_blocks = _factors(rows, self.form, worth) * worth[:, None]
            numbers = np.rint(rows / np.repeat(steps_of_blocks, block, axis=1))
        else:
            numbers = np.rint(rows / worth[:, None])
        whole: NDArray[np.int8] = numbers.clip(-self.form.most, self.form.most).astype(np.int8)
        return whole.view(np.uint8)[:, first - begin : last - begin]


def _columns(tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> "NDArray[np.float32]":
    """Some columns of some rows, each from the first to before the second; of blocks no more than they lie in.

    Unchecked: all are finite, or what they are worth could not have been looked up.
    """
    (first, last), size, nbytes = columns, tensor.format.block_size, tensor.format.block_bytes
    if columns == (0, tensor.columns):
        return read_floats(tensor, *rows, check=False)
    begin = first // size
    raw = tensor.stripe(*rows, begin * nbytes, -(-last // size) * nbytes)
    found = recode(np.ascontiguousarray(raw), tensor.format, F32, check=False).view(np.float32)
    return found[:, first - begin * size : last - begin * size]


def read_floats(tensor: Tensor, start: int, stop: int, *, check: bool = True) -> "NDArray[np.float32]":
    """Rows ``start`` to ``stop``: (stop - start, columns); with ``check`` CheckpointError for NaN and infinity."""
    if check:
        return floats(tensor, start, stop)
    return recode(tensor.read(start, stop), tensor.format, F32, check=False).view(np.float32)


def in_chunks(tensor: Tensor, of_rows: "Callable[[NDArray[np.float32]], NDArray[np.generic]]") -> "NDArray[np.generic]":
    """What ``of_rows`` makes of some rows, of all of them: a matrix need not fit the memory in float32."""
    step = max(_CHUNK // tensor.columns // tensor.step, 1) * tensor.step
    starts = range(0, tensor.rows, step)
    return np.concatenate([of_rows(read_floats(tensor, start, min(start + step, tensor.rows))) for start in starts])


def steps(largest: "NDArray[np.float32]", most: int) -> "NDArray[np.float32]":
    """What a number is worth, for numbers up to ``most``; 1 for what float32 can hardly tell from zeros."""
    return np.where(largest > LEAST, largest / np.float32(most), np.float32(1)).astype(np.float32)


def rounded(tensor: Tensor) -> Tensor:
    """A matrix in float32, as 8 bits with a scale for each row have it."""

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        rows = read_floats(tensor, start, stop)
        worth = _scales(rows, RowForm(8))[:, None]
        nearest: NDArray[np.float32] = (np.rint(rows / worth) * worth).astype(np.float32)
        return nearest.view(np.uint8)

    return replace(tensor, name=f"{tensor.name} rounded", format=F32, read=read)


def rest(tensor: Tensor) -> Tensor:
    """What :func:`rounded` takes away from a matrix: with it in 8 bits too, the two have some 15."""
    coarse = rounded(tensor)

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        exact = read_floats(tensor, start, stop)
        return (exact - read_floats(coarse, start, stop)).view(np.uint8)

    return replace(coarse, name=f"{tensor.name} rest", read=read)


def pairs(numbers: Tensor) -> Tensor:
    """Numbers of 4 bits, given in int8, two to a byte: (..., columns) becomes (..., columns / 2), the first below."""
    *outer, columns = numbers.shape

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        half = numbers.read(start, stop) & np.uint8(15)
        return half[:, 0::2] | half[:, 1::2] << np.uint8(4)

    return replace(numbers, name=f"{numbers.name} in pairs", shape=(*outer, columns // 2), read=read)


def _scales(rows: "NDArray[np.float32]", form: RowForm) -> "NDArray[np.float32]":
    worth = steps(np.abs(rows).max(axis=1), form.most)
    return worth / np.float32(_FINEST) if form.block else worth


def _factors(rows: "NDArray[np.float32]", form: RowForm, worth: "NDArray[np.float32]") -> "NDArray[np.uint8]":
    largest = np.abs(rows.reshape(len(rows), -1, form.block)).max(axis=2) / np.float32(form.most)
    whole: NDArray[np.uint8] = np.ceil(largest / worth[:, None] - _ROUNDING).clip(1, _FINEST).astype(np.uint8)
    return whole

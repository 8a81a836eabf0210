"""Matrices in integers as NPUs multiply them: 8 or 4 bits with a scale for each output, or low-power blocks of 4 bits.

In such a block (Qualcomm calls it LPBQ) a weight is a whole number times the block's own whole number of 1 to 16 times
a float32 scale of its output: the HTP multiplies by these in integers, where it dequantizes blocks with float scales at
every step, which takes four to five times as long.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from converters.checkpoint import Tensor
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


def read_floats(tensor: Tensor, start: int, stop: int, *, check: bool = True) -> "NDArray[np.float32]":
    """Rows ``start`` to ``stop``: (stop - start, columns); with ``check`` NonFiniteError for NaN and infinity."""
    return recode(tensor.read(start, stop), tensor.format, F32, check=check).view(np.float32)


def in_chunks(tensor: Tensor, of_rows: "Callable[[NDArray[np.float32]], NDArray[np.generic]]") -> "NDArray[np.generic]":
    """What ``of_rows`` makes of some rows, of all of them: a matrix need not fit the memory in float32."""
    step = max(_CHUNK // tensor.columns // tensor.step, 1) * tensor.step
    starts = range(0, tensor.rows, step)
    return np.concatenate([of_rows(read_floats(tensor, start, min(start + step, tensor.rows))) for start in starts])


def steps(largest: "NDArray[np.float32]", most: int) -> "NDArray[np.float32]":
    """What a number is worth, for numbers up to ``most``; 1 for what float32 can hardly tell from zeros."""
    return np.where(largest > LEAST, largest / np.float32(most), np.float32(1)).astype(np.float32)


def row_scales(tensor: Tensor, form: RowForm = RowForm(8)) -> Tensor:
    """What a number of each row is worth, or of its finest block a sixteenth of that: float32 (rows,)."""

    def read(_start: int, _stop: int) -> "NDArray[np.uint8]":
        return in_chunks(tensor, lambda rows: _scales(rows, form)).view(np.uint8)[None]

    return Tensor(f"{tensor.name} scales", (tensor.rows,), F32, read)


def block_scales(tensor: Tensor, form: RowForm) -> Tensor:
    """Whole numbers of 1 to 16, by which a block's weights are larger than its row's scale: uint8 (blocks, rows)."""
    n_blocks = tensor.columns // form.block

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        factors = in_chunks(tensor, lambda rows: _factors(rows, form, _scales(rows, form)))
        by_block: NDArray[np.uint8] = np.ascontiguousarray(factors.T[start:stop]).astype(np.uint8)
        return by_block

    return Tensor(f"{tensor.name} block scales", (n_blocks, tensor.rows), I8, read, step=n_blocks)


def row_numbers(tensor: Tensor, form: RowForm) -> Tensor:
    """A matrix in int8, whatever ``form.bits``: each row by its scale and its blocks'."""

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        rows = read_floats(tensor, start, stop)
        worth = _scales(rows, form)
        if form.block:
            factors = _factors(rows, form, worth)
            rows = rows.reshape(len(rows), -1, form.block) / (factors * worth[:, None])[:, :, None]
            numbers = np.rint(rows).reshape(len(rows), -1)
        else:
            numbers = np.rint(rows / worth[:, None])
        whole: NDArray[np.int8] = numbers.clip(-form.most, form.most).astype(np.int8)
        return whole.view(np.uint8)

    return replace(tensor, format=I8, read=read)


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

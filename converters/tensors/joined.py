"""Tensors that lie in several parts, read as one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor


def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """``parts``, which differ in nothing but their length along ``axis``, one after another along it."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    is_last = axis in (-1, len(shape) - 1)
    read = _Columns(parts) if is_last else _Rows(parts, prod(shape[:axis]))
    return replace(parts[0], shape=tuple(shape), read=read).reading(*parts)


class _Rows:
    """In each of ``groups`` the parts' rows one below the other."""

    def __init__(self, parts: Sequence[Tensor], groups: int) -> None:
        self._parts = parts
        self._heights = [part.rows // groups for part in parts]
        self._height = sum(self._heights)

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        return _stacked([part.read(begin, end) for part, begin, end in self._pieces(start, stop)], 0)

    def stripe(self, start: int, stop: int, first: int, last: int) -> NDArray[np.uint8]:
        return _stacked([part.stripe(begin, end, first, last) for part, begin, end in self._pieces(start, stop)], 0)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Tensor, int, int]]:
        """Which rows of which part make rows ``start`` to ``stop``."""
        for group in range(start // self._height, -(-stop // self._height)):
            at = group * self._height
            for part, height in zip(self._parts, self._heights, strict=True):
                begin, end = max(start - at, 0), min(stop - at, height)
                if begin < end:
                    yield part, group * height + begin, group * height + end
                at += height


class _Columns:
    """The parts side by side."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        return _stacked([part.read(start, stop) for part in self._parts], 1)

    def stripe(self, start: int, stop: int, first: int, last: int) -> NDArray[np.uint8]:
        found, at = [], 0
        for part in self._parts:
            width = part.format.row_bytes(part.columns)
            begin, end = max(first - at, 0), min(last - at, width)
            if begin < end:
                found.append(part.stripe(start, stop, begin, end))
            at += width
        return _stacked(found, 1)


def _stacked(pieces: Sequence[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)

"""Matrices of one shape, one above the other, as a tensor with one dimension more."""

from collections.abc import Sequence
from dataclasses import replace

from converters.checkpoint import Tensor
from converters.tensors.joined import joined


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """``parts`` of ``(rows, columns)`` become ``(len(parts), rows, columns)``."""
    return replace(joined(parts, 0), shape=(len(parts), *parts[0].shape))

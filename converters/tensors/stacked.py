"""Matrices of one shape, one above the other, as a tensor with one dimension more."""

from collections.abc import Sequence
from dataclasses import replace

from converters.checkpoint import Tensor
from converters.tensors.joined import joined
from converters.tensors.transposed import in_f32


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """``parts`` of ``(rows, columns)`` become ``(len(parts), rows, columns)``, in float32 if their formats differ."""
    if len({part.format for part in parts}) > 1:
        parts = [in_f32(part) for part in parts]
    return replace(joined(parts, 0), shape=(len(parts), *parts[0].shape))

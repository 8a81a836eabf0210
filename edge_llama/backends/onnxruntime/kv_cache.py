"""The KV cache of an ONNX text tower, float32: in place where the graph can append to it, else written anew."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.onnx_text import OnnxArtifact

Floats = NDArray[np.float32]


class Cache(Protocol):
    """Keys and values of all layers, one tensor each, ``(n_kv_heads, positions, head_dim)``."""

    def attach(self, binding: Any) -> None:
        """Bind what never changes."""

    def bind(self, binding: Any, length: int, count: int) -> None:
        """Bind what a run takes that appends ``count`` positions to ``length``."""

    def appended(self) -> None:
        """The run succeeded."""

    def cut(self, length: int, to: int) -> None:
        """Of ``length`` positions keep the first ``to``."""

    def tensors(self, length: int) -> Sequence[Floats]:
        """Views of the first ``length`` positions; after ``cut(n, 0)`` they may be written."""


def new_cache(artifact: OnnxArtifact, n_ctx: int) -> Cache:
    """An empty cache of ``n_ctx`` positions; its memory is taken as it fills."""
    kind = _InPlace if artifact.is_shared else _Growing
    return kind(artifact, n_ctx)


class _InPlace:
    """The same buffers as past and as present: the graph takes the length from the attention mask."""

    def __init__(self, artifact: OnnxArtifact, n_ctx: int) -> None:
        self._names = artifact.names
        shape = (len(self._names.past), artifact.n_kv_heads, n_ctx, artifact.head_dim)
        self._values: Floats = np.zeros(shape, np.float32)

    def attach(self, binding: Any) -> None:
        for values, past, present in zip(self._values, self._names.past, self._names.present, strict=True):
            place = ("cpu", 0, np.float32, (1, *values.shape), values.ctypes.data)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)

    def bind(self, binding: Any, length: int, count: int) -> None:
        """Everything is bound."""

    def appended(self) -> None:
        """It is where it was."""

    def cut(self, length: int, to: int) -> None:
        """What is beyond the length is not read."""

    def tensors(self, length: int) -> Sequence[Floats]:
        return [values[:, :length] for values in self._values]


class _Growing:
    """Two buffers by turns: from the one the graph reads what there is, to the other it writes that and what is new."""

    def __init__(self, artifact: OnnxArtifact, n_ctx: int) -> None:
        self._names = artifact.names
        self._heads, self._width = artifact.n_kv_heads, artifact.head_dim
        shape = (2, len(self._names.past), self._heads * n_ctx * self._width)
        self._values: Floats = np.zeros(shape, np.float32)
        self._addresses = [[int(values.ctypes.data) for values in half] for half in self._values]
        self._now = 0

    def attach(self, binding: Any) -> None:
        """Nothing stays where it is."""

    def bind(self, binding: Any, length: int, count: int) -> None:
        before, after = self._addresses[self._now], self._addresses[1 - self._now]
        past, present = ((1, self._heads, size, self._width) for size in (length, length + count))
        for name, address in zip(self._names.past, before, strict=True):
            binding.bind_input(name, "cpu", 0, np.float32, past, address)
        for name, address in zip(self._names.present, after, strict=True):
            binding.bind_output(name, "cpu", 0, np.float32, present, address)

    def appended(self) -> None:
        self._now = 1 - self._now

    def cut(self, length: int, to: int) -> None:
        """Positions of one head are next to each other: what is kept moves together, in the other buffer."""
        kept = [values[:, :to] for values in self.tensors(length)]
        self._now = 1 - self._now
        for values, old in zip(self.tensors(to), kept, strict=True):
            values[:] = old

    def tensors(self, length: int) -> Sequence[Floats]:
        size = self._heads * length * self._width
        return [values[:size].reshape(self._heads, length, self._width) for values in self._values[self._now]]

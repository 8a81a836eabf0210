"""The KV cache of an ONNX text tower, float32: in place where the graph can append to it, else written anew.

It lies where the session takes and gives it (:mod:`edge_llama.backends.onnxruntime.memory`). On the CPU it is numpy's,
whose pages are taken as it fills; on another device it is the session's, and goes to the CPU to be saved or cut alone.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from edge_llama.backends.onnxruntime.memory import DeviceMemory, Floats, memory_of
from edge_llama.files.onnx_text import OnnxArtifact


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

    def read(self, length: int) -> Sequence[Floats]:
        """The first ``length`` positions: views or copies, to be read before anything else is done."""

    def write(self, parts: Iterable[Floats], length: int) -> None:
        """Have these ``length`` positions, a part for each tensor, in place of none."""


def new_cache(artifact: OnnxArtifact, session: Any, n_ctx: int) -> Cache:
    """An empty cache of ``n_ctx`` positions for ``session``. EngineError if its device's memory does not hold it."""
    memory = memory_of(session, {*artifact.names.past, *artifact.names.present})
    if memory is None:
        return (_InPlace if artifact.is_shared else _Growing)(artifact, n_ctx)
    return (_InPlaceOnDevice if artifact.is_shared else _GrowingOnDevice)(artifact, n_ctx, memory)


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

    def read(self, length: int) -> Sequence[Floats]:
        return [values[:, :length] for values in self._values]

    def write(self, parts: Iterable[Floats], length: int) -> None:
        for values, part in zip(self._values, parts, strict=True):
            values[:, :length] = part


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
        kept = [values[:, :to] for values in self.read(length)]
        self._now = 1 - self._now
        self.write(kept, to)

    def read(self, length: int) -> Sequence[Floats]:
        size = self._heads * length * self._width
        return [values[:size].reshape(self._heads, length, self._width) for values in self._values[self._now]]

    def write(self, parts: Iterable[Floats], length: int) -> None:
        for values, part in zip(self.read(length), parts, strict=True):
            values[:] = part


class _InPlaceOnDevice:
    """:class:`_InPlace` in a device's memory, all of which is taken at once."""

    def __init__(self, artifact: OnnxArtifact, n_ctx: int, memory: DeviceMemory) -> None:
        self._names, self._memory = artifact.names, memory
        self._shape = (1, artifact.n_kv_heads, n_ctx, artifact.head_dim)
        empty = np.zeros(self._shape, np.float32)  # kernels may multiply what is beyond the length by 0: not NaN
        self._values = [memory.filled(empty) for _ in self._names.past]

    def attach(self, binding: Any) -> None:
        for value, past, present in zip(self._values, self._names.past, self._names.present, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)

    def bind(self, binding: Any, length: int, count: int) -> None:
        """Everything is bound."""

    def appended(self) -> None:
        """It is where it was."""

    def cut(self, length: int, to: int) -> None:
        """What is beyond the length is not read."""

    def read(self, length: int) -> Sequence[Floats]:
        return [self._memory.read(value)[0, :, :length] for value in self._values]

    def write(self, parts: Iterable[Floats], length: int) -> None:
        whole = np.zeros(self._shape, np.float32)
        for value, part in zip(self._values, parts, strict=True):
            whole[0, :, :length] = part
            self._memory.write(value, whole)


class _GrowingOnDevice:
    """A longer cache for each run, which the device allocates; the shorter one is given back after it."""

    def __init__(self, artifact: OnnxArtifact, n_ctx: int, memory: DeviceMemory) -> None:  # noqa: ARG002 - as the others
        self._names, self._memory = artifact.names, memory
        self._heads, self._width = artifact.n_kv_heads, artifact.head_dim
        self._none = self._past = self._present = self._empty(0)
        self._binding: Any = None

    def _empty(self, length: int) -> list[Any]:
        shape = (1, self._heads, length, self._width)
        return [self._memory.empty(shape) for _ in self._names.past]

    def attach(self, binding: Any) -> None:
        """Nothing stays where it is."""

    def bind(self, binding: Any, length: int, count: int) -> None:
        if self._binding not in (None, binding):  # it would keep what it had last
            self._bind(self._binding, self._none, self._none)
        self._binding, self._present = binding, self._empty(length + count)
        self._bind(binding, self._past, self._present)

    def _bind(self, binding: Any, past: Sequence[Any], present: Sequence[Any]) -> None:
        for name, value in zip(self._names.past, past, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._names.present, present, strict=True):
            binding.bind_ortvalue_output(name, value)

    def appended(self) -> None:
        self._past = self._present

    def cut(self, length: int, to: int) -> None:
        kept = [np.ascontiguousarray(values[:, :to]) for values in self.read(length)] if to else None
        self._past = [self._memory.filled(values[None]) for values in kept] if kept else self._none

    def read(self, length: int) -> Sequence[Floats]:  # noqa: ARG002 - there is nothing beyond it
        return [self._memory.read(value)[0] for value in self._past]

    def write(self, parts: Iterable[Floats], length: int) -> None:  # noqa: ARG002 - the parts are as long
        self._past = [self._memory.filled(np.ascontiguousarray(part)[None]) for part in parts]

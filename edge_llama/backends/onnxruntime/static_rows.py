"""A graph of fixed shapes at work: so many rows at once, in buffers that never move.

What is filled are the last rows; those before them are pads, which see what does no harm, and which nobody sees. Keys
and values that the graph takes are filled from the first column on: they were turned to their positions before they
were stored, and attention does not ask in which order they come, so the mask alone says which are there. To go back is
to see fewer of them; nothing is ever moved, as it is in onnxruntime-genai.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.onnxruntime.memory import Floats, copies_inputs
from edge_llama.files.onnx_static import COS, EMBEDS, HIDDEN, MASK, SIN, StaticArtifact

Cache = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Rows as a graph takes them: embeddings ``(n, n_embd)``, cosines and sines of positions ``(n, head_dim / 2)``."""

    embeds: Floats
    cos: Floats
    sin: Floats

    def __len__(self) -> int:
        return len(self.embeds)

    def part(self, start: int, stop: int) -> "Inputs":
        """The rows from ``start`` to before ``stop``."""
        return Inputs(self.embeds[start:stop], self.cos[start:stop], self.sin[start:stop])


class StaticRows:
    """Graphs, one after the other, that take ``count`` rows, with the keys and values of earlier positions."""

    def __init__(self, artifact: StaticArtifact, sessions: Sequence[Any], count: int, logits: Floats) -> None:
        """Bind everything that never changes; the last row's logits go to ``logits``, ``(1, 1, n_vocab)``."""
        self.count = count
        self.room = artifact.context - count
        """Earlier positions that it takes, besides the first where that is within the graph."""
        self._within = int(artifact.begins is not None)
        half = artifact.head_dim // 2
        self._embeds = np.zeros((1, count, artifact.n_embd), np.float32)
        self._cos, self._sin = (np.zeros((1, 1, count, half), np.float32) for _ in range(2))
        self._mask = np.full((1, 1, count, artifact.context + self._within), HIDDEN, np.float32)
        self._causal = np.where(np.tri(count, dtype=np.bool_), 0, HIDDEN).astype(np.float32)
        past, new = _caches(artifact, self.room), _caches(artifact, count)
        self._past, self._new = by_position(past), by_position(new)
        names = artifact.names
        self._takes: dict[str, NDArray[Any]] = {
            EMBEDS: self._embeds,
            MASK: self._mask,
            COS: self._cos,
            SIN: self._sin,
            **dict(zip(names.past, past, strict=True)),
        }
        gives: dict[str, NDArray[Any]] = {names.logits: logits, **dict(zip(names.present, new, strict=True))}
        self._bound = [(session, session.io_binding()) for session in sessions]
        self._copies = copies_inputs(sessions[0])
        for session, binding in self._bound:
            for name in (node.name for node in session.get_outputs()):
                if name not in gives:  # for the next graph
                    gives[name] = self._takes[name] = np.zeros_like(self._embeds)
                binding.bind_output(name, *_place(gives[name]))
        for session, binding in self._bound:
            self._bind_inputs(session, binding)

    def _bind_inputs(self, session: Any, binding: Any) -> None:
        for node in session.get_inputs():
            binding.bind_input(node.name, *_place(self._takes[node.name]))

    def run(self, inputs: Inputs, start: int, options: Any) -> None:
        """Compute ``inputs``, of the positions from ``start`` on, before which all are there. ONNX Runtime's errors."""
        pads = self.count - len(inputs)
        for buffer, values in (
            (self._embeds[0], inputs.embeds),
            (self._cos[0, 0], inputs.cos),
            (self._sin[0, 0], inputs.sin),
        ):
            buffer[:pads] = 0
            buffer[pads:] = values
        self._show(start, pads)
        for session, binding in self._bound:
            if self._copies:
                self._bind_inputs(session, binding)
            session.run_with_iobinding(binding, options)

    def _show(self, start: int, pads: int) -> None:
        """Fill the mask: columns are position 0 if that is within the graph, earlier positions, and its own rows.

        So the first ``start`` are positions 0 to ``start`` in either case. A row at position 0 sees itself as the graph
        has it, if it has it: exactly.
        """
        mask = self._mask[0, 0]
        own = mask[:, -self.count :]
        mask.fill(HIDDEN)
        mask[pads:, : max(start, self._within)] = 0
        if start >= self._within:
            rows = self.count - pads
            own[pads:, pads:] = self._causal[:rows, :rows]
        pad = np.arange(pads)  # each sees one column, or softmax would have nothing
        if self._within:
            mask[pad, 0] = 0
        else:
            own[pad, pad] = 0

    def new(self, count: int) -> list[Cache]:
        """Keys and values of the last ``count`` rows, ``(n_kv_heads, 1, count, head_dim)`` each: good until a run."""
        return [values[:, :, self.count - count :] for values in self._new]

    def past(self, count: int) -> list[Cache]:
        """Those of the first ``count`` earlier positions that it takes, likewise."""
        return [values[:, :, :count] for values in self._past]

    def keep(self, parts: Sequence[Cache], column: int) -> None:
        """Have keys and values from ``column`` on, as many as there is room for."""
        for values, part in zip(self._past, parts, strict=True):
            there = values[:, :, column : column + part.shape[2]]
            there[:] = part[:, :, : there.shape[2]]

    def close(self) -> None:
        """Give the session back."""
        self._bound = []


def by_position(caches: Sequence[Cache]) -> list[Cache]:
    """Views of keys ``(n_kv_heads, 1, head_dim, n)`` and values ``(n_kv_heads, 1, n, head_dim)`` that are alike.

    They come by turns; all are seen as values.
    """
    return [cache if at % 2 else np.swapaxes(cache, 2, 3) for at, cache in enumerate(caches)]


def cache_shapes(artifact: StaticArtifact, count: int) -> list[tuple[int, ...]]:
    """Of keys and values of ``count`` positions, by turns, as graphs take and give them."""
    heads, width = artifact.n_kv_heads, artifact.head_dim
    return [(heads, 1, width, count), (heads, 1, count, width)] * artifact.n_layer


def cache_type(artifact: StaticArtifact) -> type[np.unsignedinteger[Any]]:
    """Their numbers."""
    return np.uint8 if artifact.stored.block_bytes == 1 else np.uint16


def _caches(artifact: StaticArtifact, count: int) -> list[Cache]:
    """Zeros, which are in the middle of what integers can say."""
    kind = cache_type(artifact)
    zero = (np.iinfo(kind).max + 1) // 2
    return [np.full(shape, zero, kind) for shape in cache_shapes(artifact, count)]


def _place(values: NDArray[Any]) -> tuple[str, int, Any, tuple[int, ...], int]:
    """Where an array lies, as ONNX Runtime is told."""
    return "cpu", 0, values.dtype.type, values.shape, values.ctypes.data

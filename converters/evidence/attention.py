"""A layer with its weights in memory: all of it, or of a mixture what comes before the experts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.evidence.stages import Floats, Stage, read_all
from converters.evidence.tower import OnInput, Tower
from converters.targets.onnx.graph import INT64, ValueInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BEFORE, _MASK = "before", "attention_mask"
_SLICE = 512
_LEAST_SLICE = 16
_SCORES = 128 << 20
"""Bytes that the scores of a slice may take: slices of long chunks are shorter."""


class OpenLayer:
    """A layer with its weights in memory, up to its experts if it has some."""

    def __init__(self, tower: Tower, layer: int) -> None:
        self._hp = hp = tower.hp
        writer, graph = tower.writer()
        before = graph.input(_BEFORE, ("batch", "sequence", hp.n_embd))
        past = writer.past(layer)
        writer.begin(before, graph.input(_MASK, ("batch", "total"), INT64))
        mixture = tower.mixture(layer)
        if mixture is None:
            x, more = writer.layer(before, None, layer, past)
            info = ValueInfo(("batch", "sequence", hp.n_embd))
            graph.show(graph.op("Add", x, more, name="after", info=info))
            self._outputs = ["after"]
        else:
            h, x = writer.attended(before, None, layer, past)
            logits = writer.linear(h, f"model.layers.{layer}.{mixture.router}", "router", "router", layer)
            self._outputs = [graph.show(value) for value in (h, x, logits)]
        for cache in writer.caches:
            graph.output(cache, ("batch", hp.n_head_kv, "total", hp.head_dim))
        self._pasts, self._presents = [str(value.name) for value in past], [str(value.name) for value in writer.caches]
        self._inputs = {tower.names[name]: graph.show(value) for name, value in graph.inputs_of.items()}
        self._stage = Stage(graph, tower.threads)
        self._weights = read_all(graph.weights, tower.path)

    def run(self, before: Floats, on_input: OnInput | None) -> Iterator[tuple[int, list[Floats]]]:
        """Slice by slice of a chunk's states ``(n, n_embd)``: where it begins, and its outputs, ``(rows, ...)`` each.

        That is what the layer gives; of a mixture what the experts are given, what goes on beside them, the logits of
        the router.
        """
        hp, n = self._hp, len(before)
        empty = np.empty((1, hp.n_head_kv, 0, hp.head_dim), np.float32)
        caches = [empty for _ in self._pasts]
        size = slice_of(hp.n_head, n)
        shown = list(dict.fromkeys(self._inputs.values())) if on_input else []
        for start in range(0, n, size):
            stop = min(start + size, n)
            inputs: dict[str, NDArray[Any]] = {
                **self._weights,
                _BEFORE: before[None, start:stop],
                _MASK: np.ones((1, stop), np.int64),
            }
            inputs |= dict(zip(self._pasts, caches, strict=True))
            kept = self._presents if stop < n else []
            found = self._stage.run(inputs, [*self._outputs, *shown, *kept])
            if on_input:
                values = dict(zip(shown, map(_rows, found[len(self._outputs) :]), strict=False))
                for tensor, value in self._inputs.items():
                    on_input(tensor, values[value], None)
            caches = found[len(found) - len(kept) :]
            yield start, [_rows(value) for value in found[: len(self._outputs)]]


def _rows(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])


def slice_of(n_head: int, n: int) -> int:
    """Tokens of a chunk of ``n`` that attend at once."""
    return min(n, _SLICE, max(_LEAST_SLICE, _SCORES // (4 * n_head * n)))

"""Each layer of a converted file on the input that the checkpoint's own has: an error is where it arises.

Run on the file's own input, every layer after a wrong one is wrong too. What the formats' rounding alone does to a
layer is measured beside it: the checkpoint's matrices, recoded one by one, on the same input.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Checkpoint, Tensor
from converters.evidence.faults import Fault
from converters.evidence.layers import bounds_of, run_states
from converters.evidence.matrices import rounded_to
from converters.evidence.states import Floats, HeldStates, StoredStates
from converters.evidence.tower import Tower
from edge_llama.files.formats import F32, Format

MOST_TOKENS, _LEAST_TOKENS = 1_024, 64
"""Layers run on so many tokens of those that are scored."""
_MOST_BYTES = 1 << 30
"""Of the states of all layers, which lie in a folder: of the largest models fewer tokens are kept."""
_TIMES, _TIMES_WEIGHTED, _MORE = 1.25, 2.0, 1e-3
"""A layer may be so many times as far off as rounding alone, by importance also, and so much more.

Without importance, files have the very numbers to which the checkpoint's are recoded here.
"""
_FAINT = 1e-3


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer's change of its input is from the checkpoint's, the mean over tokens, by that change's length."""

    layer: int
    error: float
    expected: float
    """Of the checkpoint's layer, recoded to the file's formats without importance."""

    def is_off(self, *, is_weighted: bool) -> bool:
        """Whether that is more than rounding; ``is_weighted``: by importance."""
        return self.error > (_TIMES_WEIGHTED if is_weighted else _TIMES) * self.expected + _MORE


def of_layers(errors: Sequence[LayerError], *, is_weighted: bool = False) -> Iterator[Fault]:
    """Layers that are further off than rounding explains; ``is_weighted``: the file was quantized by importance."""
    for found in errors:
        if found.is_off(is_weighted=is_weighted):
            told = (
                f"on the checkpoint's input it is off by {found.error:.3g}, rounding alone gives {found.expected:.3g}"
            )
            yield Fault(f"layer {found.layer}", told)


class Recorder:
    """Keeps, in ``folder``, what each layer of the checkpoint is given and gives, of the first chunks alone.

    OutputError where there is no room.
    """

    def __init__(self, folder: Path, lengths: Sequence[int], n_embd: int, n_layer: int) -> None:
        most = min(MOST_TOKENS, max(_LEAST_TOKENS, _MOST_BYTES // (4 * n_embd * (n_layer + 1))))
        kept, total = list[int](), 0
        for length in lengths:
            if kept and total + length > most:
                break
            kept.append(min(length, most))
            total += kept[-1]
        self.bounds = bounds_of(kept)
        self._folder, self._n_embd = folder, n_embd
        self._files: list[StoredStates] = []

    def __call__(self, layer: int, chunk: int, before: Floats, after: Floats) -> None:
        """As :class:`~converters.evidence.tower.OnLayer`."""
        if chunk >= len(self.bounds):
            return
        start, stop = self.bounds[chunk]
        for number, rows in ((layer, before), (layer + 1, after)):
            if number == len(self._files):
                self._files.append(StoredStates(self._folder, self._n_embd))
            if number == layer + 1 or layer == 0:
                self._files[number].write(start, rows[: stop - start])

    def states(self, number: int) -> Floats:
        """What layer ``number`` is given, or the one before it gives: ``(n, n_embd)``."""
        return self._files[number].read(0, self.bounds[-1][1])

    def close(self) -> None:
        """Remove the files."""
        for file in self._files:
            file.close()
        self._files = []


def measure(
    reference: Checkpoint,
    own: Checkpoint,
    formats: Mapping[str, Format],
    recorded: Recorder,
    *,
    threads: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[LayerError]:
    """The error of each layer of ``own``, a file; ``formats`` are those of its tensors by GGUF's names.

    CheckpointError for weights or outputs that are NaN or infinite, EngineError if ONNX Runtime fails.
    """
    longest = max(stop - start for start, stop in recorded.bounds)
    given, rounded = (Tower(each, threads=threads, longest=longest) for each in (own, reference))
    rounded.tensors = {
        name: _rounded(tensor, formats.get(rounded.names.get(name, name))) for name, tensor in rounded.tensors.items()
    }
    found = []
    n_layer = min(given.hp.n_layer, rounded.hp.n_layer)
    for layer in range(n_layer):
        before, after = recorded.states(layer), recorded.states(layer + 1)
        errors = []
        for tower in (given, rounded):
            states = HeldStates(before.copy())
            run_states(tower, layer, states, recorded.bounds)
            errors.append(_error(before, after, states.rows))
        found.append(LayerError(layer, *errors))
        if on_progress:
            on_progress(layer + 1, n_layer)
    return found


def _error(before: Floats, after: Floats, own: Floats) -> float:
    change = np.linalg.norm(after - before, axis=1)
    off = np.linalg.norm(own - after, axis=1)
    floor = np.maximum(change, _FAINT * change.mean())
    return float(np.mean(off.astype(np.float64) / np.where(floor > 0, floor, 1)))


def _rounded(tensor: Tensor, format_: Format | None) -> Tensor:
    """The tensor as it is after it was stored in ``format_``."""
    if format_ is None or format_ is F32 or format_ is tensor.format:
        return tensor

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        raw = tensor.read(start, stop)
        rows = rounded_to(raw, tensor, format_)
        return raw if rows is None else np.ascontiguousarray(rows).view(np.uint8)

    return replace(tensor, format=F32, read=read)

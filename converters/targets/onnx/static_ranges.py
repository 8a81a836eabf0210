"""The ranges of a text tower's values, measured on text: what its graph in integers is made by."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.architectures.hyperparameters import Hyperparameters
from converters.checkpoint import Checkpoint, Tensor
from converters.targets.onnx.first_position import first_position
from converters.targets.onnx.graph import DataFile, Graph
from converters.targets.onnx.integer_weights import RowForm, read_floats
from converters.targets.onnx.static_llama import Shape
from converters.targets.onnx.static_llama4 import ROUTER
from converters.targets.onnx.static_text import (
    check_static,
    first_token,
    graph_of,
    rotary_rates,
    tower_fingerprint,
    tower_of,
)
from converters.tokenizers.source_encoders import JsonEncoder
from converters.tokenizers.writer import write_files
from edge_llama.errors import OptionError
from edge_llama.files.onnx_static import COS, EMBEDS, HIDDEN, MASK, SIN
from quant.calibration import Watched
from quant.kernels import recode
from quant.ranges import Ranges

WINDOW, WINDOWS = 32, 6
"""Tokens of a run, and runs until the context begins anew: so far apart are most of the tokens that attend."""
_CHUNK = 1 << 22  # weights written at once
_ROOM = 20.0
"""By how much a hidden score is below the least: e to the minus 20 is nothing to a softmax."""
_LEAST_MASK = 60.0

Run = Callable[[Mapping[str, NDArray[Any]], Sequence[str]], Sequence[NDArray[Any]]]
"""Runs a graph on inputs by their names, and gives the outputs that are asked for."""


Row = int | NDArray[np.float32]
"""A token's id, or an embedding of a picture, ``(n_embd,)``."""
Sample = str | Sequence[Row]
"""A text, or the rows of one with pictures in it."""


def measure_text(
    checkpoint: Checkpoint,
    texts: Iterable[Sample],
    *,
    threads: int,
    on_progress: Callable[[int, int], object] | None = None,
) -> Ranges:
    """The ranges of the text tower's values over ``texts``, position 0 apart.

    ``on_progress`` gets the tokens read so far, and how many there are.
    It is computed in float32 by ONNX Runtime, from files that are gone afterwards. Raises CheckpointError for a
    checkpoint that is not whole or of another form, OptionError for texts that fill no window of 32 tokens.
    """
    hp, tensors = tower_of(checkpoint)
    check_static(checkpoint, hp)
    windows = list(windows_of(checkpoint, texts))
    if not windows:
        raise OptionError(
            f"the texts to calibrate with have fewer than {WINDOW} tokens", remedy="add more: a few pages at least"
        )
    bos = first_token(checkpoint.vocabulary)
    first = None if bos is None else first_position(hp, tensors, bos)
    shape = Shape(WINDOW, WINDOW * WINDOWS, gives_all=True)
    graph = Graph("calibration", DataFile("calibration.data"))
    graph_of(checkpoint)(hp, tensors, graph, shape, RowForm(8), first, norm_is_one=False).write()
    with tempfile.TemporaryDirectory(prefix="edge-llama-calibration-") as folder:
        path = Path(folder) / "calibration.onnx"
        write_graph(graph, path)
        watched = Watched(path, threads)
        reader = Reader(hp, tensors, shape, has_first=first is not None)
        for number, (ids, is_start) in enumerate(windows, 1):
            reader.read(watched.run, ids, is_start=is_start)
            if on_progress:
                on_progress(number * WINDOW, len(windows) * WINDOW)
        values = watched.values()
    for layer in range(hp.n_layer):
        for part in ("keys", "values"):
            largest = max(map(abs, values[f"layers.{layer}.attention.{part}.new"]))
            if first is not None:
                largest = max(largest, first.largest(layer, part))
            values[f"layers.{layer}.{part}"] = (-largest, largest)
    return Ranges(tower_fingerprint(tensors), len(windows) * WINDOW, _with_masks(values, hp.n_layer), "text", first)


def _with_masks(values: Mapping[str, tuple[float, float]], n_layer: int) -> dict[str, tuple[float, float]]:
    """``values`` with those that masks and gates have a part in: what is hidden lies just below the least that is seen.

    So no number of 16 bits is lost to how much a mask takes away.
    """
    found, most = dict(values), _LEAST_MASK
    for layer in range(n_layer):
        low, high = values[f"layers.{layer}.attention.scores"]
        found[f"layers.{layer}.attention.masked"] = (low - _ROOM, high)
        found[f"layers.{layer}.attention.weights"] = (0.0, 1.0)
        most = max(most, 2 * (high - low + _ROOM))
    found |= {name: ends for name in found for end, ends in ROUTER.items() if name.endswith(end)}
    return {**found, MASK: (-most, 0.0)}


def windows_of(checkpoint: Checkpoint, texts: Iterable[Sample]) -> Iterator[tuple[Sequence[Row], bool]]:
    """Windows of rows, and whether a context begins with it. Special tokens in texts are what they are in chats."""
    encode = encoder_of(checkpoint)
    bos = first_token(checkpoint.vocabulary)
    for text in texts:
        rows: Sequence[Row] = encode(text) if isinstance(text, str) else text
        if rows and isinstance(rows[0], int) and rows[0] == bos:
            rows = rows[1:]
        for at in range(0, len(rows) - WINDOW + 1, WINDOW):
            yield rows[at : at + WINDOW], at % (WINDOW * WINDOWS) == 0


def encoder_of(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """Text to token ids, special tokens included, by the tokenizer that is written."""
    content: Any = write_files(checkpoint.vocabulary, checkpoint.path)["tokenizer.json"]
    return JsonEncoder(json.dumps(content).encode(), checkpoint.path).chat


class Reader:
    """Reads windows of tokens one after the other, with what the graph gave for those before."""

    def __init__(
        self,
        hp: Hyperparameters,
        tensors: Mapping[str, Tensor],
        shape: Shape,
        *,
        has_first: bool,
        kept_bits: int = 0,
    ) -> None:
        """``kept_bits``: what a cache's numbers have, 8, or 0 for float32."""
        self._kept_bits = kept_bits
        self._hp, self._table, self._shape, self._has_first = hp, tensors["model.embed_tokens.weight"], shape, has_first
        self._rates, self._strength = rotary_rates(hp, tensors)
        parts = [(part, layer) for layer in range(hp.n_layer) for part in ("keys", "values")]
        self._pasts = [f"past_{part}_{layer}" for part, layer in parts]
        self._presents = [f"present_{part}_{layer}" for part, layer in parts]
        self._length = 0
        self._kept: dict[str, NDArray[Any]] = {}

    def read(
        self, run: Run, rows_given: Sequence[Row], *, is_start: bool, also: Sequence[str] = ()
    ) -> Sequence[NDArray[Any]]:
        """A window more, or the first of a context; what the graph gave of the outputs that are asked for ``also``."""
        if is_start:
            self._length, self._kept = 0, self._empty()
        rows, past = self._shape.rows, self._shape.past
        at = np.arange(rows) + self._length + self._has_first
        angles = (at[:, None] * self._rates)[None, None].astype(np.float32)
        seen = np.ones((rows, int(self._has_first)), bool)
        before = np.broadcast_to(np.arange(past) < self._length, (rows, past))
        own = np.tri(rows, dtype=bool)
        mask = np.where(np.hstack([seen, before, own]), 0, HIDDEN).astype(np.float32)[None, None]
        embeds = np.stack([self._embedding(row) for row in rows_given])[None]
        inputs = {EMBEDS: embeds, MASK: mask, COS: np.cos(angles) * self._strength}
        inputs |= {SIN: np.sin(angles) * self._strength, **self._kept}
        found = run(inputs, [*self._presents, *also])
        if self._length + rows <= past:
            for name, new in zip(self._pasts, found, strict=False):
                axis = 3 if "keys" in name else 2
                places = [slice(None)] * 4
                places[axis] = slice(self._length, self._length + rows)
                self._kept[name][tuple(places)] = new
        self._length += rows
        return found[len(self._pasts) :]

    def _embedding(self, row: Row) -> NDArray[np.float32]:
        return read_floats(self._table, row, row + 1)[0] if isinstance(row, int) else row

    def _empty(self) -> "dict[str, NDArray[Any]]":
        heads, width, past = self._hp.n_head_kv, self._hp.head_dim, self._shape.past
        shapes = {"keys": (heads, 1, width, past), "values": (heads, 1, past, width)}
        dtype, zero = (np.uint8, 128) if self._kept_bits else (np.float32, 0)
        return {name: np.full(shapes[name.split("_")[1]], zero, dtype) for name in self._pasts}


def write_graph(graph: Graph, path: Path) -> None:
    """The graph and its weights beside it, for a moment: nothing is hashed, synced or resumed."""
    for part in (graph.part(path.name), graph.data.part()):
        with (path.parent / part.name).open("wb") as file:
            file.write(part.header)
            for entry in part.entries:
                tensor = entry.tensor
                step = max(_CHUNK // tensor.columns // tensor.step, 1) * tensor.step
                for start in range(0, tensor.rows, step):
                    rows = tensor.read(start, min(start + step, tensor.rows))
                    file.write(recode(rows, tensor.format, entry.format).tobytes())
                file.write(bytes(part.stored_bytes(entry) - entry.nbytes))

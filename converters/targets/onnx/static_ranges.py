"""The ranges of a text tower's values, measured on text: what its graph in integers is made by.

Texts are read as a model reads them, on and on in windows, up to as many positions as graphs have by default: how much
attention adds up depends on how much is before a row, and how far RoPE rotates on its place.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from converters.targets.onnx.static_llama4 import ROUTER, longest_context
from converters.targets.onnx.static_text import (
    N_CTX,
    check_static,
    first_token,
    graph_of,
    rotary_rates,
    tower_fingerprint,
    tower_of,
)
from converters.tensors.integers import recoded
from converters.tokenizers.source_encoders import JsonEncoder
from converters.tokenizers.writer import write_files
from edge_llama.errors import CheckpointError, InputError, OptionError, OutputError
from edge_llama.files.onnx_static import COS, EMBEDS, HIDDEN, MASK, SIN
from quant.calibration import Watched
from quant.ranges import FirstPosition, Ranges

WINDOW = 32
"""Tokens of a run."""
_CHUNK = 1 << 22  # weights written at once
_ROOM = 20.0
"""By how much a hidden score is below the least: e to the minus 20 is nothing to a softmax."""
_LEAST_MASK = 60.0
_ELSEWHERE = "make room, or name another folder in the environment's TMPDIR"
_EMBEDDING = "model.embed_tokens.weight"
_MAY_BE_CUT = {
    **dict.fromkeys((".residual", ".root", ".mlp.gate", ".mlp.up", ".mlp.silu", ".mlp.gated", ".mlp.down"), 1),
    **dict.fromkeys((".squares", ".mean", ".above_zero"), 2),
}
"""Values that one token may drive far beyond all others', by the ends of their names: 2 for those that are squares."""
_USUAL, _RARE = 8, 1 / 50
"""How many times as far as usual such a value goes before it is cut, in so few windows."""

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
    tell: Callable[[str], object] | None = None,
) -> Ranges:
    """The ranges of the text tower's values over ``texts``, position 0 apart.

    ``on_progress`` gets the tokens read so far, and how many there are; ``tell`` gets a sentence about the files.
    It is computed in float32 by ONNX Runtime, from files that are gone afterwards. Raises CheckpointError for a
    checkpoint that is not whole, damaged, or of another form, OptionError for texts of less than 32 tokens, OutputError
    where the temporary folder has no room, EngineError if ONNX Runtime fails.
    """
    hp, tensors = tower_of(checkpoint)
    check_static(checkpoint, hp)
    bos = first_token(checkpoint.vocabulary)
    longest = min(N_CTX, hp.n_ctx, longest_context(hp) or N_CTX)
    contexts = contexts_of(checkpoint, texts, max(longest - (bos is not None), WINDOW))
    if not contexts:
        raise OptionError(
            f"the texts to calibrate with have fewer than {WINDOW} tokens", remedy="add more: a few pages at least"
        )
    with _folder(_float_bytes(hp, tensors), tell) as folder:
        first = None if bos is None else first_position(hp, tensors, bos)
        shape = Shape(WINDOW, max(2 * WINDOW, *map(len, contexts)), gives_all=True)
        graph = Graph("calibration", DataFile("calibration.data"))
        graph_of(checkpoint)(hp, tensors, graph, shape, RowForm(8), first, norm_is_one=False).write()
        watched = Watched(
            _written(graph, folder), threads, fail=lambda told: _damaged(checkpoint, told), keep=tuple(_MAY_BE_CUT)
        )
        reader = Reader(hp, tensors, shape, has_first=first is not None)
        windows = [window for rows in contexts for window in windows_of(rows)]
        for number, (rows, at) in enumerate(windows, 1):
            reader.read(watched.run, rows, at)
            if on_progress:
                on_progress(number * WINDOW, len(windows) * WINDOW)
    values = watched.values()
    has_pictures = any(not isinstance(row, int) for rows in contexts for row in rows)
    if first is not None and not has_pictures:  # either would be what is rare
        values |= _without_rare(watched.by_run())
    values = _with_masks(_with_caches(values, hp.n_layer, first), hp.n_layer)
    return Ranges(tower_fingerprint(tensors), sum(map(len, contexts)), values, "text", first)


def _damaged(checkpoint: Checkpoint, told: str) -> InputError:
    return CheckpointError(f"{checkpoint.path}: in float32, {told}", remedy="it is damaged: download it again")


def _float_bytes(hp: Hyperparameters, tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the matrices in float32, to within the little that is beside them; rows of the embedding come apart."""
    stored = (tensor for name, tensor in tensors.items() if name != _EMBEDDING or hp.tied)
    return sum(4 * tensor.rows * tensor.columns for tensor in stored)


@contextmanager
def _folder(nbytes: int, tell: Callable[[str], object] | None) -> Iterator[Path]:
    """A folder for a while, with room for so many bytes: else OutputError."""
    with tempfile.TemporaryDirectory(prefix="edge-llama-calibration-") as folder:
        place = Path(folder).parent
        free = shutil.disk_usage(place).free
        if free < nbytes:
            raise OutputError(
                f"{place}: {free:,} bytes are free, but measuring needs {nbytes:,}: the tower in float32",
                remedy=_ELSEWHERE,
            )
        if tell:
            tell(f"{place}: the tower lies there in float32 while it is measured, {nbytes:,} bytes")
        yield Path(folder)


def _written(graph: Graph, folder: Path) -> Path:
    path = folder / "calibration.onnx"
    try:
        write_graph(graph, path)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}", remedy=_ELSEWHERE) from error
    return path


def _without_rare(by_run: "Mapping[str, NDArray[np.float32]]") -> dict[str, tuple[float, float]]:
    """The ends of values that a token here and there drives a hundred times as far as all others do, cut.

    Position 0 does, which is apart, and some rare tokens do too: 16 bits that hold theirs round all others as coarsely.
    """
    found = {}
    for name, ends in by_run.items():
        power = next((power for end, power in _MAY_BE_CUT.items() if name.endswith(end)), 0)
        reach = np.abs(ends).max(axis=0)
        limit = _USUAL**power * float(np.quantile(reach, 0.9))
        if power and 0 < (reach > limit).mean() <= _RARE:
            found[name] = (max(float(ends[0].min()), -limit), min(float(ends[1].max()), limit))
    return found


def _with_caches(
    values: Mapping[str, tuple[float, float]], n_layer: int, first: FirstPosition | None
) -> dict[str, tuple[float, float]]:
    """``values`` with those of each layer's cache: as far to both sides, what is known of position 0 included."""
    found = dict(values)
    for layer in range(n_layer):
        for part in ("keys", "values"):
            largest = max(map(abs, values[f"layers.{layer}.attention.{part}.new"]))
            if first is not None:
                largest = max(largest, first.largest(layer, part))
            found[f"layers.{layer}.{part}"] = (-largest, largest)
    return found


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


def contexts_of(checkpoint: Checkpoint, texts: Iterable[Sample], longest: int) -> list[list[Row]]:
    """The rows of ``texts`` in contexts of a window to ``longest`` rows, without the token that begins each of them.

    Special tokens in texts are what they are in chats. None is left out: what is shorter than a window is read with the
    next text, at the end with the one before, and a context's rest with what was before it. Empty if all are too few.
    """
    encode, bos = encoder_of(checkpoint), first_token(checkpoint.vocabulary)
    found: list[list[Row]] = []
    for text in texts:
        given: Sequence[Row] = encode(text) if isinstance(text, str) else text
        rows = list(given)
        if rows and isinstance(rows[0], int) and rows[0] == bos:
            del rows[0]
        if found and len(found[-1]) < WINDOW:
            found[-1] += rows
        else:
            found.append(rows)
    if len(found) > 1 and len(found[-1]) < WINDOW:
        last = found.pop()
        found[-1] += last
    return [rows[at : at + longest] for rows in found for at in _starts(len(rows), longest)]


def windows_of(rows: Sequence[Row]) -> Iterator[tuple[Sequence[Row], int]]:
    """A context's windows, each with the number of rows before it; the last may begin within the one before."""
    for at in _starts(len(rows), WINDOW):
        yield rows[at : at + WINDOW], at


def _starts(count: int, size: int) -> list[int]:
    """Where pieces of ``size`` rows begin; the last one earlier, so that each has a window at least, which all have."""
    return [min(at, count - WINDOW) for at in range(0, count, size)] if count >= WINDOW else []


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
        """``kept_bits``: what a cache's numbers have, 8 or 16, or 0 for float32."""
        self._kept_bits = kept_bits
        self._hp, self._table, self._shape, self._has_first = hp, tensors[_EMBEDDING], shape, has_first
        self._rates, self._strength = rotary_rates(hp, tensors)
        parts = [(part, layer) for layer in range(hp.n_layer) for part in ("keys", "values")]
        self._pasts = [f"past_{part}_{layer}" for part, layer in parts]
        self._presents = [f"present_{part}_{layer}" for part, layer in parts]
        self._kept: dict[str, NDArray[Any]] = {}

    def read(
        self, run: Run, rows_given: Sequence[Row], before: int, *, also: Sequence[str] = ()
    ) -> Sequence[NDArray[Any]]:
        """A window whose context has so many rows ``before`` it, which were read; 0: it begins one.

        Gives what the graph gave of the outputs that are asked for ``also``.
        """
        if not before:
            self._kept = self._empty()
        rows, past = self._shape.rows, self._shape.past
        at = np.arange(rows) + before + self._has_first
        angles = (at[:, None] * self._rates)[None, None].astype(np.float32)
        first = np.ones((rows, int(self._has_first)), bool)
        earlier = np.broadcast_to(np.arange(past) < before, (rows, past))
        own = np.tri(rows, dtype=bool)
        mask = np.where(np.hstack([first, earlier, own]), 0, HIDDEN).astype(np.float32)[None, None]
        embeds = np.stack([self._embedding(row) for row in rows_given])[None]
        inputs = {EMBEDS: embeds, MASK: mask, COS: np.cos(angles) * self._strength}
        inputs |= {SIN: np.sin(angles) * self._strength, **self._kept}
        found = run(inputs, [*self._presents, *also])
        kept = min(rows, past - before)
        columns = slice(before, before + kept)
        for name, new in zip(self._pasts, found, strict=False):
            if "keys" in name:  # whose positions are in the last dimension
                self._kept[name][..., columns] = new[..., :kept]
            else:
                self._kept[name][..., columns, :] = new[..., :kept, :]
        return found[len(self._pasts) :]

    def _embedding(self, row: Row) -> NDArray[np.float32]:
        return read_floats(self._table, row, row + 1)[0] if isinstance(row, int) else row

    def _empty(self) -> "dict[str, NDArray[Any]]":
        heads, width, past = self._hp.n_head_kv, self._hp.head_dim, self._shape.past
        shapes = {"keys": (heads, 1, width, past), "values": (heads, 1, past, width)}
        dtype = {0: np.float32, 8: np.uint8, 16: np.uint16}[self._kept_bits]
        zero = 1 << (self._kept_bits - 1) if self._kept_bits else 0
        return {name: np.full(shapes[name.split("_")[1]], zero, dtype) for name in self._pasts}


def write_graph(graph: Graph, path: Path) -> None:
    """The graph and its weights beside it, for a moment: nothing is hashed, synced or resumed.

    CheckpointError for weights that are NaN or infinite.
    """
    for part in (graph.part(path.name), graph.data.part()):
        with (path.parent / part.name).open("wb") as file:
            file.write(part.header)
            for entry in part.entries:
                tensor = entry.tensor
                step = max(_CHUNK // tensor.columns // tensor.step, 1) * tensor.step
                for start in range(0, tensor.rows, step):
                    stop = min(start + step, tensor.rows)
                    file.write(recoded(tensor, start, stop, entry.format).tobytes())
                file.write(bytes(part.stored_bytes(entry) - entry.nbytes))

"""ONNX Runtime as the engine of text towers for NPUs: graphs of fixed shapes, for windows of a prompt and for a token.

Both keep the same keys and values, each in buffers of its own (:mod:`edge_llama.backends.onnxruntime.static_rows`).
What the graphs take for ids and positions comes from one on the CPU. Where graphs have position 0 within them, a text's
first token is never computed: what it says to the others is a constant.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import crash_probe
from edge_llama.backends.base import ON_CPU, AbortedError, Placement, Rows, TextEmbedder, checked_embeddings
from edge_llama.backends.onnxruntime.one_sequence import OneSequenceTower
from edge_llama.backends.onnxruntime.providers import resolve, runtime, why
from edge_llama.backends.onnxruntime.session import open_session, survived
from edge_llama.backends.onnxruntime.static_rows import (
    Cache,
    Inputs,
    StaticRows,
    by_position,
    cache_shapes,
    cache_type,
)
from edge_llama.errors import ArtifactError, EngineError, OptionError
from edge_llama.files.onnx_graph_file import OnnxFile
from edge_llama.files.onnx_static import COS, EMBEDS, MASK, SIN, StaticArtifact, read_static
from edge_llama.files.onnx_text import HIDDEN_STATES
from edge_llama.host.memory import give_back
from edge_llama.prompts.hf_tokenizer import HFTokenizer
from edge_llama.sampling.sampler import LogitsRow

_log = logging.getLogger(__name__)
_UNFIT = "the graphs and genai_config.json do not belong together: copy the whole folder again, or convert again"
_TRIAL_TOKENS = 8


def require(artifact: StaticArtifact, placement: Placement) -> None:
    """ArtifactError for a graph that was damaged since it was converted, or of which ONNX Runtime would die."""
    files, graphs = artifact.files, len(artifact.graphs)
    kind, folder = "first-onnx-static", artifact.path.parent
    survived(kind, files, folder, artifact.identity(), __name__, placement, graphs=graphs)


class StaticTower(OneSequenceTower):
    """A text tower for NPUs. Keeps the Protocol :class:`edge_llama.backends.base.TextTower`.

    Its graphs take the rows of one sequence.
    """

    def __init__(
        self,
        artifact: StaticArtifact,
        *,
        n_ctx: int,
        threads: int,
        n_batch: int = 512,
        placement: Placement = ON_CPU,
    ) -> None:
        """Load all graphs, and allocate keys and values for every position that they see, whatever ``n_ctx`` is.

        ``placement``: see :func:`edge_llama.backends.onnxruntime.session.open_session`; an NPU takes all nodes in any
        case. Raises ArtifactError if ONNX Runtime refuses a file, OptionError or EngineError if there is no such device
        or it can't run the graphs.
        """
        super().__init__(min(n_ctx, artifact.n_ctx_train), artifact.n_embd)
        self._artifact = artifact
        self.tokenizer = HFTokenizer(artifact)
        names = artifact.names
        options = _options(1)
        options.enable_mem_pattern = False  # every number of rows would add one
        self._inputs: Any
        self._inputs, _ = open_session(artifact.inputs.path, artifact.inputs.path, ON_CPU, options)
        _check_taken(artifact.inputs.path, self._inputs, (names.ids, names.mask, artifact.positions))
        self._logits = np.zeros((1, 1, artifact.n_vocab), np.float32)
        placed: dict[str, str] = {}

        def rows(called: str, graphs: Sequence[OnnxFile], count: int) -> StaticRows:
            opened = [_session(graph.path, placement, threads) for graph in graphs]
            placed[called] = ", ".join(nodes for _, nodes in opened if nodes)
            own = {names.logits, *names.present}
            between = [name for graph in graphs for name in graph.outputs if name not in own]
            for graph, (session, _) in zip(graphs, opened, strict=True):
                _check_taken(graph.path, session, (EMBEDS, MASK, COS, SIN, *names.past, *between))
            return StaticRows(artifact, [session for session, _ in opened], count, self._logits)

        self._window = rows("prompts", artifact.prompts, artifact.window)
        self._token = rows("tokens", artifact.tokens, 1)
        self.placed = "; ".join(f"{called}: {nodes}" for called, nodes in placed.items() if nodes)
        self._n_batch = min(n_batch, artifact.window)
        self._within = int(artifact.begins is not None)
        self._known = np.ones((1, artifact.context), np.int32)
        give_back()
        self.settings: Mapping[str, Any] = {
            "engine": f"onnxruntime {runtime().__version__}",
            "device": placement.device,
        }

    @property
    def n_batch(self) -> int:
        """Rows that one ``decode`` takes at most: a window's."""
        return self._n_batch

    def decode(self, batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        """Append the rows of the one sequence, at most ``n_batch``; the last one's logits, if they are wanted.

        EngineError where a text begins with another token than the graphs were made for.
        """
        (rows,) = batch
        start, count = self._length, len(rows.tokens)
        embeddings = None if rows.embeddings is None else checked_embeddings(rows.embeddings, self)
        if self._inputs is None:
            raise EngineError("the model is closed", remedy="open it again")
        if start + count > self._n_ctx:
            raise EngineError(f"{start + count:,} positions don't fit the context of {self._n_ctx:,}")
        skipped = self._within_graphs(rows) if start < self._within else 0
        inputs = self._inputs_of(rows, embeddings, start)
        self._append(inputs.part(skipped, count), start + skipped)
        self._length = start + count
        return [LogitsRow(self._logits[0, 0], 0)] if rows.needs_logits else []

    def _within_graphs(self, rows: Rows) -> int:
        """How many of a text's first rows need not be computed: the first, unless its own logits are wanted.

        EngineError if it is another than the one that is within the graphs.
        """
        begins = self._artifact.begins
        if rows.embeddings is not None or rows.tokens[0] != begins:
            found = "an embedding" if rows.embeddings is not None else f"token {rows.tokens[0]:,}"
            raise EngineError(
                f"{self._artifact.path}: a text begins with {found}, but this file was made for texts that begin with "
                f"token {begins:,}",
                remedy="begin with that: a chat template writes it as bos_token (--chat-template FILE)",
            )
        return 0 if len(rows.tokens) == 1 and rows.needs_logits else 1

    def _inputs_of(self, rows: Rows, embeddings: NDArray[np.float32] | None, start: int) -> Inputs:
        """What the graphs take for rows at the positions from ``start`` on."""
        count, names = len(rows.tokens), self._artifact.names
        ids = np.zeros((1, count), np.int32)
        if embeddings is None:
            ids[0] = rows.tokens
        given = {
            names.ids: ids,
            names.mask: self._known,
            self._artifact.positions: np.arange(start, start + count, dtype=np.int32)[None],
        }
        with self._running(self._short, start):
            embeds, cos, sin = self._inputs.run([EMBEDS, COS, SIN], given, self._short)
        return Inputs(embeds[0] if embeddings is None else embeddings, cos[0, 0], sin[0, 0])

    def _append(self, inputs: Inputs, start: int) -> None:
        """Compute rows at the positions from ``start`` on, together while a window has room for all before them."""
        if len(inputs) > 1 and start - self._within <= self._window.room:
            self._run(self._window, inputs, start, self._long)
            give_back()
        else:
            for at in range(len(inputs)):
                self._run(self._token, inputs.part(at, at + 1), start + at, self._short)

    def _run(self, rows: StaticRows, inputs: Inputs, start: int, options: Any) -> None:
        with self._running(options, start):
            rows.run(inputs, start, options)
        if start >= self._within:  # or else the graphs have it, exactly
            new = rows.new(len(inputs))
            for each in (self._window, self._token):
                each.keep(new, start - self._within)

    @contextmanager
    def _running(self, options: Any, start: int) -> Iterator[None]:
        """ONNX Runtime's errors become EngineError, or AbortedError where it was told to stop."""
        if options.terminate:
            raise AbortedError
        try:
            yield
        except Exception as error:  # its errors share no class but this
            if options.terminate:
                raise AbortedError from error
            raise EngineError(f"ONNX Runtime failed at position {start:,}: {why(error)}") from error

    def cut(self, sequence: int, length: int) -> None:  # noqa: ARG002 - there is one
        """Keep the first ``length`` positions: no more of them will be seen."""
        self._length = min(self._length, length)

    def saved_bytes(self, sequence: int) -> int:  # noqa: ARG002 - there is one
        """Bytes that :meth:`save` would give."""
        return self._bytes_of(self._length)

    def _bytes_of(self, length: int) -> int:
        artifact = self._artifact
        values = len(artifact.names.past) * artifact.n_kv_heads * self._kept(length) * artifact.head_dim
        return values * artifact.stored.block_bytes

    def _kept(self, length: int) -> int:
        """How many of ``length`` positions are in buffers."""
        return max(0, length - self._within)

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """A copy of keys ``(n_kv_heads, head_dim, n)`` and values ``(n_kv_heads, n, head_dim)`` by layer, in integers.

        ``n`` does not count a position that is within the graphs.
        """
        data = np.empty(self.saved_bytes(sequence), np.uint8)
        for part, values in zip(self._parts(data, self._length), self._past(self._length), strict=True):
            part[:] = values
        return data

    def load(self, sequence: int, kv: NDArray[np.uint8], length: int) -> None:
        """Have the cache that :meth:`save` gave. EngineError if it is not of ``length`` positions; it is then empty."""
        self.cut(sequence, 0)
        if length > self._n_ctx or kv.nbytes != self._bytes_of(length):
            raise EngineError(f"a cache of {kv.nbytes:,} bytes, {self._bytes_of(length):,} are {length:,} positions")
        parts = self._parts(kv, length)
        for each in (self._window, self._token):
            each.keep(parts, 0)
        self._length = length

    def _past(self, length: int) -> list[Cache]:
        """All are in the buffers of a token's graph, which has the most room."""
        return self._token.past(self._kept(length))

    def _parts(self, data: NDArray[np.uint8], length: int) -> list[Cache]:
        """Views of what is saved, as :func:`edge_llama.backends.onnxruntime.static_rows.by_position` has them."""
        shapes = cache_shapes(self._artifact, self._kept(length))
        values = np.ascontiguousarray(data).view(cache_type(self._artifact)).reshape(len(shapes), -1)
        return by_position([part.reshape(shape) for part, shape in zip(values, shapes, strict=True)])

    def embedder(self, longest: int) -> TextEmbedder:  # noqa: ARG002 - the Protocol's
        """EngineError: the graphs give no hidden states."""
        raise EngineError(f"{self._artifact.path}: the graph has no output {HIDDEN_STATES}")

    def close(self) -> None:
        """Free the weights. May be called twice."""
        self._inputs = None
        for each in (self._window, self._token):
            each.close()


def _session(path: Path, placement: Placement, threads: int) -> tuple[Any, str]:
    """A session of the graph at ``path``, and how its nodes are shared, if the CPU has not all.

    OptionError if an NPU leaves some to the CPU: a token would go to and fro between them in every layer.
    """
    session, nodes = open_session(path, path, placement, _options(threads))
    if nodes and nodes.left and resolve(placement.device).name.startswith("npu:"):
        raise OptionError(
            f"{path}: {nodes.provider} does not run {len(nodes.left):,} of its nodes, the CPU would: {nodes.named}",
            remedy="take another device (--device cpu), or convert it for this one",
        )
    return session, str(nodes or "")


def _options(threads: int) -> Any:
    options = runtime().SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between tokens others have the cores
    # Or else the CPU's provider rounds activations of 16 bits to 8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return options


def _check_taken(path: Path, session: Any, known: Sequence[str]) -> None:
    """ArtifactError for an input that must be given, and that is none of those that are."""
    odd = next((node.name for node in session.get_inputs() if node.name not in known), None)
    if odd is not None:
        raise ArtifactError(
            f"{path}: the graph has the input {odd!r:.100}, which this version does not know", remedy=_UNFIT
        )


def main(path: str, placement: str) -> None:
    """The child: open the files, read a few tokens at once, then one."""
    crash_probe.begin()
    try:
        artifact = read_static(Path(path))
        tower = StaticTower(
            artifact, n_ctx=artifact.n_ctx_train, threads=1, placement=Placement.from_json(json.loads(placement))
        )
        if artifact.begins is not None:
            tower.decode([Rows(0, [artifact.begins], needs_logits=False)])
        tokens = [token % artifact.n_vocab for token in range(min(_TRIAL_TOKENS, tower.n_batch))]
        tower.decode([Rows(0, tokens)])
        tower.decode([Rows(0, tokens[:1])])
        tower.close()
    except Exception as error:  # the parent will meet it
        _log.debug("%s", error)
    crash_probe.end()

"""ONNX Runtime as the text tower's engine: buffers that never move, bound to the graph; nothing is copied but ids.

It ends the process on some graphs, so it is given those that are as our converter wrote them, and others only after a
child process has survived them.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import crash_probe
from edge_llama.backends.base import ON_CPU, AbortedError, Placement, Rows, checked_embeddings
from edge_llama.backends.onnxruntime import prepacked
from edge_llama.backends.onnxruntime.embeddings import OnnxEmbedder
from edge_llama.backends.onnxruntime.kv_cache import new_cache
from edge_llama.backends.onnxruntime.one_sequence import OneSequenceTower
from edge_llama.backends.onnxruntime.providers import runtime, why
from edge_llama.backends.onnxruntime.session import fits, open_session, survived
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files.onnx_text import HIDDEN_STATES, IMAGE_FEATURES, POSITIONS, OnnxArtifact, read_onnx_text
from edge_llama.host.memory import give_back
from edge_llama.prompts.hf_tokenizer import HFTokenizer
from edge_llama.sampling.sampler import LogitsRow

_log = logging.getLogger(__name__)
_LOGIT_BYTES = 1 << 26
"""Of logits, where a graph gives those of every position: it is then given fewer at once."""
_FLOAT, _WHOLE = "tensor(float)", "tensor(int64)"
_Kind = tuple[str, tuple[int | None, ...]]
_UNFIT = "the graph and genai_config.json do not belong together: copy the whole folder again, or convert again"
_TRIAL_TOKENS = 8


def require(artifact: OnnxArtifact, placement: Placement) -> None:
    """ArtifactError for a graph that was damaged since it was converted, or of which ONNX Runtime would die."""
    survived("first-onnx-text", artifact.files, artifact.path.parent, artifact.identity(), __name__, placement)


class OnnxTower(OneSequenceTower):
    """A text tower of an ONNX file. Keeps the Protocol :class:`edge_llama.backends.base.TextTower`.

    Its graph takes the rows of one sequence at a time.
    """

    def __init__(
        self,
        artifact: OnnxArtifact,
        *,
        n_ctx: int,
        threads: int,
        n_batch: int = 512,
        placement: Placement = ON_CPU,
    ) -> None:
        """Map the weights and allocate a KV cache of ``n_ctx`` positions in float32.

        ``placement``: see :func:`edge_llama.backends.onnxruntime.session.open_session`. Raises ArtifactError if ONNX
        Runtime refuses the file or it is not as genai_config.json says, OptionError or EngineError if there is no such
        device or it can't run the file.
        """
        super().__init__(n_ctx, artifact.n_embd)
        self._artifact = artifact
        self.tokenizer = HFTokenizer(artifact)
        graph, options = prepacked.graph(artifact, placement.device), _options(threads)
        self._session: Any
        self._session, nodes = open_session(graph, artifact.path, placement, options)
        self.placed = str(nodes or "")
        is_last_only = _check(artifact, self._session)
        rows = 1 if is_last_only else max(1, min(n_batch, _LOGIT_BYTES // (4 * artifact.n_vocab)))
        self._logits: NDArray[np.float32] = np.zeros((rows, artifact.n_vocab), np.float32)
        self._last = 0
        self._is_last_only = is_last_only
        self._ids = np.zeros(n_batch if is_last_only else rows, np.int64)
        self._absent = np.full(len(self._ids), -1, np.int64)
        self._mask = np.ones(n_ctx, np.int64)
        self._positions = np.arange(n_ctx, dtype=np.int64)
        self._has_positions = any(node.name == POSITIONS for node in self._session.get_inputs())
        self._cache = new_cache(artifact, self._session, n_ctx)
        self._bindings: dict[str, Any] = {}
        self._embedder: OnnxEmbedder | None = None
        give_back()
        self.settings: Mapping[str, Any] = {
            "engine": f"onnxruntime {runtime().__version__}",
            "device": placement.device,
        }

    @property
    def n_batch(self) -> int:
        """Rows that one ``decode`` takes at most."""
        return len(self._ids)

    def decode_scored(self, sequence: int, tokens: Sequence[int], count: int) -> NDArray[np.float32]:
        """See :meth:`edge_llama.backends.scoring.ScoringTower.decode_scored`.

        A graph that gives the last row's logits alone computes the rows that are wanted one by one.
        """
        if not self._is_last_only:
            self.decode([Rows(sequence, tokens)])
            return self._logits[len(tokens) - count : len(tokens)]
        before, after = tokens[: len(tokens) - count], tokens[len(tokens) - count :]
        if before:
            self.decode([Rows(sequence, before, needs_logits=False)])
        logits = np.empty((count, self._artifact.n_vocab), np.float32)
        for values, token in zip(logits, after, strict=True):
            values[:] = self.decode([Rows(sequence, [token])])[0].values
        return logits

    def decode(self, batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        """Append the rows of the one sequence, at most ``n_batch``; the last one's logits, if they are wanted."""
        (rows,) = batch
        count = len(rows.tokens)
        if rows.embeddings is None:
            self._ids[:count] = rows.tokens
            self._run(self._binding("token" if count == 1 else "tokens"), self._ids, count)
        else:
            values = checked_embeddings(rows.embeddings, self)
            binding = self._binding("embeddings")
            binding.bind_input(IMAGE_FEATURES, "cpu", 0, np.float32, values.shape, values.ctypes.data)
            self._run(binding, self._absent, count)
        return [LogitsRow(self._logits[self._last], self._last)] if rows.needs_logits else []

    def _binding(self, kind: str) -> Any:
        """What is bound for a token, several, or embeddings: what never changes is bound once."""
        if self._session is None:
            raise EngineError("the model is closed", remedy="open it again")
        if kind not in self._bindings:
            self._bindings[kind] = binding = self._session.io_binding()
            self._cache.attach(binding)
            if kind == "token":
                self._bind_logits(binding, 1)
        return self._bindings[kind]

    def _bind_logits(self, binding: Any, count: int) -> None:
        shape = (1, 1 if self._is_last_only else count, self._artifact.n_vocab)
        binding.bind_output(self._artifact.names.logits, "cpu", 0, np.float32, shape, self._logits.ctypes.data)

    def _run(self, binding: Any, ids: NDArray[np.int64], count: int) -> None:
        total = self._length + count
        if total > self._n_ctx:
            raise EngineError(f"{total:,} positions don't fit the context of {self._n_ctx:,}")
        if binding is not self._bindings.get("token"):
            self._bind_logits(binding, count)
        names = self._artifact.names  # inputs anew for each run: another memory gets a copy when they are bound
        binding.bind_input(names.ids, "cpu", 0, np.int64, (1, count), ids.ctypes.data)
        binding.bind_input(names.mask, "cpu", 0, np.int64, (1, total), self._mask.ctypes.data)
        if self._has_positions:
            address = self._positions[self._length :].ctypes.data
            binding.bind_input(POSITIONS, "cpu", 0, np.int64, (1, count), address)
        self._cache.bind(binding, self._length, count)
        options = self._short if count == 1 else self._long
        if options.terminate:
            raise AbortedError
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # its errors share no class but this
            if options.terminate:
                raise AbortedError from error
            raise EngineError(f"ONNX Runtime failed at position {self._length:,}: {why(error)}") from error
        if options is self._long:
            give_back()
        self._cache.appended()
        self._length, self._last = total, 0 if self._is_last_only else count - 1

    def cut(self, sequence: int, length: int) -> None:  # noqa: ARG002 - there is one
        """Keep the first ``length`` positions of the cache."""
        if length < self._length:
            self._cache.cut(self._length, length)
            self._length = length

    def saved_bytes(self, sequence: int) -> int:  # noqa: ARG002 - there is one
        """Bytes that :meth:`save` would give."""
        return self._bytes_of(self._length)

    def _bytes_of(self, length: int) -> int:
        return 4 * len(self._artifact.names.past) * self._artifact.n_kv_heads * length * self._artifact.head_dim

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """A copy of the cache: keys and values by layer, float32 ``(n_kv_heads, length, head_dim)`` each."""
        data = np.empty(self.saved_bytes(sequence), np.uint8)
        for part, values in zip(self._parts(data, self._length), self._cache.read(self._length), strict=True):
            part[:] = values
        return data

    def load(self, sequence: int, kv: NDArray[np.uint8], length: int) -> None:
        """Have the cache that :meth:`save` gave. EngineError if it is not of ``length`` positions; it is then empty."""
        self.cut(sequence, 0)
        if length > self._n_ctx or kv.nbytes != self._bytes_of(length):
            raise EngineError(f"a cache of {kv.nbytes:,} bytes, {self._bytes_of(length):,} are {length:,} positions")
        self._cache.write(self._parts(kv, length), length)
        self._length = length

    def _parts(self, data: NDArray[np.uint8], length: int) -> NDArray[np.float32]:
        shape = (len(self._artifact.names.past), self._artifact.n_kv_heads, length, self._artifact.head_dim)
        return np.ascontiguousarray(data).view(np.float32).reshape(shape)

    def embedder(self, longest: int) -> OnnxEmbedder:
        """See :meth:`edge_llama.backends.base.TextTower.embedder`."""
        if not self._artifact.gives_hidden_states:
            raise EngineError(f"{self._artifact.path}: the graph has no output {HIDDEN_STATES}")
        if self._session is None:
            raise EngineError("the model is closed", remedy="open it again")
        if self._embedder is None or self._embedder.longest < longest:
            self._embedder = None
            self._embedder = OnnxEmbedder(self._artifact, self._session, self._long, longest, self.n_batch)
        return self._embedder

    def close(self) -> None:
        """Free the cache and the weights. May be called twice."""
        self._bindings.clear()
        self._session = self._embedder = None


def _options(threads: int) -> Any:
    options = runtime().SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between tokens others have the cores
    options.enable_mem_pattern = False  # every length of the cache would add one
    return options


def _check(artifact: OnnxArtifact, session: Any) -> bool:
    """Whether the graph gives one row of logits; ArtifactError unless all else is as genai_config.json says."""
    names = artifact.names
    whole: _Kind = (_WHOLE, (None, None))
    cache: _Kind = (_FLOAT, (None, artifact.n_kv_heads, None, artifact.head_dim))
    takes: dict[str, _Kind] = {
        names.ids: whole,
        names.mask: whole,
        POSITIONS: whole,
        **dict.fromkeys(names.past, cache),
    }
    takes[IMAGE_FEATURES] = (_FLOAT, (None, artifact.n_embd))
    gives: dict[str, _Kind] = {names.logits: (_FLOAT, (None, None, artifact.n_vocab))}
    gives |= dict.fromkeys(names.present, cache)
    gives[HIDDEN_STATES] = (_FLOAT, (None, None, artifact.n_embd))
    optional = [node for node in session.get_overridable_initializers() if node.name in takes]
    for kind, nodes, known in (
        ("input", [*session.get_inputs(), *optional], takes),
        ("output", session.get_outputs(), gives),
    ):
        for node in nodes:
            if node.name not in known:
                raise _unfit(artifact, f"has the {kind} {node.name!r:.100}, which this version does not know")
            type_, shape = known[node.name]
            if node.type != type_ or not fits(node.shape, shape):
                sizes = ", ".join("?" if size is None else str(size) for size in shape)
                found = f"{node.type} {node.shape}"
                raise _unfit(artifact, f"has the {kind} {node.name!r:.100} as {found}, expected {type_} [{sizes}]")
    logits = next(node for node in session.get_outputs() if node.name == names.logits)
    return bool(logits.shape[1] == 1)


def _unfit(artifact: OnnxArtifact, problem: str) -> ArtifactError:
    return ArtifactError(f"{artifact.path}: the graph {problem}", remedy=_UNFIT)


def main(path: str, placement: str) -> None:
    """The child: open the file, read a few tokens at once, then one."""
    crash_probe.begin()
    try:
        artifact = read_onnx_text(Path(path))
        tower = OnnxTower(
            artifact,
            n_ctx=min(64, artifact.n_ctx_train),
            threads=1,
            placement=Placement.from_json(json.loads(placement)),
        )
        tokens = [token % artifact.n_vocab for token in range(min(_TRIAL_TOKENS, tower.n_batch, tower.n_ctx - 1))]
        tower.decode([Rows(0, tokens)])
        tower.decode([Rows(0, tokens[:1])])
        tower.close()
    except Exception as error:  # the parent will meet it
        _log.debug("%s", error)
    crash_probe.end()

"""llama.cpp as the text tower's engine: GGUF files, through llama-cpp-python's low-level functions.

The high-level ``Llama`` class is not used: it detokenizes everything again for each token, and can't be stopped.
"""

import atexit
import ctypes
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet
from edge_llama.backends.base import ON_CPU, AbortedError, CacheSize, Placement, Rows, checked_embeddings
from edge_llama.backends.llama_cpp import build_probe, offload
from edge_llama.backends.llama_cpp.adapters import NativeAdapters
from edge_llama.backends.llama_cpp.batch import Batch, ContextOptions
from edge_llama.backends.llama_cpp.devices import engine_devices
from edge_llama.backends.llama_cpp.embeddings import LlamaCppEmbedder
from edge_llama.backends.llama_cpp.importance import Collector
from edge_llama.backends.llama_cpp.loading import Loading
from edge_llama.backends.llama_cpp.sampler import NativeSampler
from edge_llama.backends.llama_cpp.tokenizer import GGUFTokenizer, overrides
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files.gguf_adapter import AdapterFile
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.host.devices import Device
from edge_llama.sampling.numpy_sampler import NumpySampler
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.sampler import LogitsRow, Sampler

_log = logging.getLogger(__name__)
_ABORTED = 2
_TRIAL_CTX = 256
_REFUSED = "the file is damaged, or newer than this llama.cpp: download it again, or update llama-cpp-python"
_THERE = "take --device cpu, another device or --split-mode, or a smaller --n-ctx"
_LEVELS = {2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}  # GGML_LOG_LEVEL_*; what is below is noise


@cache
def the_engine() -> Any:
    """The ``llama_cpp`` module, loaded once: its library, its log sent to ours. EngineError if it does not work."""
    build_probe.require()
    try:
        import llama_cpp  # noqa: PLC0415 - loads native code, only when a model is opened
    except (ImportError, RuntimeError, OSError) as error:
        raise EngineError(f"llama-cpp-python cannot be loaded: {error}", remedy="reinstall it") from error
    _close_at_exit()
    llama_cpp.llama_log_set(_NATIVE_LOG, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def _close_at_exit() -> None:
    """llama-cpp-python opens /dev/null twice when it is imported, for its class ``Llama``, and leaves it open."""
    package = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if (file := getattr(package, name, None)) is not None:
            atexit.register(file.close)


def available_devices() -> list[Device]:
    """The devices that this build can use, with the memory that is free on each now."""
    the_engine()
    return engine_devices()


_last_lines: deque[str] = deque(maxlen=4)


def _native_log(level: int, text: bytes, _data: int | None) -> None:
    line = text.decode("utf-8", "replace").strip()
    offload.heard(line)
    if level == max(_LEVELS):
        _last_lines.append(line)
    if line and level in _LEVELS:
        # What the engine calls a warning is about its own choices; our callers see an error when work fails.
        _log.debug("%s: %s", logging.getLevelName(_LEVELS[level]), line)


_NATIVE_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_native_log)


def native_log() -> Any:
    """Where llama.cpp's libraries shall send their log."""
    return _NATIVE_LOG


def _why() -> str:
    """llama.cpp's own last words, for an error message."""
    lines = [line for line in _last_lines if line]
    _last_lines.clear()
    return ": " + " / ".join(lines) if lines else ""


@cache
def _strlen() -> int:
    """The address of C's ``strlen``: the abort callback.

    ggml asks the callback before each of a graph's thousand nodes; a Python function there would take the GIL each
    time. ``strlen`` of a buffer that holds "" or "x" answers false or true in native code.
    """
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    return ctypes.cast(library.strlen, ctypes.c_void_p).value or 0


def _bytes_pointer(data: NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class LlamaCppTower:
    """A text tower of a GGUF file. Keeps the Protocol :class:`edge_llama.backends.base.TextTower`.

    All sequences share one pool of cells (llama.cpp's unified cache), so that each may use the whole of it and one that
    begins as another shares its cells. Rows then attend over the cells of all: the caller keeps few in use.
    """

    def __init__(
        self,
        artifact: GGUFArtifact,
        *,
        cache: CacheSize,
        threads: int,
        flash_attention: bool,
        kv_format: str,
        n_batch: int = 512,
        placement: Placement = ON_CPU,
        is_mapped: bool = False,
        embeds: Callable[[], bool] = lambda: True,
    ) -> None:
        """Load the weights, or map them, and allocate the KV cache in ``kv_format``: f16, f32, q8_0 or q4_0.

        ``embeds`` is asked whether llama.cpp survives it when the model embeds texts. Raises ArtifactError if llama.cpp
        refuses the file, EngineError if the cache can't be allocated, and for a strict ``placement`` that is not kept.
        """
        self._lib = lib = the_engine()
        options = lib.llama_model_default_params()
        # Read, not mapped: a mapped file that is cut short or overwritten while it is open ends the process (SIGBUS).
        # That the weights fit the memory was checked when the context's size was chosen.
        options.load_mode = lib.LLAMA_LOAD_MODE_MMAP if is_mapped else lib.LLAMA_LOAD_MODE_NONE
        options.use_extra_bufts = not is_mapped  # weights in another order would be copies in memory
        options.kv_overrides = overrides(lib, artifact.header)
        self._kept = offload.apply(placement, options, lib)
        loading = Loading(lib, options)
        with offload.assignments() as layers:
            self._model: Any = lib.llama_model_load_from_file(os.fsencode(artifact.path), options)
        loading.check()
        if not self._model and placement.devices:
            raise EngineError(f"{artifact.path}: llama.cpp cannot load it on {placement.device}{_why()}", remedy=_THERE)
        if not self._model:
            raise ArtifactError(f"{artifact.path}: llama.cpp cannot load it{_why()}", remedy=_REFUSED)
        # An encoder writes no token: this context is there, and as small as it can be.
        n_rows = 1 if artifact.is_encoder else n_batch
        cache = self._possible(cache, n_rows)
        self._artifact, self._embeds = artifact, embeds
        self._abort_flag = ctypes.create_string_buffer(2)
        self._embedder: LlamaCppEmbedder | None = None
        self._threads = threads
        self._options = ContextOptions(
            flash_attention=flash_attention,
            kv_format=kv_format,
            n_batch=n_batch,
            on_gpu=placement.gpu_layers > 0,
            is_offloaded=bool(placement.devices),
            abort_callback=_strlen(),
            abort_data=ctypes.addressof(self._abort_flag),
        )
        params = self._options.params(
            lib, n_ctx=cache.n_cells, n_batch=n_rows, n_sequences=cache.n_sequences, threads=threads
        )
        try:
            self.placed = self._checked(placement, layers)
        except EngineError:
            lib.llama_model_free(self._model)
            raise
        self._context: Any = lib.llama_init_from_model(self._model, params)
        if not self._context:
            lib.llama_model_free(self._model)
            raise EngineError(
                f"{artifact.path}: llama.cpp cannot make a context of {cache.n_cells:,} tokens{_why()}",
                remedy="use a smaller n_ctx",
            )
        self._memory: Any = lib.llama_get_memory(self._context)
        self._adapters = NativeAdapters(lib, self._model)
        self._cache = cache
        self._lengths = [0] * cache.n_sequences
        self._logits: dict[tuple[int, int], NDArray[np.float32]] = {}
        self.settings = {
            "engine": f"llama.cpp {lib.llama_version().decode()} (llama-cpp-python {lib.__version__})",
            "flash_attention": bool(flash_attention),
            "kv_format": kv_format,
            "device": placement.device if placement.gpu_layers else "cpu",
        }
        self._batch = Batch(lib, n_batch)
        self.tokenizer = GGUFTokenizer(lib, lib.llama_model_get_vocab(self._model), artifact.header)

    def _possible(self, cache: CacheSize, n_batch: int) -> CacheSize:
        """Recurrent states are one for each sequence, and can't be shared: such models serve one at a time."""
        if self._lib.llama_model_is_recurrent(self._model) or self._lib.llama_model_is_hybrid(self._model):
            return CacheSize.of_one(cache.n_ctx)
        # llama.cpp ends the process if there are more sequences than rows in a batch.
        return replace(cache, n_sequences=min(cache.n_sequences, n_batch, self._lib.llama_max_parallel_sequences()))

    def _checked(self, placement: Placement, layers: Mapping[int, str]) -> str:
        """Where layers and nodes are, by what llama.cpp says of both. EngineError if a strict placement is not kept."""
        if not placement.gpu_layers:
            return ""
        output, nodes = self._artifact.n_layer, list[str]()
        if not self._artifact.is_encoder:  # which decodes nothing
            few = {"n_ctx": _TRIAL_CTX, "n_batch": _TRIAL_CTX, "n_sequences": 1}
            params = self._options.params(self._lib, **few, threads=self._threads)
            nodes = offload.computed_on_cpu(self._lib, self._model, params)
        problem = offload.astray(placement, layers, nodes, output)
        where = offload.described(layers, output)
        if not problem:
            return where
        offload.tell(problem, self._artifact.path, placement)
        return f"{where}; {problem}"

    @property
    def n_ctx(self) -> int:
        """Positions that a sequence may have."""
        return self._cache.n_ctx

    @property
    def n_cells(self) -> int:
        """Positions that all sequences may have together."""
        return self._cache.n_cells

    @property
    def n_sequences(self) -> int:
        """How many sequences there may be."""
        return self._cache.n_sequences

    @property
    def n_batch(self) -> int:
        """Rows that one ``decode`` takes at most."""
        return self._batch.size

    @property
    def n_embd(self) -> int:
        """Width of an embedding."""
        return int(self._lib.llama_model_n_embd(self._model))

    def length(self, sequence: int) -> int:
        """Positions of a sequence."""
        return self._lengths[sequence]

    def decode(self, batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        """Append to each sequence its rows, at most ``n_batch`` in all; logits for those that want them."""
        for rows in batch:
            if rows.embeddings is not None:
                checked_embeddings(rows.embeddings, self)
        self._decode(batch, self._filled(batch))
        return self._rows_of_logits(batch)

    def decode_scored(self, sequence: int, tokens: Sequence[int], count: int) -> NDArray[np.float32]:
        """See :meth:`edge_llama.backends.scoring.ScoringTower.decode_scored`."""
        self._batch.clear()
        self._batch.add(sequence, self._lengths[sequence], tokens, n_outputs=count)
        self._decode([Rows(sequence, tokens)], self._batch.filled())
        if not count:
            return np.empty((0, self.tokenizer.n_vocab), np.float32)
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(count, self.tokenizer.n_vocab))

    def _decode(self, batch: Sequence[Rows], filled: Any) -> None:
        """Compute the rows of ``batch``, which ``filled`` is made of; where that fails nothing was appended."""
        if self._abort_flag.value:
            raise AbortedError
        status = self._lib.llama_decode(self._context, filled)
        if status == 0:
            for rows in batch:
                self._lengths[rows.sequence] += len(rows.tokens)
            return
        for rows in batch:
            self.cut(rows.sequence, self._lengths[rows.sequence])
        if status == _ABORTED:
            raise AbortedError
        longest = max(self._lengths[rows.sequence] for rows in batch)
        problem = f"llama.cpp failed at position {longest:,} with status {status}{_why()}"
        raise EngineError(problem, remedy=_THERE if self._options.is_offloaded else "")

    def _filled(self, batch: Sequence[Rows]) -> Any:
        """The ``llama_batch`` of these rows, each after what its sequence has."""
        self._batch.clear()
        for rows in batch:
            begin = self._lengths[rows.sequence]
            self._batch.add(rows.sequence, begin, rows.tokens, n_outputs=int(rows.needs_logits))
        embeddings = [rows.embeddings for rows in batch if rows.embeddings is not None]
        return self._batch.filled(np.ascontiguousarray(np.concatenate(embeddings), np.float32) if embeddings else None)

    def _rows_of_logits(self, batch: Sequence[Rows]) -> list[LogitsRow]:
        """llama.cpp's own rows, in the order of the batch, after it waited for the work to be done."""
        ends = accumulate(len(rows.tokens) for rows in batch)
        wanted = [end - 1 for end, rows in zip(ends, batch, strict=True) if rows.needs_logits]
        if not wanted:
            return []
        pointer = self._lib.llama_get_logits(self._context)
        place = ctypes.addressof(pointer.contents), len(wanted)
        if place not in self._logits:  # its buffer moves only when it has to grow
            if any(address != place[0] for address, _ in self._logits):
                self._logits.clear()
            self._logits[place] = np.ctypeslib.as_array(pointer, shape=(len(wanted), self.tokenizer.n_vocab))
        return [LogitsRow(values, index) for values, index in zip(self._logits[place], wanted, strict=True)]

    def cut(self, sequence: int, length: int) -> None:
        """Keep the first ``length`` positions, or none if the memory can't be cut there."""
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1):
            # Some memories (recurrent states) hold only the last position: begin anew. They have one sequence.
            self._lib.llama_memory_clear(self._memory, True)
            length = 0
        self._lengths[sequence] = length

    def share(self, source: int, target: int, length: int) -> None:
        """Have ``target`` begin with the first ``length`` cells of ``source``: they then belong to both."""
        if length:
            self._lib.llama_memory_seq_rm(self._memory, target, 0, length)
            self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
            self._lengths[target] = max(self._lengths[target], length)

    def saved_bytes(self, sequence: int) -> int:
        """Bytes that :meth:`save` would give."""
        return int(self._lib.llama_state_seq_get_size(self._context, sequence))

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """A copy of the sequence: what ``llama_state_seq_get_data`` writes."""
        data = np.empty(self.saved_bytes(sequence), np.uint8)
        written = self._lib.llama_state_seq_get_data(self._context, _bytes_pointer(data), data.nbytes, sequence)
        if written != data.nbytes:
            raise EngineError(f"llama.cpp wrote {written:,} of {data.nbytes:,} bytes of its cache{_why()}")
        return data

    def load(self, sequence: int, kv: NDArray[np.uint8], length: int) -> None:
        """Have the sequence that :meth:`save` gave. EngineError if llama.cpp refuses it; it is then empty."""
        self.cut(sequence, 0)
        _last_lines.clear()
        read = self._lib.llama_state_seq_set_data(self._context, _bytes_pointer(kv), kv.nbytes, sequence)
        last = self._lib.llama_memory_seq_pos_max(self._memory, sequence)
        if read != kv.nbytes or last != length - 1:  # it may take nothing of it and yet not complain
            self.cut(sequence, 0)
            raise EngineError(f"llama.cpp read {read:,} of {kv.nbytes:,} bytes of a cache{_why()}")
        self._lengths[sequence] = length

    def add_adapters(self, adapters: Iterable[AdapterFile]) -> None:
        """See :meth:`edge_llama.backends.adapters.AdaptedTower.add_adapters`."""
        self._adapters.add(adapters)

    def use_adapters(self, adapters: AdapterSet) -> None:
        """See :meth:`edge_llama.backends.adapters.AdaptedTower.use_adapters`. Texts are embedded without any."""
        self._adapters.use(self._context, adapters)

    def embedder(self, longest: int) -> LlamaCppEmbedder:
        """See :meth:`edge_llama.backends.base.TextTower.embedder`."""
        if self._embedder is None and not self._embeds():
            raise EngineError(
                f"{self._artifact.path}: llama.cpp cannot embed texts with it: a trial in a process of its own died",
                remedy="take another model for embeddings",
            )
        if self._embedder is None or self._embedder.longest < longest:
            if self._embedder:
                self._embedder.close()
                self._embedder = None
            self._embedder = LlamaCppEmbedder(
                self._lib, self._model, self._artifact, longest, self._threads, self._options
            )
        return self._embedder

    def importance(self, n_ctx: int) -> Collector:
        """See there. To be closed before this."""
        return Collector(self._lib, self._model, self._artifact, n_ctx, self._threads, self._options)

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        """llama.cpp's own sampler chain, in the order of :class:`SamplingParams`.

        It lists the whole vocabulary for each token; where nothing is drawn, looking for the largest logit is enough.
        """
        if params.temperature == 0:
            return NumpySampler(params, history)
        return NativeSampler(self._lib, self._context, self.tokenizer.n_vocab, params, history)

    def use_threads(self, count: int) -> None:
        """How many threads the next ``decode`` uses."""
        if count == self._threads:
            return
        self._threads = count
        self._lib.llama_set_n_threads(self._context, count, count)
        if self._embedder:
            self._embedder.use_threads(count)

    def abort(self) -> None:
        """Stop the ``decode`` that is running, within a graph node's time, and refuse others until ``resume``."""
        self._abort_flag.value = b"x"

    def resume(self) -> None:
        """Take work again after ``abort``."""
        self._abort_flag.value = b""

    def close(self) -> None:
        """Free the cache and the weights. May be called twice."""
        if self._context:
            self.tokenizer.close()
            if self._embedder:
                self._embedder.close()
                self._embedder = None
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = self._model = None

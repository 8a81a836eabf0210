"""llama.cpp as the text tower's engine: GGUF files, through llama-cpp-python's low-level functions.

The high-level ``Llama`` class is not used: it detokenizes everything again for each token, and can't be stopped.
"""

import ctypes
import logging
import os
import sys
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import AbortedError, Sampler, checked_embeddings
from edge_llama.backends.llama_cpp import build_probe
from edge_llama.backends.llama_cpp.devices import engine_devices
from edge_llama.backends.llama_cpp.embeddings import ContextOptions, LlamaCppEmbedder
from edge_llama.backends.llama_cpp.library import AfterLoad
from edge_llama.backends.llama_cpp.sampler import NativeSampler
from edge_llama.backends.llama_cpp.tokenizer import GGUFTokenizer, overrides
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.host.devices import Device
from edge_llama.sampling.numpy_sampler import NumpySampler
from edge_llama.sampling.params import SamplingParams

_log = logging.getLogger(__name__)
_ABORTED = 2
_REFUSED = "the file is damaged, or newer than this llama.cpp: download it again, or update llama-cpp-python"
_LEVELS = {2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}  # GGML_LOG_LEVEL_*; what is below is noise


@cache
def the_engine() -> Any:
    """The ``llama_cpp`` module, loaded once: its library, its log sent to ours. EngineError if it does not work."""
    build_probe.require()
    try:
        import llama_cpp  # noqa: PLC0415 - loads native code, only when a model is opened
    except (ImportError, RuntimeError, OSError) as error:
        raise EngineError(f"llama-cpp-python cannot be loaded: {error}", remedy="reinstall it") from error
    llama_cpp.llama_log_set(_NATIVE_LOG, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def available_devices() -> list[Device]:
    """The devices that this build can use, with the memory that is free on each now."""
    the_engine()
    return engine_devices()


_last_lines: deque[str] = deque(maxlen=4)


def _native_log(level: int, text: bytes, _data: int | None) -> None:
    line = text.decode("utf-8", "replace").strip()
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
    """A text tower of a GGUF file. Keeps the Protocol :class:`edge_llama.backends.base.TextTower`."""

    def __init__(
        self,
        artifact: GGUFArtifact,
        *,
        n_ctx: int,
        threads: int,
        flash_attention: bool,
        kv_format: str,
        n_batch: int = 512,
        gpu_layers: int = 0,
        embeds: bool = True,
    ) -> None:
        """Load the weights and allocate a KV cache of ``n_ctx`` positions in ``kv_format``: f16, f32 or q8_0.

        ``embeds``: whether llama.cpp survives it when the model embeds texts. Raises ArtifactError if llama.cpp refuses
        the file, EngineError if the cache can't be allocated.
        """
        self._lib = lib = the_engine()
        options = lib.llama_model_default_params()
        # Read, not mapped: a mapped file that is cut short or overwritten while it is open ends the process (SIGBUS).
        # That the weights fit the memory was checked when the context's size was chosen.
        options.load_mode = lib.LLAMA_LOAD_MODE_NONE
        options.n_gpu_layers = gpu_layers
        options.kv_overrides = overrides(lib, artifact.header)
        self._model: Any = lib.llama_model_load_from_file(os.fsencode(artifact.path), options)
        if not self._model:
            raise ArtifactError(f"{artifact.path}: llama.cpp cannot load it{_why()}", remedy=_REFUSED)
        self._artifact, self._embeds = artifact, embeds
        self._abort_flag = ctypes.create_string_buffer(2)
        self._embedder: LlamaCppEmbedder | None = None
        self._threads = threads
        self._options = ContextOptions(
            flash_attention=flash_attention,
            kv_format=kv_format,
            n_batch=n_batch,
            on_gpu=gpu_layers > 0,
            abort_callback=_strlen(),
            abort_data=ctypes.addressof(self._abort_flag),
        )
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        # An encoder writes no token: this context is there, and as small as it can be.
        params.n_batch = params.n_ubatch = 1 if artifact.is_encoder else n_batch
        params.offload_kqv = params.op_offload = gpu_layers > 0
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash_attention)
        params.type_k = params.type_v = FORMATS[kv_format].ggml_id
        params.abort_callback = ctypes.cast(_strlen(), type(params.abort_callback))
        params.abort_callback_data = ctypes.addressof(self._abort_flag)
        params.no_perf = True
        self._context: Any = lib.llama_init_from_model(self._model, params)
        if not self._context:
            lib.llama_model_free(self._model)
            raise EngineError(
                f"{artifact.path}: llama.cpp cannot make a context of {n_ctx:,} tokens{_why()}",
                remedy="use a smaller n_ctx",
            )
        self._memory: Any = lib.llama_get_memory(self._context)
        self._n_ctx = n_ctx
        self.length = 0
        self._loaded_logits: NDArray[np.float32] | None = None
        self._logits_at = 0
        self.settings = {
            "engine": f"llama.cpp {lib.llama_version().decode()} (llama-cpp-python {lib.__version__})",
            "flash_attention": bool(flash_attention),
            "kv_format": kv_format,
        }
        self._tokens = np.empty(n_batch, np.int32)
        self._token_pointer = self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self.tokenizer = GGUFTokenizer(lib, lib.llama_model_get_vocab(self._model), artifact.header)

    @property
    def n_ctx(self) -> int:
        """Positions that the cache holds."""
        return self._n_ctx

    @property
    def n_batch(self) -> int:
        """Tokens that one ``decode`` takes at most."""
        return len(self._tokens)

    @property
    def n_embd(self) -> int:
        """Width of an embedding."""
        return int(self._lib.llama_model_n_embd(self._model))

    def decode(self, tokens: Sequence[int]) -> None:
        """Append at most ``n_batch`` tokens to the cache; their last one's logits can then be read."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._decode(self._lib.llama_batch_get_one(self._token_pointer, count), count)

    def decode_embeddings(self, embeddings: NDArray[np.float32]) -> None:
        """Append ``(n, n_embd)`` embeddings, at most ``n_batch``, in place of tokens."""
        values = checked_embeddings(embeddings, self)
        pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._decode(self._lib.llama_batch(n_tokens=len(values), embd=pointer), len(values))

    def _decode(self, batch: Any, count: int) -> None:
        if self._abort_flag.value:
            raise AbortedError
        status = self._lib.llama_decode(self._context, batch)
        self._loaded_logits = None
        if status == 0:
            self.length += count
            return
        self.rewind(self.length)
        if status == _ABORTED:
            raise AbortedError
        raise EngineError(f"llama.cpp failed at position {self.length:,} with status {status}{_why()}")

    def logits(self) -> NDArray[np.float32]:
        """A copy of the logits of the last decoded position, float32 ``(n_vocab,)``."""
        return self.logits_view().copy()

    def logits_view(self) -> NDArray[np.float32]:
        """llama.cpp's own logits of the last decoded position, which its samplers read; good until the next decode."""
        if self._loaded_logits is not None:
            return self._loaded_logits
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        address = ctypes.addressof(pointer.contents)
        if self._logits_at != address:  # its buffer moves only when it has to grow
            self._logits = np.ctypeslib.as_array(pointer, shape=(self.tokenizer.n_vocab,))
            self._logits_at = address
        return self._logits

    def rewind(self, length: int) -> None:
        """Keep the first ``length`` positions of the cache, or none if it can't be cut there."""
        if not self._lib.llama_memory_seq_rm(self._memory, 0, length, -1):
            # Some memories (recurrent states) hold only the last position: begin anew.
            self._lib.llama_memory_clear(self._memory, True)
            length = 0
        self.length, self._loaded_logits = length, None

    @property
    def saved_bytes(self) -> int:
        """Bytes that :meth:`save` would give."""
        return int(self._lib.llama_state_seq_get_size(self._context, 0))

    def save(self) -> NDArray[np.uint8]:
        """A copy of the cache: what ``llama_state_seq_get_data`` writes."""
        data = np.empty(self.saved_bytes, np.uint8)
        written = self._lib.llama_state_seq_get_data(self._context, _bytes_pointer(data), data.nbytes, 0)
        if written != data.nbytes:
            raise EngineError(f"llama.cpp wrote {written:,} of {data.nbytes:,} bytes of its cache{_why()}")
        return data

    def load(self, kv: NDArray[np.uint8], length: int, logits: NDArray[np.float32] | None) -> None:
        """Have the cache that :meth:`save` gave. EngineError if llama.cpp refuses it; the cache is then empty."""
        self._lib.llama_memory_clear(self._memory, False)
        self.length, self._loaded_logits = 0, None
        _last_lines.clear()
        read = self._lib.llama_state_seq_set_data(self._context, _bytes_pointer(kv), kv.nbytes, 0)
        last = self._lib.llama_memory_seq_pos_max(self._memory, 0)
        if read != kv.nbytes or last != length - 1:  # it may take nothing of it and yet not complain
            self._lib.llama_memory_clear(self._memory, True)
            raise EngineError(f"llama.cpp read {read:,} of {kv.nbytes:,} bytes of a cache{_why()}")
        self.length = length
        # llama.cpp keeps the logits elsewhere, and gives no way to put them back.
        self._loaded_logits = None if logits is None else logits.copy()

    def embedder(self, longest: int) -> LlamaCppEmbedder:
        """See :meth:`edge_llama.backends.base.TextTower.embedder`."""
        if not self._embeds:
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

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        """llama.cpp's own sampler chain, in the order of :class:`SamplingParams`.

        It lists the whole vocabulary for each token; where nothing is drawn, looking for the largest logit is enough.
        """
        if params.temperature == 0:
            return NumpySampler(self.logits_view, params, history)
        sampler = NativeSampler(self._lib, self._context, self.tokenizer.n_vocab, params, history)
        return sampler if self._loaded_logits is None else AfterLoad(self._lib, sampler, self._loaded_logits)

    def use_threads(self, count: int) -> None:
        """How many threads the next ``decode`` uses."""
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

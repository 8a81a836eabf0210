"""Rows for llama.cpp, and the parameters of the contexts that take them: the same for generating and for embedding."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOptions:
    """How a tower's contexts are made, as far as they are the same."""

    flash_attention: bool
    kv_format: str
    n_batch: int
    on_gpu: bool
    """The KV cache, with the layers that are there."""
    is_offloaded: bool
    """Large batches may go to a GPU although their layers' weights are on the CPU."""
    abort_callback: int
    """The address of a function, and of what it is given."""
    abort_data: int

    def params(self, lib: Any, *, n_ctx: int, n_batch: int, n_sequences: int, threads: int) -> Any:
        """``llama_context_params`` for a cache of ``n_ctx`` cells that all sequences share."""
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_batch
        params.n_seq_max = n_sequences
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(self.flash_attention)
        params.type_k = params.type_v = FORMATS[self.kv_format].ggml_id
        params.offload_kqv, params.op_offload = self.on_gpu, self.is_offloaded
        params.abort_callback = ctypes.cast(self.abort_callback, type(params.abort_callback))
        params.abort_callback_data = self.abort_data
        params.no_perf = True
        return params


class Batch:
    """A ``llama_batch`` whose arrays are made once: :meth:`clear`, :meth:`add` for each sequence, :meth:`filled`."""

    def __init__(self, lib: Any, size: int) -> None:
        self.size = size
        self._count = 0
        self._tokens, self._positions, self._sequences = (np.zeros(size, np.int32) for _ in range(3))
        self._ones = np.ones(size, np.int32)  # sequences of each row
        # llama.cpp takes for each row the address of the list of its sequences: here of one.
        steps = self._sequences.itemsize * np.arange(size)
        self._lists = (self._sequences.ctypes.data + steps).astype(np.uintp)
        self._wanted = np.zeros(size, np.int8)
        self._embeddings: NDArray[np.float32] | None = None
        self._token_pointer = _pointer(self._tokens, ctypes.c_int32)
        self._struct = lib.llama_batch(
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._ones, ctypes.c_int32),
            seq_id=_pointer(self._lists, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def clear(self) -> None:
        """Take rows from the beginning."""
        self._count = 0

    def add(self, sequence: int, begin: int, tokens: Sequence[int], *, n_outputs: int) -> None:
        """Rows of a sequence from position ``begin`` on, of the last ``n_outputs`` of which outputs are wanted."""
        at, end = self._count, self._count + len(tokens)
        self._tokens[at:end] = tokens
        self._positions[at:end] = range(begin, begin + end - at)
        self._sequences[at:end] = sequence
        self._wanted[at:end] = 0
        self._wanted[end - n_outputs : end] = 1
        self._count = end

    def filled(self, embeddings: NDArray[np.float32] | None = None) -> Any:
        """The ``llama_batch`` of the rows, or of ``(n, n_embd)`` embeddings in place of their tokens."""
        self._struct.n_tokens = self._count
        self._embeddings = embeddings  # as long as the batch
        self._struct.token = self._token_pointer if embeddings is None else None
        self._struct.embd = None if embeddings is None else _pointer(embeddings, ctypes.c_float)
        return self._struct


def _pointer(values: NDArray[Any], kind: Any) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(kind))

"""Hidden states by llama.cpp: a context of its own over a tower's weights, so that running answers are not touched.

It is small: its KV cache holds one batch, or the longest text that was asked for, and an encoder has none. llama.cpp
gives the hidden states of a batch together with its logits, which nobody asks for here: 4 bytes for each token and
each word of the vocabulary, and the head's share of the time. So batches are small where the vocabulary is large.
Pooling is left to :mod:`edge_llama.runtime.embeddings`, where it is the same for every engine.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import embedding_room
from edge_llama.backends.base import AbortedError
from edge_llama.backends.llama_cpp.batch import Batch, ContextOptions
from edge_llama.errors import EngineError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf_limits import numbers
from edge_llama.files.gguf_text import GGUFArtifact

_ABORTED = 2
_MOST_TEXTS = 32  # of a batch; llama.cpp keeps a row of logits for each
_LEAST_TOKENS, _LOGIT_BYTES = 64, 1 << 24  # of a batch, unless a whole text is longer


class LlamaCppEmbedder:
    """Keeps the Protocol :class:`edge_llama.backends.base.TextEmbedder`."""

    def __init__(
        self, lib: Any, model: Any, artifact: GGUFArtifact, longest: int, threads: int, options: ContextOptions
    ) -> None:
        """For texts of up to ``longest`` tokens of ``model``, which must outlive this.

        OptionError if the memory does not suffice, EngineError if llama.cpp makes no such context.
        """
        self._lib = lib
        self._abort_flag = ctypes.cast(options.abort_data, ctypes.POINTER(ctypes.c_char))
        self._encodes = artifact.is_encoder
        self.longest = embedding_room.positions(longest, artifact)
        few = max(_LEAST_TOKENS, min(options.n_batch, _LOGIT_BYTES // (4 * artifact.n_vocab)))
        self.n_tokens = max(few, self.longest) if artifact.sees_whole_text else few
        # Of a cache for recurrent states every sequence takes a whole one.
        self.n_texts = _MOST_TEXTS if self._encodes or artifact.kv_values_per_token else 1
        self._check_memory(artifact, options)
        self._context: Any = lib.llama_init_from_model(model, self._params(threads, options))
        if not self._context:
            raise EngineError(
                f"{artifact.path}: llama.cpp cannot make a context to embed texts of {self.longest:,} tokens"
            )
        self._memory: Any = lib.llama_get_memory(self._context)
        self.n_embd = int(lib.llama_model_n_embd_out(model))
        self._batch = Batch(lib, self.n_tokens)
        self._begins_at = 0

    def _params(self, threads: int, options: ContextOptions) -> Any:
        n_ctx = max(self.longest, self.n_tokens)
        params = options.params(
            self._lib, n_ctx=n_ctx, n_batch=self.n_tokens, n_sequences=self.n_texts, threads=threads
        )
        params.embeddings = True
        params.pooling_type = self._lib.LLAMA_POOLING_TYPE_NONE
        return params

    def _check_memory(self, artifact: GGUFArtifact, options: ContextOptions) -> None:
        """The cache, and without flash attention every head's weights of each pair of tokens that meet in a batch."""
        cells = max(self.longest, self.n_tokens)
        heads = max(numbers(artifact.header, f"{artifact.architecture}.attention.head_count"), default=1)
        kv = FORMATS[options.kv_format]
        needed = artifact.kv_values_per_token * kv.block_bytes // kv.block_size * cells
        needed += 0 if options.flash_attention else 4 * heads * cells * self.n_tokens
        flash = "" if options.flash_attention else ", or turn on flash attention (--flash-attn on)"
        embedding_room.check_memory(artifact, self.longest, needed, embedding_room.CUT + flash)

    def states(self, texts: Sequence[Sequence[int]], *, continues: bool = False) -> NDArray[np.float32]:
        """See :meth:`edge_llama.backends.base.TextEmbedder.states`."""
        if self._abort_flag[0] != b"\0":
            raise AbortedError
        if not continues:
            self._begins_at = 0
            if self._memory:
                self._lib.llama_memory_clear(self._memory, False)
        count = sum(map(len, texts))
        run: Callable[[Any, Any], int] = self._lib.llama_encode if self._encodes else self._lib.llama_decode
        self._batch.clear()
        for number, text in enumerate(texts):  # the only one may begin elsewhere than at 0
            self._batch.add(number, self._begins_at, text, n_outputs=len(text))
        status = run(self._context, self._batch.filled())
        if status:
            if self._memory:
                self._lib.llama_memory_seq_rm(self._memory, 0, self._begins_at, -1)
            if status == _ABORTED:
                raise AbortedError
            raise EngineError(f"llama.cpp failed to embed {count:,} tokens, with status {status}")
        self._begins_at += len(texts[-1])
        pointer = self._lib.llama_get_embeddings(self._context)
        return np.ctypeslib.as_array(pointer, shape=(count, self.n_embd)).copy()

    def use_threads(self, count: int) -> None:
        """How many threads the next :meth:`states` uses."""
        self._lib.llama_set_n_threads(self._context, count, count)

    def close(self) -> None:
        """Free the context."""
        self._lib.llama_free(self._context)

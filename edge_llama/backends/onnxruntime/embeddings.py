"""Hidden states by ONNX Runtime, of graphs that give them, with a KV cache of its own: a running answer's is untouched.

The graph's own head is computed with each batch, for its last token alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends import embedding_room
from edge_llama.backends.base import AbortedError
from edge_llama.backends.onnxruntime.kv_cache import new_cache
from edge_llama.backends.onnxruntime.providers import why
from edge_llama.errors import EngineError
from edge_llama.files.onnx_text import HIDDEN_STATES, POSITIONS, OnnxArtifact
from edge_llama.host.memory import give_back


class OnnxEmbedder:
    """Keeps the Protocol :class:`edge_llama.backends.base.TextEmbedder`."""

    n_texts = 1
    """The graph takes the rows of one sequence at a time."""

    def __init__(self, artifact: OnnxArtifact, session: Any, options: Any, longest: int, n_tokens: int) -> None:
        """For texts of up to ``longest`` tokens, ``n_tokens`` of them at a time; ``options`` are ONNX Runtime's.

        OptionError if the memory does not suffice.
        """
        self._artifact, self._session, self._options = artifact, session, options
        self.longest = embedding_room.positions(longest, artifact)
        self.n_tokens = n_tokens
        self.n_embd = artifact.n_embd
        embedding_room.check_memory(artifact, self.longest, 4 * artifact.kv_values_per_token * self.longest)
        self._cache = new_cache(artifact, session, self.longest)
        self._length = 0
        self._mask, self._positions = np.ones(self.longest, np.int64), np.arange(self.longest, dtype=np.int64)
        self._ids = np.zeros(n_tokens, np.int64)
        self._has_positions = any(node.name == POSITIONS for node in session.get_inputs())
        self._binding: Any = session.io_binding()
        self._cache.attach(self._binding)

    def states(self, texts: Sequence[Sequence[int]], *, continues: bool = False) -> NDArray[np.float32]:
        """See :meth:`edge_llama.backends.base.TextEmbedder.states`."""
        (text,) = texts
        if not continues:
            self._cache.cut(self._length, 0)
            self._length = 0
        count, total = len(text), self._length + len(text)
        self._ids[:count] = text
        binding, names = self._binding, self._artifact.names
        binding.bind_input(names.ids, "cpu", 0, np.int64, (1, count), self._ids.ctypes.data)
        binding.bind_input(names.mask, "cpu", 0, np.int64, (1, total), self._mask.ctypes.data)
        if self._has_positions:
            address = self._positions[self._length :].ctypes.data
            binding.bind_input(POSITIONS, "cpu", 0, np.int64, (1, count), address)
        states = np.empty((1, count, self.n_embd), np.float32)
        binding.bind_output(HIDDEN_STATES, "cpu", 0, np.float32, states.shape, states.ctypes.data)
        self._cache.bind(binding, self._length, count)
        self._run()
        self._cache.appended()
        self._length = total
        row: NDArray[np.float32] = states[0]
        return row

    def _run(self) -> None:
        if self._options.terminate:
            raise AbortedError
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # its errors share no class but this
            if self._options.terminate:
                raise AbortedError from error
            raise EngineError(f"ONNX Runtime failed to embed at position {self._length:,}: {why(error)}") from error
        give_back()

"""What ONNX Runtime's text towers have in common: one sequence, its length, and how a run is stopped."""

from collections.abc import Sequence
from typing import Any

from edge_llama.backends.onnxruntime.providers import runtime
from edge_llama.sampling.numpy_sampler import NumpySampler
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.sampler import Sampler


class OneSequenceTower:
    """Of the Protocol :class:`edge_llama.backends.base.TextTower` what graphs that take one sequence have in common."""

    n_sequences = 1

    def __init__(self, n_ctx: int, n_embd: int) -> None:
        """``n_ctx`` positions at most, embeddings of ``n_embd``."""
        self._n_ctx, self._n_embd, self._length = n_ctx, n_embd, 0
        library = runtime()
        self._short: Any = library.RunOptions()
        self._long: Any = library.RunOptions()
        for options in (self._short, self._long):
            options.log_severity_level = 4
        # What a prompt takes beyond the cache is given back after it; a token's is kept for the next.
        self._long.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    @property
    def n_ctx(self) -> int:
        """Positions that a text may have."""
        return self._n_ctx

    @property
    def n_cells(self) -> int:
        """The same: there is one sequence."""
        return self._n_ctx

    @property
    def n_embd(self) -> int:
        """Width of an embedding."""
        return self._n_embd

    def length(self, sequence: int) -> int:  # noqa: ARG002 - there is one
        """Positions that are there."""
        return self._length

    def share(self, source: int, target: int, length: int) -> None:
        """There is one sequence: nothing to share."""
        raise AssertionError(source, target, length)

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        """ONNX Runtime has none: our own."""
        return NumpySampler(params, history)

    def use_threads(self, count: int) -> None:
        """ONNX Runtime's number of threads is fixed when the tower is opened."""

    def abort(self) -> None:
        """Stop the ``decode`` that is running, within a graph node's time, and refuse others until ``resume``.

        What is compiled for a device runs to its end.
        """
        self._short.terminate = self._long.terminate = True

    def resume(self) -> None:
        """Take work again after ``abort``."""
        self._short.terminate = self._long.terminate = False

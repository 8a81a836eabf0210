"""llama.cpp's own sampler chain. Its grammar sampler is not used: it ends the process on what it doesn't expect."""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.sampler import LogitsRow

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""


class NativeSampler:
    """Chooses tokens by a context's logits. Keeps the Protocol :class:`edge_llama.sampling.sampler.Sampler`."""

    def __init__(self, lib: Any, context: Any, n_vocab: int, params: SamplingParams, history: Sequence[int]) -> None:
        """A chain that has seen the tokens of ``history``; ``close`` frees it."""
        self._lib = lib
        self._context = context
        # The chain keeps a place for each token of the window: no more than can ever come.
        window = min(params.penalty_window, lib.llama_n_ctx(context)) if params.is_penalizing else 0
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for link in links(lib, n_vocab, params, window):
            lib.llama_sampler_chain_add(self._chain, link)
        for token in history[-window:] if window else ():
            lib.llama_sampler_accept(self._chain, token)

    def sample(self, row: LogitsRow) -> int:
        """A token by the row's logits, as they are in the context now."""
        if row.index < 0:
            return self._sample_kept(row.values)
        return int(self._lib.llama_sampler_sample(self._chain, self._context, row.index))

    def _sample_kept(self, logits: NDArray[np.float32]) -> int:
        """What ``llama_sampler_sample`` does, with logits that the context no longer has and can't be given."""
        data = np.zeros(len(logits), _CANDIDATE)
        data["id"] = np.arange(len(logits))
        data["logit"] = logits
        pointer = data.ctypes.data_as(ctypes.POINTER(self._lib.llama_token_data))
        candidates = self._lib.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)
        self._lib.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        token = int(candidates.data[candidates.selected].id)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Have the chain remember a token."""
        self._lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the chain."""
        self._lib.llama_sampler_free(self._chain)


def links(lib: Any, n_vocab: int, params: SamplingParams, window: int) -> Iterator[Any]:
    """The steps in llama.cpp's order, each a ``llama_sampler`` that its chain will own."""
    if params.logit_bias:
        biases = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias.items())
        yield lib.llama_sampler_init_logit_bias(n_vocab, len(biases), biases)
    if window:
        yield lib.llama_sampler_init_penalties(
            n_vocab, window, params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        )
    if params.temperature == 0:
        yield lib.llama_sampler_init_greedy()
        return
    if params.top_k:
        yield lib.llama_sampler_init_top_k(params.top_k)
    yield lib.llama_sampler_init_top_p(params.top_p, 1)
    yield lib.llama_sampler_init_min_p(params.min_p, 1)
    yield lib.llama_sampler_init_temp(params.temperature)
    yield lib.llama_sampler_init_dist(params.seed if params.seed is not None else _drawn_seed())


def _drawn_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])

"""The first token after a cache was loaded: llama.cpp gives no way to put logits back into its context."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray


class AfterLoad:
    """A sampler whose first token is chosen by ``logits``, and the others by ``sampler``, which has a ``_chain``.

    The logits are read when the token is chosen: what masks them in place before is seen.
    """

    def __init__(self, lib: Any, sampler: Any, logits: NDArray[np.float32]) -> None:
        self._lib = lib
        self._sampler = sampler
        self._logits: NDArray[np.float32] | None = logits

    def sample(self) -> int:
        """A token; the same as the chain would choose if the context had the logits."""
        if self._logits is None:
            return int(self._sampler.sample())
        logits, self._logits = self._logits, None
        return self._choose(logits)

    def close(self) -> None:
        """Give back the engine's memory."""
        self._sampler.close()

    def _choose(self, logits: NDArray[np.float32]) -> int:
        """What ``llama_sampler_sample`` does, with these logits."""
        lib, chain = self._lib, self._sampler._chain
        data = np.zeros(len(logits), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        data["id"] = np.arange(len(logits))
        data["logit"] = logits
        pointer = data.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        candidates = lib.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)
        lib.llama_sampler_apply(chain, ctypes.byref(candidates))
        token = int(candidates.data[candidates.selected].id)
        lib.llama_sampler_accept(chain, token)
        return token

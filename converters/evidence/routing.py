"""How families choose experts, and what weighs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.evidence.stages import Floats
from converters.evidence.states import Numbers


def _sigmoid(logits: Floats) -> Floats:
    found: Floats = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return found


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: Floats = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


@dataclass(frozen=True, slots=True)
class Mixture:
    """How a family mixes: where in a layer its parts are (``shared``: an expert for all tokens), and what weighs them.

    ``scores`` makes weights of the best logits; by them what an expert is given is weighed, or what it gives.
    """

    router: str
    experts: str
    scores: Callable[[Floats], Floats]
    shared: str = ""
    weighs_input: bool = False


MIXTURES: Mapping[str, Mixture] = {
    "llama4": Mixture(
        "feed_forward.router", "feed_forward.experts", _sigmoid, "feed_forward.shared_expert", weighs_input=True
    ),
    "mixtral": Mixture("block_sparse_moe.gate", "block_sparse_moe.experts", _softmax),
}
"""By ``Architecture.name``: as transformers' ``modeling_llama4.py`` and ``modeling_mixtral.py`` have it."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which experts the router chose, int64 ``(tokens, used)``, and their weights, float32 of the same shape."""

    experts: NDArray[np.int64]
    weights: Floats

    def of(self, expert: int) -> tuple[Numbers, Floats]:
        """The tokens that chose ``expert``, and its weight for each, ``(n, 1)``."""
        tokens, slots = np.nonzero(self.experts == expert)
        return tokens, self.weights[tokens, slots][:, None]

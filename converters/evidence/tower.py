"""A checkpoint's text tower as parts that run one by one: its tensors by name, and what writes graphs of them.

The graphs are those that ONNX folders get (:mod:`converters.targets.onnx`), in float32 whatever the checkpoint is
stored as.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from converters.architectures import for_config
from converters.checkpoint import Checkpoint, Tensor
from converters.evidence.routing import MIXTURES, Mixture
from converters.evidence.stages import Floats, GivenWeights, Operators
from converters.targets.onnx import check_library
from converters.targets.onnx.llama import LlamaGraph
from converters.targets.onnx.llama4 import Llama4Graph
from edge_llama.errors import CheckpointError, OptionError
from quant.onnx_recipe import OnnxRecipe

_GRAPHS: dict[str, type[LlamaGraph]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "smollm3", "gemma3"), LlamaGraph),
    "llama4": Llama4Graph,
}
"""By ``Architecture.name``."""
_RECIPE = OnnxRecipe("f32")

Bounds = Sequence[tuple[int, int]]
"""Of each chunk, the rows that are its."""


class OnInput(Protocol):
    """Is told what a matrix multiplies."""

    def __call__(self, tensor: str, rows: Floats, expert: int | None) -> object:
        """``rows``, ``(n, columns)``, of the matrix ``tensor`` (GGUF's name), or of one ``expert`` in it.

        Only valid during the call.
        """


class OnLayer(Protocol):
    """Is told what a layer does."""

    def __call__(self, layer: int, chunk: int, before: Floats, after: Floats) -> object:
        """Its input and its output for a chunk, ``(n, n_embd)`` each. Only valid during the call."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told what of the layers that run; ``on_share`` of how much of a layer is done, from 0 to 1."""

    on_input: OnInput | None = None
    on_layer: OnLayer | None = None
    on_share: Callable[[float], object] | None = None


class Tower:
    """The text tower of a checkpoint, for chunks of at most ``longest`` tokens.

    CheckpointError if the checkpoint is not whole, or its family's layers can't be run so; OptionError if its context
    is shorter than ``longest``. No weight is read yet.
    """

    def __init__(self, checkpoint: Checkpoint, *, threads: int, longest: int) -> None:
        check_library()
        architecture = for_config(checkpoint)
        if architecture.name not in _GRAPHS:
            raise CheckpointError(
                f"{checkpoint.path}: layers of a {architecture.called} can't be run one by one",
                remedy="convert it to GGUF, and give that file",
            )
        hp = architecture.hyperparameters(checkpoint)
        if longest > hp.n_ctx:
            raise OptionError(
                f"a chunk has {longest:,} tokens, but {checkpoint.path} has a context of {hp.n_ctx:,}",
                remedy="give shorter chunks",
            )
        self.path, self.threads = checkpoint.path, threads
        self.tensors = architecture.tower_tensors(checkpoint)
        self.hp = replace(hp, n_ctx=longest)  # tables of positions need not be longer
        self.names = {place.hf: place.gguf for place in architecture.places_in(checkpoint).values()}
        self._graph = _GRAPHS[architecture.name]
        self._mixture = MIXTURES.get(architecture.name)

    def writer(self, tensors: Mapping[str, Tensor] | None = None) -> tuple[LlamaGraph, GivenWeights]:
        """What writes graphs of this family, and the graph that it writes; of ``tensors``, by default all."""
        graph = GivenWeights("part")
        ops, found = Operators(graph, self.hp.norm_eps), self.tensors if tensors is None else tensors
        return self._graph(self.hp, found, _RECIPE, gives_states=True, ops=ops), graph

    def mixture(self, layer: int) -> Mixture | None:
        """How experts are chosen in ``layer``; None where it has none."""
        found = self._mixture
        return found if found and f"model.layers.{layer}.{found.router}.weight" in self.tensors else None

    def check(self, states: Floats, layer: int) -> None:
        """CheckpointError for states that are NaN or infinite."""
        if not np.isfinite(states).all():
            raise CheckpointError(
                f"{self.path}: layer {layer}: what it gives is NaN or infinite in float32",
                remedy="it is damaged: download or convert it again",
            )

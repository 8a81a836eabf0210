"""The graph of Llama 4's text tower for NPUs: experts, and heads of neighbouring pairs.

All experts compute every row. What each is given is multiplied by the router's score for it, and by a gate that is 1
for the best and 0 for the others: NPUs choose no weights by what they compute. Pictures come as rows of embeddings.
"""

import numpy as np
import onnx_ir as ir

from converters.architectures.hyperparameters import Hyperparameters
from converters.checkpoint import Checkpoint
from converters.targets.onnx.integer_weights import RowForm, rest, rounded
from converters.targets.onnx.static_llama import StaticLlama
from converters.tensors.split import matrix
from edge_llama.errors import CheckpointError

SHARPNESS = 1e5
"""By how much less than the best a router's logit must be to be none: its inverse, far below a step of 16 bits."""
ROUTER = {".router.distance": (-2.0, 0.0), ".router.open": (-1.0, 1.0), ".router.gate": (0.0, 1.0)}
"""Ends of values' names, and their ranges, which are known: what lies below is no expert's."""


def longest_context(hp: Hyperparameters) -> int | None:
    """Positions before queries depend on their places, or attention comes in chunks; None: neither is ever so."""
    limits = [hp.chunk_size if "chunked_attention" in hp.layer_types else None]
    limits += [int(hp.floor_scale) - 1 if hp.has_temperature else None]
    return min((limit for limit in limits if limit is not None), default=None)


def check_context(checkpoint: Checkpoint, hp: Hyperparameters, n_ctx: int) -> None:
    """CheckpointError for a context beyond :func:`longest_context`."""
    most = longest_context(hp)
    if most is not None and n_ctx > most:
        raise CheckpointError(
            f"{checkpoint.path}: beyond {most:,} positions its attention is another, for which there is no graph in "
            f"integers, and the context is {n_ctx:,}",
            remedy=f"add --n-ctx {most} or less",
        )


class StaticLlama4(StaticLlama):
    """Beside :class:`StaticLlama`: experts, and RoPE of neighbouring pairs with a norm after it."""

    def _begin(self) -> None:
        super()._begin()
        self._one = self.graph.constant("router.one", 1.0)
        self._sharpness = self.graph.constant("router.sharpness", SHARPNESS)
        self._unit = self.graph.constant("heads.unit", np.ones(self.hp.head_dim, np.float32))

    def _placed(self, x: ir.Value, layer: int, part: str) -> ir.Value:
        """All real parts, then all imaginary ones: for products of queries with keys the order is all the same."""
        name = f"layers.{layer}.attention.{part}"
        if not self.hp.rope_layers[layer]:
            return x
        real = self._slice(x, f"{name}.real", first=0, last=self.hp.head_dim, axis=3, step=2)
        imaginary = self._slice(x, f"{name}.imaginary", first=1, last=self.hp.head_dim, axis=3, step=2)
        rotated = self._rotated(real, imaginary, name)
        return self._normed(rotated, self._unit, f"{name}.norm") if self.hp.use_qk_norm else rotated

    def _feed_forward(self, x: ir.Value, layer: int) -> ir.Value:
        name, source = f"layers.{layer}.mlp", f"model.layers.{layer}.feed_forward"
        if not self.hp.has_experts(layer):
            return self._gated(x, self._matrices(source), name)
        shared = self._gated(x, self._matrices(f"{source}.shared_expert"), f"{name}.shared")
        experts = [self._tensors[f"{source}.experts.{part}_proj.weight"] for part in ("gate", "up", "down")]
        weights, total = self._weights(x, source, name), shared
        for expert in range(self.hp.n_expert):
            at = f"{name}.expert_{expert}"
            weight = self._slice(weights, f"{at}.weight", first=expert, last=expert + 1, axis=2)
            given = self.graph.op("Mul", x, weight, name=f"{at}.input")
            output = self._gated(given, [matrix(tensor, expert) for tensor in experts], at)
            total = self.graph.op("Add", total, output, name=f"{at}.sum")
        return total

    def _weights(self, x: ir.Value, source: str, name: str) -> ir.Value:
        """The router's score for the best expert of each row, and 0 for the others: (1, rows, experts)."""
        graph, router = self.graph, f"{name}.router"
        table = self._tensors[f"{source}.router.weight"]
        # Two experts may be nearly as good, and NPUs have no weights of 16 bits: twice 8 nearly are.
        terms = (
            self._product(x, term, f"{router}.{which}", f"{router}.{which}", RowForm(8))
            for term, which in ((rounded(table), "coarse"), (rest(table), "rest"))
        )
        logits = graph.op("Add", *terms, name=f"{router}.logits")
        best = graph.op("ReduceMax", logits, graph.constant("router.axes", [-1]), name=f"{router}.best", keepdims=1)
        below = graph.op("Sub", logits, best, name=f"{router}.below")
        below = graph.op("Mul", below, self._sharpness, name=f"{router}.distance")
        gate = graph.op("Relu", graph.op("Add", below, self._one, name=f"{router}.open"), name=f"{router}.gate")
        scores = graph.op("Sigmoid", logits, name=f"{router}.scores")
        return graph.op("Mul", scores, gate, name=f"{router}.weights")

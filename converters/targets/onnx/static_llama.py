"""The graph of a Llama for NPUs: every shape is fixed, and it runs in integers.

There are two, which share their weights: one reads a window of a prompt, one a token. Both take rows of embeddings,
the cosines and sines of their positions, a mask that is added to scores, and the keys and values of earlier positions;
both give the last row's logits and the new keys and values, which whoever runs them puts with the others. So does
onnxruntime-genai's ``decoder-pipeline``, whose names these are. Keys lie with their positions in the last dimension.

KV heads are the batch of a product, the queries that share one its rows: no value is repeated, and none has more than
four dimensions. Position 0 is a constant (:mod:`converters.targets.onnx.first_position`), the first column of the mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from converters.architectures.hyperparameters import Hyperparameters
from converters.checkpoint import Tensor
from converters.targets.onnx.graph import Graph
from converters.targets.onnx.integer_weights import RowForm
from converters.targets.onnx.standard import StandardOps
from edge_llama.files.formats import F32
from edge_llama.files.onnx_static import COS, MASK, SIN, handed_on
from quant.ranges import FirstPosition


@dataclass(frozen=True, slots=True)
class Shape:
    """How many ``rows`` a graph takes, and how many positions it sees: ``context``, its own rows included."""

    rows: int
    context: int
    gives_all: bool = False
    """The logits of all rows, not of the last alone."""

    @property
    def past(self) -> int:
        """Earlier positions that it takes."""
        return self.context - self.rows


class StaticLlama:
    """The text tower with the hyperparameters ``hp``, of which ``tensors`` has Hugging Face's names.

    ``form`` is that of all matrices, but for the one that gives logits, which has 8 bits. ``norm_is_one``: RMS norms
    are an operator (opset 23), which OpenVINO has not; else they are taken apart. ``layers``: those that this graph
    has, None for all; one that begins later takes what the graph before gives.
    """

    def __init__(
        self,
        hp: Hyperparameters,
        tensors: Mapping[str, Tensor],
        graph: Graph,
        shape: Shape,
        form: RowForm,
        first: FirstPosition | None,
        *,
        norm_is_one: bool,
        layers: range | None = None,
    ) -> None:
        self.hp, self.graph, self.shape = hp, graph, shape
        self._layers = range(hp.n_layer) if layers is None else layers
        self._tensors, self._form, self._first, self._norm_is_one = tensors, form, first, norm_is_one

    @property
    def columns(self) -> int:
        """Of the mask: position 0, earlier ones, its own."""
        return self.shape.context + (self._first is not None)

    def write(self) -> Graph:
        """The whole graph."""
        hp, graph, rows = self.hp, self.graph, self.shape.rows
        self._begin()
        x = graph.input(handed_on(self._layers.start), (1, rows, hp.n_embd))
        self._mask = graph.input(MASK, (1, 1, rows, self.columns))
        cos, sin = (graph.input(name, (1, 1, rows, hp.head_dim // 2)) for name in (COS, SIN))
        self._turns = cos, sin
        pasts = [self._past(layer) for layer in self._layers]
        for layer, past in zip(self._layers, pasts, strict=True):
            source, name = f"model.layers.{layer}", f"layers.{layer}"
            h = self._norm(x, f"{source}.input_layernorm", f"{name}.norm1")
            x = graph.op("Add", x, self._attention(h, layer, past), name=f"{name}.attention.residual")
            h = self._norm(x, f"{source}.post_attention_layernorm", f"{name}.norm2")
            x = graph.op("Add", x, self._feed_forward(h, layer), name=f"{name}.mlp.residual")
        if self._layers.stop < hp.n_layer:
            graph.output(x, (1, rows, hp.n_embd))
            return graph
        if not self.shape.gives_all and rows > 1:
            x = self._slice(x, "last", first=rows - 1, last=rows, axis=1)
        h = self._norm(x, "model.norm", "norm")
        head = "model.embed_tokens" if hp.tied else "lm_head"
        logits = self._product(h, self._tensors[f"{head}.weight"], "head", "logits", RowForm(8))
        graph.output(logits, (1, rows if self.shape.gives_all else 1, hp.n_vocab))
        return graph

    def _begin(self) -> None:
        """Numbers that all layers share."""
        hp, graph = self.hp, self.graph
        scale = hp.head_dim**-0.5 if hp.attention_scale is None else hp.attention_scale
        self._scale = graph.constant("attention.scale", scale)
        self._epsilon = None if self._norm_is_one else graph.constant("norm.epsilon", hp.norm_eps)

    def _past(self, layer: int) -> tuple[ir.Value, ir.Value]:
        heads, width, past = self.hp.n_head_kv, self.hp.head_dim, self.shape.past
        keys = self.graph.kept_input(f"past_keys_{layer}", (heads, 1, width, past), f"layers.{layer}.keys")
        values = self.graph.kept_input(f"past_values_{layer}", (heads, 1, past, width), f"layers.{layer}.values")
        return keys, values

    def _attention(self, x: ir.Value, layer: int, past: tuple[ir.Value, ir.Value]) -> ir.Value:
        hp, graph, rows, name = self.hp, self.graph, self.shape.rows, f"layers.{layer}.attention"
        group, width = hp.n_head // hp.n_head_kv, hp.head_dim
        q = self._placed(self._heads(x, layer, "q", hp.n_head), layer, "q")
        k = self._placed(self._heads(x, layer, "k", hp.n_head_kv), layer, "k")
        v = self._heads(x, layer, "v", hp.n_head_kv)
        k = graph.op("Transpose", k, name=f"{name}.keys.new", perm=[1, 0, 3, 2])
        v = graph.op("Transpose", v, name=f"{name}.values.new", perm=[1, 0, 2, 3])
        keys = self._all(past[0], k, layer, "keys", 3)
        values = self._all(past[1], v, layer, "values", 2)
        q = graph.op("Mul", q, self._scale, name=f"{name}.q.scaled")
        q = self._reshape(q, f"{name}.q.groups", hp.n_head_kv, 1, group * rows, width)
        scores = graph.op("MatMul", q, keys, name=f"{name}.scores")
        scores = self._reshape(scores, f"{name}.scores.by_row", hp.n_head_kv, group, rows, self.columns)
        scores = graph.op("Add", scores, self._mask, name=f"{name}.masked")
        weights = graph.op("Softmax", scores, name=f"{name}.weights", axis=-1)
        weights = self._reshape(weights, f"{name}.weights.groups", hp.n_head_kv, 1, group * rows, self.columns)
        mixed = graph.op("MatMul", weights, values, name=f"{name}.mixed")
        mixed = self._reshape(mixed, f"{name}.mixed.by_head", 1, hp.n_head, rows, width)
        mixed = graph.op("Transpose", mixed, name=f"{name}.mixed.in_rows", perm=[0, 2, 1, 3])
        mixed = self._reshape(mixed, f"{name}.mixed.joined", 1, rows, hp.q)
        return self._linear(mixed, f"model.layers.{layer}.self_attn.o_proj", f"{name}.o")

    def _heads(self, x: ir.Value, layer: int, part: str, count: int) -> ir.Value:
        """Queries, keys or values by head, (1, heads, rows, head_dim), with the norm that some families have there."""
        name, source = f"layers.{layer}.attention.{part}", f"model.layers.{layer}.self_attn"
        x = self._linear(x, f"{source}.{part}_proj", name)
        x = self._reshape(x, f"{name}.split", 1, self.shape.rows, count, self.hp.head_dim)
        if self.hp.qk_norm and part != "v":
            x = self._norm(x, f"{source}.{part}_norm", f"{name}.norm")
        return self.graph.op("Transpose", x, name=f"{name}.heads", perm=[0, 2, 1, 3])

    def _placed(self, x: ir.Value, layer: int, part: str) -> ir.Value:
        """After RoPE, by halves of a head."""
        half, name = self.hp.head_dim // 2, f"layers.{layer}.attention.{part}"
        if not self.hp.has_rope(layer):
            return x
        real = self._slice(x, f"{name}.real", first=0, last=half, axis=3)
        imaginary = self._slice(x, f"{name}.imaginary", first=half, last=2 * half, axis=3)
        return self._rotated(real, imaginary, name)

    def _rotated(self, real: ir.Value, imaginary: ir.Value, name: str) -> ir.Value:
        """The products of complex numbers, real parts before imaginary ones."""
        parts = StandardOps(self.graph, self.hp.norm_eps).rotated(real, imaginary, self._turns, name)
        return self.graph.op("Concat", *parts, name=f"{name}.rotated", axis=3)

    def _all(self, past: ir.Value, new: ir.Value, layer: int, part: str, axis: int) -> ir.Value:
        """Keys or values of all positions: the first, which is constant, those before, and the new ones."""
        hp, rows, of = self.hp, self.shape.rows, f"layers.{layer}.{part}"
        sizes = [hp.n_head_kv, 1, rows, rows]
        sizes[5 - axis] = hp.head_dim
        new = self.graph.kept_output(new, f"present_{part}_{layer}", sizes, of)
        found = [past, new]
        if self._first is not None:
            found.insert(0, self.graph.kept_constant(f"{of}.first", self._first.column(layer, part), of))
        return self.graph.op("Concat", *found, name=f"{of}.all", axis=axis)

    def _feed_forward(self, x: ir.Value, layer: int) -> ir.Value:
        return self._gated(x, self._matrices(f"model.layers.{layer}.mlp"), f"layers.{layer}.mlp")

    def _matrices(self, source: str) -> list[Tensor]:
        return [self._tensors[f"{source}.{part}_proj.weight"] for part in ("gate", "up", "down")]

    def _gated(self, x: ir.Value, matrices: Sequence[Tensor], name: str) -> ir.Value:
        """``down(silu(gate(x)) * up(x))``."""
        graph, down = self.graph, matrices[2]
        gate, up = (
            self._product(x, table, f"{name}.{part}", f"{name}.{part}", self._form)
            for part, table in zip(("gate", "up"), matrices[:2], strict=True)
        )
        silu = graph.op("Mul", gate, graph.op("Sigmoid", gate, name=f"{name}.sigmoid"), name=f"{name}.silu")
        gated = graph.op("Mul", silu, up, name=f"{name}.gated")
        return self._product(gated, down, f"{name}.down", f"{name}.down", self._form)

    def _linear(self, x: ir.Value, source: str, name: str) -> ir.Value:
        bias = self._tensors.get(f"{source}.bias")
        matrix = self._tensors[f"{source}.weight"]
        if bias is None:
            return self._product(x, matrix, name, name, self._form)
        product = self._product(x, matrix, name, f"{name}.product", self._form)
        return self.graph.op("Add", product, self.graph.weight(f"{name}.bias", bias, F32), name=name)

    def _product(self, x: ir.Value, matrix: Tensor, name: str, output: str, form: RowForm) -> ir.Value:
        return self.graph.op("MatMul", x, self.graph.matrix(f"{name}.weight", matrix, form), name=output)

    def _norm(self, x: ir.Value, source: str, name: str) -> ir.Value:
        return self._normed(x, self.graph.weight(f"{name}.weight", self._tensors[f"{source}.weight"], F32), name)

    def _normed(self, x: ir.Value, gamma: ir.Value, name: str) -> ir.Value:
        """RMS norm; what it is called does not depend on how it is written."""
        graph = self.graph
        if self._epsilon is None:
            return graph.op("RMSNormalization", x, gamma, name=name, axis=-1, epsilon=self.hp.norm_eps)
        squares = graph.op("Mul", x, x, name=f"{name}.squares")
        mean = graph.op("ReduceMean", squares, graph.constant("norm.axes", [-1]), name=f"{name}.mean", keepdims=1)
        mean = graph.op("Add", mean, self._epsilon, name=f"{name}.above_zero")
        root = graph.op("Sqrt", mean, name=f"{name}.root")
        return graph.op("Mul", graph.op("Div", x, root, name=f"{name}.unit"), gamma, name=name)

    def _slice(self, x: ir.Value, name: str, *, first: int, last: int, axis: int, step: int = 1) -> ir.Value:
        bounds = (self.graph.constant(f"numbers.{at}", [at]) for at in (first, last, axis, step))
        return self.graph.op("Slice", x, *bounds, name=name)

    def _reshape(self, x: ir.Value, name: str, *shape: int) -> ir.Value:
        constant = self.graph.constant(f"shapes.{'_'.join(map(str, shape))}", shape)
        return self.graph.op("Reshape", x, constant, name=name)

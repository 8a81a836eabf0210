"""The graph of Llama 4's text tower: it reads as transformers' ``modeling_llama4.py`` computes."""

import numpy as np
import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.onnx.graph import FLOAT, ValueInfo
from converters.targets.onnx.llama import LlamaGraph, rope_factors
from converters.targets.onnx.operator_set import Experts
from converters.targets.onnx.ops import NEVER, sizes
from converters.tensors.split import alternating, matrix
from edge_llama.files.onnx_text import IMAGE_FEATURES
from quant.nbits import Grid

_EXPERT_ROLES = ("ffn_gate", "ffn_up", "ffn_down")


class Llama4Graph(LlamaGraph):
    """Beside :class:`LlamaGraph`: experts, attention in chunks, layers without positions, and images."""

    def _embedded(self, ids: ir.Value) -> ir.Value:
        """The rows of the ids; in place of negative ones, in order, rows that are given."""
        graph, ops, hp = self.graph, self.ops, self.hp
        features = graph.optional_input(
            IMAGE_FEATURES, ("image_positions", hp.n_embd), np.zeros((0, hp.n_embd), np.float32)
        )
        zero = graph.constant("images.zero", np.array(0))
        rows = super()._embedded(ops.op("Max", ids, zero, name="images.ids"))
        is_image = ops.op("Less", ids, zero, name="images.is_image")
        places = ops.op("NonZero", is_image, name="images.places")
        places = ops.op("Transpose", places, name="images.places_in_rows", perm=[1, 0])
        info = ValueInfo(("batch", "sequence", hp.n_embd))
        return graph.op("ScatterND", rows, places, features, name="embedded", info=info)

    def _begin(self) -> None:
        self._tables = self._angles(self.hp.rope, "rotary", rope_factors(self._tensors))
        self._temperature = self._scales(self.ops.positions) if self.hp.has_temperature else None
        self._chunks = None
        if "chunked_attention" in self.hp.layer_types and (self.hp.chunk_size or 0) < self.hp.n_ctx:
            self._chunks = self._chunk_bias(self.ops.positions, self.ops.all_positions)

    def _scales(self, positions: ir.Value) -> ir.Value:
        """By what queries without positions are multiplied, ``(sequence, 1)``: the further on, the sharper."""
        graph, ops = self.graph, self.ops
        one = graph.constant("temperature.one", 1.0)
        x = ops.op("Cast", positions, name="temperature.at", to=int(FLOAT))
        x = ops.op("Add", x, one, name="temperature.number")
        x = ops.op("Div", x, graph.constant("temperature.floor_scale", self.hp.floor_scale), name="temperature.steps")
        x = ops.op("Floor", x, name="temperature.floor")
        x = ops.op("Log", ops.op("Add", x, one, name="temperature.plus_one"), name="temperature.log")
        x = ops.op("Mul", x, graph.constant("temperature.scale", self.hp.attn_scale), name="temperature.scaled")
        return ops.reshape(ops.op("Add", x, one, name="temperature.row"), "temperature", -1, 1)

    def _chunk_bias(self, queries: ir.Value, keys: ir.Value) -> ir.Value:
        """``(1, 1, sequence, total)``: a query sees no key of an earlier chunk."""
        graph, ops = self.graph, self.ops
        size = graph.constant("chunks.size", np.array(self.hp.chunk_size))
        rows = ops.reshape(ops.op("Div", queries, size, name="chunks.query"), "chunks.query_column", 1, 1, -1, 1)
        columns = ops.reshape(ops.op("Div", keys, size, name="chunks.key"), "chunks.key_row", 1, 1, 1, -1)
        is_earlier = ops.op("Less", columns, rows, name="chunks.is_earlier")
        never, zero = graph.constant("chunks.never", NEVER), graph.constant("chunks.nothing", 0.0)
        return ops.op("Where", is_earlier, never, zero, name="chunks.bias")

    def _attention(self, x: ir.Value, layer: int, past: tuple[ir.Value, ir.Value]) -> ir.Value:
        hp = self.hp
        name, source = f"layers.{layer}.attention", f"model.layers.{layer}.self_attn"
        q, k, v = (self.linear(x, f"{source}.{part}_proj", f"attn_{part}", f"{name}.{part}", layer) for part in "qkv")
        has_positions = hp.rope_layers[layer]
        if has_positions:
            q = self._placed(q, hp.n_head, f"{name}.q")
            k = self._placed(k, hp.n_head_kv, f"{name}.k")
        elif self._temperature is not None:
            info = ValueInfo(("batch", "sequence", hp.n_head * hp.head_dim))
            q = self.graph.op("Mul", q, self._temperature, name=f"{name}.q.sharpened", info=info)
        bias = self._chunks if hp.layer_types[layer] == "chunked_attention" else None
        return self._mixed((q, k, v), layer, past, bias=bias)

    def _placed(self, x: ir.Value, heads: int, name: str) -> ir.Value:
        """Queries or keys after RoPE and their norm."""
        rotated = self.ops.rope(x, self._tables, heads, self.hp.head_dim, f"{name}.turned")
        return self.ops.head_norm(rotated, heads, self.hp.head_dim, f"{name}.norm") if self.hp.use_qk_norm else rotated

    def _feed_forward(self, x: ir.Value, layer: int) -> ir.Value:
        name, source = f"layers.{layer}.feed_forward", f"model.layers.{layer}.feed_forward"
        if not self.hp.has_experts(layer):
            return self.mlp(x, source, name, layer)
        shared = self.mlp(x, f"{source}.shared_expert", f"{name}.shared_expert", layer)
        info = ValueInfo(sizes(x))
        return self.graph.op("Add", self._routed(x, layer), shared, name=name, info=info)

    def _routed(self, x: ir.Value, layer: int) -> ir.Value:
        """What the experts that the router chooses for each row make of it, times the router's score for them."""
        name, source = f"layers.{layer}.feed_forward", f"model.layers.{layer}.feed_forward"
        hp, ops = self.hp, self.ops
        rows = ops.reshape(x, f"{name}.rows", -1, hp.n_embd, info=ValueInfo((f"{name}.count", hp.n_embd)))
        logits = self.linear(rows, f"{source}.router", "router", f"{name}.router", layer)
        used = self.graph.constant(f"{name}.router.used", [self.hp.n_expert_used])
        best, chosen = self.graph.ops(
            "TopK", logits, used, names=(f"{name}.router.best", f"{name}.router.chosen"), axis=-1
        )
        scores = ops.op("Sigmoid", best, name=f"{name}.router.scores")
        experts = [self._tensors[f"{source}.experts.{part}_proj.weight"] for part in ("gate", "up", "down")]
        form = self._experts_form(experts)
        mixture = ops.mixture
        if form is not None and mixture is not None:
            weighed = self.graph.op(
                "Mul", rows, scores, name=f"{name}.weighed", info=ValueInfo((f"{name}.count", hp.n_embd))
            )
            gate_up = alternating(*experts[:2]).renamed(f"{source}.experts.gate_up_proj.weight")
            outputs = mixture(weighed, logits, Experts(gate_up, experts[2], form), f"{name}.experts")
        else:
            outputs = self._each_expert(rows, chosen, scores, experts, f"{name}.experts")
        return ops.reshape_like(outputs, x, f"{name}.routed", hp.n_embd)

    def _experts_form(self, experts: list[Tensor]) -> Grid | None:
        """The form of all matrices, if one operator can take them."""
        forms = {self._form(expert, role) for expert, role in zip(experts, _EXPERT_ROLES, strict=True)}
        form = forms.pop()
        is_one = not forms and experts[0].format is experts[1].format and self.hp.n_expert_used == 1
        return form if is_one and isinstance(form, Grid) and not form.has_offsets else None

    def _each_expert(
        self, rows: ir.Value, chosen: ir.Value, scores: ir.Value, experts: list[Tensor], name: str
    ) -> ir.Value:
        """Expert by expert, those rows that are its; one that nobody chose reads none of its weights."""
        graph, ops, info = self.graph, self.ops, ValueInfo(sizes(rows))
        total = graph.op("Mul", rows, graph.constant(f"{name}.nothing", 0.0), name=f"{name}.zeros", info=info)
        for expert in range(self.hp.n_expert):
            at = f"{name}.{expert}"
            is_chosen = ops.op("Equal", chosen, graph.constant(f"{at}.index", np.array(expert)), name=f"{at}.is_chosen")
            places = ops.op("NonZero", is_chosen, name=f"{at}.places")
            places = ops.op("Transpose", places, name=f"{at}.places_in_rows", perm=[1, 0])
            row, _slot = graph.ops("Split", places, names=(f"{at}.row", f"{at}.slot"), axis=1, num_outputs=2)
            score = ops.reshape(ops.op("GatherND", scores, places, name=f"{at}.score"), f"{at}.score_column", -1, 1)
            mine = ValueInfo((f"{at}.rows", self.hp.n_embd))
            taken = ops.op("GatherND", rows, row, name=f"{at}.taken")
            weighed = graph.op("Mul", taken, score, name=f"{at}.weighed", info=mine)
            gate, up, down = (matrix(tensor, expert) for tensor in experts)
            gated = ops.swiglu(
                ops.linear(weighed, gate, self._form(gate, "ffn_gate"), f"{at}.gate"),
                ops.linear(weighed, up, self._form(up, "ffn_up"), f"{at}.up"),
                f"{at}.gated",
            )
            result = ops.linear(gated, down, self._form(down, "ffn_down"), f"{at}.down")
            total = graph.op("ScatterND", total, row, result, name=f"{at}.added", reduction="add", info=info)
        return total

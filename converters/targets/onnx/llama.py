"""The graph of Llama 1 to 3.3: it reads as transformers' ``modeling_llama.py`` computes."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.architectures.hyperparameters import Hyperparameters, Rope
from converters.architectures.rope import ROPE_FREQS, attention_factor
from converters.architectures.rotary import frequencies
from converters.checkpoint import Tensor
from converters.targets.onnx.graph import INT64, Graph, ValueInfo
from converters.targets.onnx.operators import OPERATOR_SETS
from converters.targets.onnx.ops import sizes
from converters.tensors.joined import joined
from edge_llama.files.formats import F32
from quant.kernels import recode
from quant.onnx_recipe import Form, OnnxRecipe


class LlamaGraph:
    """The text tower with the hyperparameters ``hp``, of which ``tensors`` has Hugging Face's names, by ``recipe``.

    ``is_portable``: in standard operators alone.
    """

    def __init__(
        self, hp: Hyperparameters, tensors: Mapping[str, Tensor], recipe: OnnxRecipe, *, is_portable: bool
    ) -> None:
        self.hp = hp
        operators = OPERATOR_SETS[is_portable]
        self.graph = Graph("text", "model.onnx.data", operators.opset)
        self.ops = operators(self.graph, self.hp.norm_eps)
        self._tensors = tensors
        self._recipe = recipe
        self._caches: list[ir.Value] = []
        self.roles: set[str] = set()
        """Those of the matrices that were written."""

    def write(self) -> Graph:
        """The whole graph: ids in, the logits of the last position and the cache out."""
        hp, graph = self.hp, self.graph
        ids = graph.input("input_ids", ("batch", "sequence"), INT64)
        mask = graph.input("attention_mask", ("batch", "total"), INT64)
        pasts = [self._past(layer) for layer in range(hp.n_layer)]
        self.ops.begin(ids, mask)
        self._begin()
        x, more = self._embedded(ids), None
        for layer, past in enumerate(pasts):
            name, source = f"layers.{layer}", f"model.layers.{layer}"
            h, x = self._normed(x, more, f"{source}.input_layernorm", f"{name}.norm1")
            attended = self._attention(h, layer, past)
            x = self._needed(x, layer)
            h, x = self._normed(x, attended, f"{source}.post_attention_layernorm", f"{name}.norm2")
            more = self._feed_forward(h, layer)
        h, _ = self._normed(x, more, "model.norm", "norm")
        name, role = ("model.embed_tokens", "token_embd") if hp.tied else ("lm_head", "output")
        head = self._tensors[f"{name}.weight"]
        logits = self.ops.logits(h, head, self._form(head, role), "logits")
        graph.output(logits, ("batch", 1, hp.n_vocab))
        for cache in self._caches:
            graph.output(cache, ("batch", hp.n_head_kv, "total", hp.head_dim))
        return graph

    def _past(self, layer: int) -> tuple[ir.Value, ir.Value]:
        shape = ("batch", self.hp.n_head_kv, "past", self.hp.head_dim)
        key, value = (self.graph.input(f"past_key_values.{layer}.{part}", shape) for part in ("key", "value"))
        return key, value

    def _needed(self, x: ir.Value, layer: int) -> ir.Value:
        """The rows of ``x`` that what follows attention needs: after the last layer's, the last one alone."""
        if layer < self.hp.n_layer - 1:
            return x
        info = ValueInfo(("batch", 1, *sizes(x)[2:]))
        return self.graph.op(
            "Gather", x, self.graph.constant("last.index", [-1]), name=f"{x.name}.last", axis=1, info=info
        )

    def _begin(self) -> None:
        """What all layers share."""
        cos, sin = (
            self.graph.weight(table.name, table, F32) for table in _rotary(self.hp, self.hp.rope, self.rope_factors())
        )
        self._tables = cos, sin

    def _embedded(self, ids: ir.Value) -> ir.Value:
        table = self._tensors["model.embed_tokens.weight"]
        return self.ops.embedding(ids, table, self._form(table, "token_embd"), "embedding")

    def _normed(self, x: ir.Value, more: ir.Value | None, source: str, name: str) -> tuple[ir.Value, ir.Value]:
        """The norm of ``x`` and what is added to it, and their sum."""
        weight = self._tensors[f"{source}.weight"]
        return (self.ops.norm(x, weight, name), x) if more is None else self.ops.added_norm(x, more, weight, name)

    def _attention(self, x: ir.Value, layer: int, past: tuple[ir.Value, ir.Value]) -> ir.Value:
        qkv = self._qkv(x, layer)
        return self._mixed(qkv, layer, past, rotary=self._tables)

    def _mixed(
        self,
        qkv: Sequence[ir.Value | None],
        layer: int,
        past: tuple[ir.Value, ir.Value],
        rotary: tuple[ir.Value, ir.Value] | None = None,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        """Attention and the matrix after it; the cache with the new positions becomes an output."""
        hp, name = self.hp, f"layers.{layer}.attention"
        mixed, *cache = self.ops.attention(
            *(qkv, past, f"{name}.mixed"),
            heads=(hp.n_head, hp.n_head_kv),
            head_dim=hp.head_dim,
            present=(f"present.{layer}.key", f"present.{layer}.value"),
            rotary=rotary,
            bias=bias,
        )
        self._caches += cache
        mixed = self._needed(mixed, layer)
        return self._linear(mixed, f"model.layers.{layer}.self_attn.o_proj", "attn_output", f"{name}.o", layer)

    def _qkv(self, x: ir.Value, layer: int) -> list[ir.Value | None]:
        """Queries, keys and values: all in the first where the three matrices can be stored as one."""
        name, source = f"layers.{layer}.attention", f"model.layers.{layer}.self_attn"
        roles = {"q": "attn_q", "k": "attn_k", "v": "attn_v"}
        matrices = [self._tensors[f"{source}.{part}_proj.weight"] for part in roles]
        forms = {self._form(matrix, role) for matrix, role in zip(matrices, roles.values(), strict=True)}
        if len(forms) > 1 or len({matrix.format for matrix in matrices}) > 1:
            return [
                self._linear(x, f"{source}.{part}_proj", role, f"{name}.{part}", layer) for part, role in roles.items()
            ]
        biases = [self._tensors.get(f"{source}.{part}_proj.bias") for part in roles]
        bias = joined([bias for bias in biases if bias], 0) if all(biases) else None
        matrix = joined(matrices, 0).renamed(f"{source}.qkv_proj.weight")
        is_precise = self._is_precise("attn_q", layer)
        return [self.ops.linear(x, matrix, forms.pop(), f"{name}.qkv", bias, is_precise=is_precise), None, None]

    def _feed_forward(self, x: ir.Value, layer: int) -> ir.Value:
        return self._mlp(x, f"model.layers.{layer}.mlp", f"layers.{layer}.mlp", layer)

    def _mlp(self, x: ir.Value, source: str, name: str, layer: int) -> ir.Value:
        gate = self._linear(x, f"{source}.gate_proj", "ffn_gate", f"{name}.gate", layer)
        up = self._linear(x, f"{source}.up_proj", "ffn_up", f"{name}.up", layer)
        gated = self.ops.swiglu(gate, up, f"{name}.gated")
        return self._linear(gated, f"{source}.down_proj", "ffn_down", f"{name}.down", layer)

    def _linear(self, x: ir.Value, source: str, role: str, name: str, layer: int) -> ir.Value:
        matrix, bias = self._tensors[f"{source}.weight"], self._tensors.get(f"{source}.bias")
        is_precise = self._is_precise(role, layer)
        return self.ops.linear(x, matrix, self._form(matrix, role), name, bias, is_precise=is_precise)

    def _is_precise(self, role: str, layer: int) -> bool:
        return self._recipe.is_precise(role, layer, self.hp.n_layer)

    def rope_factors(self) -> "NDArray[np.float32] | None":
        """By what rotary frequencies are divided where only a tensor tells."""
        tensor = self._tensors.get(ROPE_FREQS)
        return None if tensor is None else recode(tensor.read(0, 1), tensor.format, F32).view(np.float32)[0]

    def _form(self, matrix: Tensor, role: str) -> Form:
        self.roles.add(role)
        return self._recipe.form(role, matrix.columns, matrix.format)


def _rotary(hp: Hyperparameters, rope: Rope, factors: "NDArray[np.float32] | None") -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, float32 ``(n_ctx, head_dim / 2)``."""
    rates = frequencies(hp.head_dim, rope.theta, rope.scaling, factors)
    strength = np.float32(attention_factor(rope))

    def table(name: str, function: np.ufunc) -> Tensor:
        def read(start: int, stop: int) -> NDArray[np.uint8]:
            angles = np.arange(start, stop, dtype=np.float32)[:, None] * rates
            values: NDArray[np.float32] = function(angles) * strength
            return values.view(np.uint8)

        return Tensor(name, (hp.n_ctx, hp.head_dim // 2), F32, read)

    return table("rotary.cos", np.cos), table("rotary.sin", np.sin)

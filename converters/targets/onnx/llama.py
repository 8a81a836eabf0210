"""The graph of Llama 1 to 3.3 and of the dense families like it: it reads as transformers' ``modeling_llama.py``.

What differs among them is in their hyperparameters and the tensors they have: Qwen's biases and norms of heads, layers
without RoPE (SmolLM3) or with a sliding window, Gemma's norms after each part, its GELU and its second RoPE.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.architectures.hyperparameters import Hyperparameters, Rope
from converters.architectures.rope import ROPE_FREQS, attention_factor
from converters.architectures.rotary import frequencies
from converters.checkpoint import Tensor
from converters.targets.onnx.graph import DATA, FLOAT, INT64, DataFile, Graph, ValueInfo
from converters.targets.onnx.operator_set import OperatorSet
from converters.targets.onnx.operators import OPERATOR_SETS
from converters.targets.onnx.ops import sizes
from converters.tensors.joined import joined
from edge_llama.files.formats import F32
from edge_llama.files.onnx_text import HIDDEN_STATES
from quant.kernels import recode
from quant.onnx_recipe import Form, OnnxRecipe


class LlamaGraph:
    """The text tower with the hyperparameters ``hp``, of which ``tensors`` has Hugging Face's names, by ``recipe``.

    ``is_portable``: in standard operators alone. ``gives_states``: the hidden states of all positions are given, too.
    ``ops``: what writes it, in place of either set of operators. :meth:`write` is the whole graph; what it is made of
    stands alone too (:mod:`converters.evidence.layers`).
    """

    def __init__(
        self,
        hp: Hyperparameters,
        tensors: Mapping[str, Tensor],
        recipe: OnnxRecipe,
        *,
        is_portable: bool = False,
        gives_states: bool = False,
        ops: OperatorSet | None = None,
    ) -> None:
        self.hp = hp
        self._gives_states = gives_states
        if ops is None:
            operators = OPERATOR_SETS[is_portable]
            ops = operators(Graph("text", DataFile(DATA), operators.opset), hp.norm_eps)
        self.ops, self.graph = ops, ops.graph
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
        pasts = [self.past(layer) for layer in range(hp.n_layer)]
        self.begin(ids, mask)
        x, more = self._embedded(ids), None
        for layer, past in enumerate(pasts):
            x, more = self.layer(x, more, layer, past)
        h = self._last_norm(x, more)
        graph.output(self.logits(h), ("batch", 1, hp.n_vocab))
        for cache in self._caches:
            graph.output(cache, ("batch", hp.n_head_kv, "total", hp.head_dim))
        return graph

    def begin(self, ids: ir.Value, mask: ir.Value) -> None:
        """Write what all layers share; both are ``(batch, sequence, ...)`` and ``(batch, total)``."""
        self.ops.begin(ids, mask)
        self._begin()

    def layer(
        self, x: ir.Value, more: ir.Value | None, layer: int, past: tuple[ir.Value, ir.Value]
    ) -> tuple[ir.Value, ir.Value]:
        """What goes on through a layer, and what its feed-forward part adds to that: the next layer takes both."""
        h, x = self.attended(x, more, layer, past)
        more = self._feed_forward(h, layer)
        return x, self._after(more, f"model.layers.{layer}.post_feedforward_layernorm", f"layers.{layer}.mlp.norm")

    def attended(
        self, x: ir.Value, more: ir.Value | None, layer: int, past: tuple[ir.Value, ir.Value]
    ) -> tuple[ir.Value, ir.Value]:
        """A layer up to its feed-forward part: what that takes, and what goes on beside it."""
        name, source = f"layers.{layer}", f"model.layers.{layer}"
        h, x = self._normed(x, more, f"{source}.input_layernorm", f"{name}.norm1")
        attended = self._attention(h, layer, past)
        attended = self._after(attended, f"{source}.post_attention_layernorm", f"{name}.attention.norm")
        x = self._needed(x, layer)
        before = "pre_feedforward_layernorm" if self.hp.post_norms else "post_attention_layernorm"
        return self._normed(x, attended, f"{source}.{before}", f"{name}.norm2")

    @property
    def caches(self) -> Sequence[ir.Value]:
        """Keys and values of the layers so far, with the new positions."""
        return self._caches

    def past(self, layer: int) -> tuple[ir.Value, ir.Value]:
        """Keys and values of a layer's earlier positions, as inputs."""
        shape = ("batch", self.hp.n_head_kv, "past", self.hp.head_dim)
        key, value = (self.graph.input(f"past_key_values.{layer}.{part}", shape) for part in ("key", "value"))
        return key, value

    def _needed(self, x: ir.Value, layer: int) -> ir.Value:
        """The rows of ``x`` that what follows attention needs: after the last layer's, the last one alone."""
        return x if layer < self.hp.n_layer - 1 or self._gives_states else self._last_row(x)

    def _last_norm(self, x: ir.Value, more: ir.Value | None) -> ir.Value:
        """The last row after the norm, of which logits are computed; the others, where wanted, as an output."""
        if not self._gives_states:
            return self._normed(x, more, "model.norm", "norm")[0]
        states, _ = self._normed(x, more, "model.norm", HIDDEN_STATES)
        self.graph.output(states, ("batch", "sequence", self.hp.n_embd))
        return self._last_row(states)

    def _last_row(self, x: ir.Value) -> ir.Value:
        info = ValueInfo(("batch", 1, *sizes(x)[2:]))
        return self.graph.op(
            "Gather", x, self.graph.constant("last.index", [-1]), name=f"{x.name}.last", axis=1, info=info
        )

    def _begin(self) -> None:
        """What all layers share: RoPE's cosines and sines, of all positions, or of the new ones where two are needed.

        Two tables of Gemma's wide heads would take as much as a tenth of its weights.
        """
        hp = self.hp
        if hp.window_rope is None:
            cos, sin = (
                self.graph.weight(table.name, table, F32) for table in _rotary(hp, hp.rope, rope_factors(self._tensors))
            )
            self._tables = cos, sin
        else:
            whole = self._angles(hp.rope, "rotary", rope_factors(self._tensors))
            self._turns = {True: self._angles(hp.window_rope, "rotary.window"), False: whole}

    def _angles(self, rope: Rope, name: str, factors: "NDArray[np.float32] | None" = None) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of the new positions' angles, ``(sequence, head_dim / 2)``."""
        graph, ops, hp = self.graph, self.ops, self.hp
        rates = frequencies(hp.head_dim, rope.theta, rope.scaling, factors)
        column = ops.reshape(ops.op("Cast", ops.positions, name=f"{name}.at", to=int(FLOAT)), f"{name}.column", -1, 1)
        angles = ops.op("Mul", column, graph.constant(f"{name}.turns", rates), name=f"{name}.angles")
        cos, sin = ops.op("Cos", angles, name=f"{name}.cos"), ops.op("Sin", angles, name=f"{name}.sin")
        if (strength := attention_factor(rope)) == 1.0:
            return cos, sin
        factor = graph.constant(f"{name}.strength", strength)
        cos, sin = (ops.op("Mul", part, factor, name=f"{part.name}.scaled") for part in (cos, sin))
        return cos, sin

    def _embedded(self, ids: ir.Value) -> ir.Value:
        table, scale = self._tensors["model.embed_tokens.weight"], self.hp.embedding_scale
        rows = self.ops.embedding(ids, table, self._form(table, "token_embd"), "embedding")
        return rows if scale == 1.0 else self.ops.scaled(rows, scale, "embedding.enlarged")

    def logits(self, x: ir.Value) -> ir.Value:
        """Of ``x``, with the embedding's table or a head of its own; bent where no logit may be too large."""
        hp, ops = self.hp, self.ops
        name, role = ("model.embed_tokens", "token_embd") if hp.tied else ("lm_head", "output")
        head, most = self._tensors[f"{name}.weight"], hp.final_softcap
        if most is None:
            return ops.logits(x, head, self._form(head, role), "logits")
        plain = ops.logits(x, head, self._form(head, role), "logits.plain")
        share = ops.scaled(plain, 1 / most, "logits.share")
        bent = self.graph.op("Tanh", share, name="logits.bent", info=ValueInfo(sizes(share)))
        return ops.scaled(bent, most, "logits")

    def _after(self, x: ir.Value, source: str, name: str) -> ir.Value:
        """What attention or a feed-forward layer gives, after the norm that some families have there."""
        return self.ops.norm(x, self._tensors[f"{source}.weight"], name) if self.hp.post_norms else x

    def _normed(self, x: ir.Value, more: ir.Value | None, source: str, name: str) -> tuple[ir.Value, ir.Value]:
        """The norm of ``x`` and what is added to it, and their sum."""
        weight = self._tensors[f"{source}.weight"]
        return (self.ops.norm(x, weight, name), x) if more is None else self.ops.added_norm(x, more, weight, name)

    def _attention(self, x: ir.Value, layer: int, past: tuple[ir.Value, ir.Value]) -> ir.Value:
        hp = self.hp
        qkv = self._qkv(x, layer)
        rotary = self._tables if hp.has_rope(layer) and hp.window_rope is None else None
        return self._mixed(qkv, layer, past, rotary, window=hp.window if hp.has_window(layer) else None)

    def _mixed(
        self,
        qkv: Sequence[ir.Value | None],
        layer: int,
        past: tuple[ir.Value, ir.Value],
        rotary: tuple[ir.Value, ir.Value] | None = None,
        bias: ir.Value | None = None,
        window: int | None = None,
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
            scale=hp.attention_scale,
            window=window,
        )
        self._caches += cache
        mixed = self._needed(mixed, layer)
        return self.linear(mixed, f"model.layers.{layer}.self_attn.o_proj", "attn_output", f"{name}.o", layer)

    def _qkv(self, x: ir.Value, layer: int) -> list[ir.Value | None]:
        """Queries, keys and values: all in the first where the three matrices can be stored as one."""
        name, source = f"layers.{layer}.attention", f"model.layers.{layer}.self_attn"
        roles = {"q": "attn_q", "k": "attn_k", "v": "attn_v"}
        matrices = [self._tensors[f"{source}.{part}_proj.weight"] for part in roles]
        forms = {self._form(matrix, role) for matrix, role in zip(matrices, roles.values(), strict=True)}
        is_one = len(forms) == 1 and len({matrix.format for matrix in matrices}) == 1
        if not (is_one and self.ops.joins_qkv) or self.hp.qk_norm or self.hp.window_rope is not None:
            q, k, v = (
                self.linear(x, f"{source}.{part}_proj", role, f"{name}.{part}", layer) for part, role in roles.items()
            )
            return [self._prepared(q, self.hp.n_head, layer, "q"), self._prepared(k, self.hp.n_head_kv, layer, "k"), v]
        biases = [self._tensors.get(f"{source}.{part}_proj.bias") for part in roles]
        bias = joined([bias for bias in biases if bias], 0) if all(biases) else None
        matrix = joined(matrices, 0).renamed(f"{source}.qkv_proj.weight")
        is_precise = self._is_precise("attn_q", layer)
        return [self.ops.linear(x, matrix, forms.pop(), f"{name}.qkv", bias, is_precise=is_precise), None, None]

    def _prepared(self, x: ir.Value, heads: int, layer: int, part: str) -> ir.Value:
        """Queries or keys, after the norm of each head, and after RoPE where attention has no tables for it."""
        hp, name = self.hp, f"layers.{layer}.attention.{part}"
        if hp.qk_norm:
            weight = self._tensors[f"model.layers.{layer}.self_attn.{part}_norm.weight"]
            x = self.ops.head_norm(x, heads, hp.head_dim, f"{name}.norm", weight)
        if hp.window_rope is None:
            return x
        turns = self._turns[hp.has_window(layer)]
        return self.ops.rope(x, turns, heads, hp.head_dim, f"{name}.turned", by_halves=True)

    def _feed_forward(self, x: ir.Value, layer: int) -> ir.Value:
        return self.mlp(x, f"model.layers.{layer}.mlp", f"layers.{layer}.mlp", layer)

    def mlp(self, x: ir.Value, source: str, name: str, layer: int) -> ir.Value:
        """A gated feed-forward part whose matrices have names that begin with ``source``."""
        gate = self.linear(x, f"{source}.gate_proj", "ffn_gate", f"{name}.gate", layer)
        up = self.linear(x, f"{source}.up_proj", "ffn_up", f"{name}.up", layer)
        gated_by = self.ops.swiglu if self.hp.activation in ("silu", "swish") else self.ops.geglu
        gated = gated_by(gate, up, f"{name}.gated")
        return self.linear(gated, f"{source}.down_proj", "ffn_down", f"{name}.down", layer)

    def linear(self, x: ir.Value, source: str, role: str, name: str, layer: int) -> ir.Value:
        """A matrix and its bias, if there is one, whose names begin with ``source``."""
        matrix, bias = self._tensors[f"{source}.weight"], self._tensors.get(f"{source}.bias")
        is_precise = self._is_precise(role, layer)
        return self.ops.linear(x, matrix, self._form(matrix, role), name, bias, is_precise=is_precise)

    def _is_precise(self, role: str, layer: int) -> bool:
        return self._recipe.is_precise(role, layer, self.hp.n_layer)

    def _form(self, matrix: Tensor, role: str) -> Form:
        self.roles.add(role)
        return self._recipe.form(role, matrix.columns, matrix.format)


def rope_factors(tensors: Mapping[str, Tensor]) -> "NDArray[np.float32] | None":
    """By what rotary frequencies are divided where only a tensor tells."""
    tensor = tensors.get(ROPE_FREQS)
    return None if tensor is None else recode(tensor.read(0, 1), tensor.format, F32).view(np.float32)[0]


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

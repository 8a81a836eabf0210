"""The first position of every text: its keys and values, computed in float32 once and kept in the graph.

A Llama's first token has activations a hundred times as large as any other's (SmolLM2's residual: 24,000 beside 950),
and every text begins with the same token. Where the ranges of 16-bit activations must hold them, all others are
rounded a hundred times as coarsely. So what this position says to the others is a constant, and it is never computed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from converters.architectures.hyperparameters import Hyperparameters
from converters.architectures.rope import attention_factor
from converters.checkpoint import Tensor
from converters.targets.onnx.integer_weights import in_chunks, read_floats
from converters.tensors.split import matrix
from quant.ranges import FirstPosition

_Floats = NDArray[np.float32]
_PARTS = ("gate", "up", "down")


def first_position(hp: Hyperparameters, tensors: Mapping[str, Tensor], token: int) -> FirstPosition:
    """Keys and values of ``token`` at position 0, in each layer. Reads every matrix once, a few rows at a time.

    It sees itself alone: what attention mixes are its own values. At position 0 RoPE turns nothing.
    """
    x = read_floats(tensors["model.embed_tokens.weight"], token, token + 1)[0]
    group, keys, values = hp.n_head // hp.n_head_kv, [], []
    for layer in range(hp.n_layer):
        source = f"model.layers.{layer}"
        h = _normed(x, tensors[f"{source}.input_layernorm.weight"], hp.norm_eps)
        k, v = (
            _linear(h, tensors, f"{source}.self_attn.{part}_proj").reshape(hp.n_head_kv, hp.head_dim) for part in "kv"
        )
        if hp.qk_norm:
            k = _normed(k, tensors[f"{source}.self_attn.k_norm.weight"], hp.norm_eps)
        keys.append(_rotated_keys(k, hp, layer))
        values.append(v)
        x = x + _linear(np.repeat(v, group, axis=0).reshape(-1), tensors, f"{source}.self_attn.o_proj")
        h = _normed(x, tensors[f"{source}.post_attention_layernorm.weight"], hp.norm_eps)
        x = x + _fed_forward(h, hp, tensors, layer)
    return FirstPosition(token, np.stack(keys), np.stack(values))


def _rotated_keys(k: _Floats, hp: Hyperparameters, layer: int) -> _Floats:
    """Keys as the graph has them: at position 0 no angle is left, but YaRN's strength and Llama 4's order and norm."""
    if not hp.has_rope(layer):
        return k
    if hp.layer_types:
        k = np.concatenate([k[:, 0::2], k[:, 1::2]], axis=1)
    k = k * np.float32(attention_factor(hp.rope))
    return _unit(k, hp.norm_eps) if hp.use_qk_norm else k


def _fed_forward(h: _Floats, hp: Hyperparameters, tensors: Mapping[str, Tensor], layer: int) -> _Floats:
    source = f"model.layers.{layer}.{'feed_forward' if hp.layer_types else 'mlp'}"
    if not hp.has_experts(layer):
        return _gated(h, [tensors[f"{source}.{part}_proj.weight"] for part in _PARTS])
    shared = _gated(h, [tensors[f"{source}.shared_expert.{part}_proj.weight"] for part in _PARTS])
    logits = _linear(h, tensors, f"{source}.router")
    best = int(logits.argmax())
    score = np.float32(1) / (1 + np.exp(-logits[best]))
    chosen = [matrix(tensors[f"{source}.experts.{part}_proj.weight"], best) for part in _PARTS]
    return shared + _gated(h * score, chosen)


def _gated(x: _Floats, matrices: Sequence[Tensor]) -> _Floats:
    gate, up = (_product(x, table) for table in matrices[:2])
    return _product(gate / (1 + np.exp(-gate)) * up, matrices[2])


def _unit(x: _Floats, eps: float) -> _Floats:
    unit: _Floats = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(eps))
    return unit


def _normed(x: _Floats, weight: Tensor, eps: float) -> _Floats:
    normed: _Floats = _unit(x, eps) * read_floats(weight, 0, 1)[0]
    return normed


def _linear(x: _Floats, tensors: Mapping[str, Tensor], source: str) -> _Floats:
    product, bias = _product(x, tensors[f"{source}.weight"]), tensors.get(f"{source}.bias")
    return product if bias is None else product + read_floats(bias, 0, 1)[0]


def _product(x: _Floats, table: Tensor) -> _Floats:
    product: _Floats = in_chunks(table, lambda rows: rows @ x).astype(np.float32)
    return product

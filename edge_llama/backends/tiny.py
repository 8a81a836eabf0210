"""A one-layer Llama with random weights, small enough to write, load and run in a moment.

It proves that an engine works, and stands for a model's attention where that is measured: its cost per layer depends on
the heads, the cache's format and the depth, and not on the weights.
"""

from math import prod

import numpy as np
from numpy.typing import NDArray

from edge_llama.formats import F32, FORMATS, Format
from edge_llama.gguf import ALIGNMENT, ValueType, array, encode_header, f32, string, u32

WIDTH, VOCABULARY = 256, 512
_Q4_0, _Q8_0 = FORMATS["q4_0"], FORMATS["q8_0"]


def tiny_model(*, heads: int = 4, kv_heads: int = 4, head_dim: int = 64, n_ctx: int = 256) -> bytes:
    """A GGUF file of one layer with this attention; ``heads * head_dim`` must be a multiple of 32."""
    fields = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(1),
        "llama.context_length": u32(n_ctx),
        "llama.embedding_length": u32(WIDTH),
        "llama.feed_forward_length": u32(WIDTH),
        "llama.attention.head_count": u32(heads),
        "llama.attention.head_count_kv": u32(kv_heads),
        "llama.attention.key_length": u32(head_dim),
        "llama.attention.value_length": u32(head_dim),
        "llama.rope.dimension_count": u32(head_dim),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.vocab_size": u32(VOCABULARY),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, [f"{token}" for token in range(VOCABULARY)]),
    }
    tensors = _tensors(heads * head_dim, kv_heads * head_dim)
    header, _ = encode_header(fields, [(name, shape, format_) for name, (shape, format_) in tensors.items()])
    random = np.random.default_rng(0)
    data = (_random_data(random, shape, format_).tobytes() for shape, format_ in tensors.values())
    return header + b"".join(tensor + bytes(-len(tensor) % ALIGNMENT) for tensor in data)


def _tensors(query: int, key: int) -> dict[str, tuple[tuple[int, ...], Format]]:
    return {
        "token_embd.weight": ((VOCABULARY, WIDTH), _Q8_0),
        "output_norm.weight": ((WIDTH,), F32),
        "output.weight": ((VOCABULARY, WIDTH), _Q8_0),
        "blk.0.attn_norm.weight": ((WIDTH,), F32),
        "blk.0.ffn_norm.weight": ((WIDTH,), F32),
        "blk.0.attn_q.weight": ((query, WIDTH), _Q4_0),
        "blk.0.attn_k.weight": ((key, WIDTH), _Q4_0),
        "blk.0.attn_v.weight": ((key, WIDTH), _Q4_0),
        "blk.0.attn_output.weight": ((WIDTH, query), _Q4_0),
        **{f"blk.0.ffn_{name}.weight": ((WIDTH, WIDTH), _Q8_0) for name in ("gate", "up", "down")},
    }


def _random_data(random: np.random.Generator, shape: tuple[int, ...], format_: Format) -> NDArray[np.uint8]:
    if format_ is F32:
        return np.ones(shape, np.float32).view(np.uint8)
    blocks = random.integers(0, 256, (prod(shape) // format_.block_size, format_.block_bytes), np.uint8)
    blocks[:, :2] = np.array([0.005], np.float16).view(np.uint8)  # both formats begin with the block's scale
    return blocks

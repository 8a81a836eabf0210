"""Models small enough to write, load and run in a moment.

A one-layer Llama with random weights proves that an engine works, and stands for a model's attention where that is
measured: its cost per layer depends on the heads, the cache's format and the depth, and not on the weights. A vision
tower shows in which order an encoder gives a tile's tokens.
"""

from math import prod

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import F32, FORMATS, Format
from edge_llama.files.gguf import ALIGNMENT, Value, ValueType, array, boolean, encode_header, f32, string, u32

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
    random = np.random.default_rng(0)
    data = {name: (shape, format_, _random_data(random, shape, format_)) for name, (shape, format_) in tensors.items()}
    return _file(fields, data)


def tiny_vocabulary() -> bytes:
    """A GGUF file of a vocabulary and no weights: every byte is a token."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    fields = {
        "general.architecture": string("llama"),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, [0.0] * len(tokens)),
        "tokenizer.ggml.token_type": array(ValueType.INT32, [2, 3, 3] + [6] * 256),
    }
    return _file(fields, {})


def tiny_tower() -> bytes:
    """An mmproj of Llama 4 in which no patch sees another: four tokens from a tile of 56 pixels, in two layers."""
    width, side, patch, scale = 32, 56, 14, 2
    inner = width * scale**2
    fields = {
        "general.architecture": string("clip"),
        "general.type": string("mmproj"),
        "general.name": string("tiny"),
        "general.file_type": u32(0),
        "clip.has_vision_encoder": boolean(True),
        "clip.projector_type": string("llama4"),
        "clip.use_gelu": boolean(True),
        "clip.vision.projection_dim": u32(width),
        "clip.vision.image_size": u32(side),
        "clip.vision.patch_size": u32(patch),
        "clip.vision.embedding_length": u32(width),
        "clip.vision.feed_forward_length": u32(inner),
        "clip.vision.block_count": u32(2),
        "clip.vision.attention.head_count": u32(2),
        "clip.vision.attention.layer_norm_epsilon": f32(1e-5),
        "clip.vision.projector.scale_factor": u32(scale),
        "clip.vision.image_mean": array(ValueType.FLOAT32, [0.5] * 3),
        "clip.vision.image_std": array(ValueType.FLOAT32, [0.5] * 3),
    }
    shapes = {
        "v.class_embd": (width,),
        "v.position_embd.weight": ((side // patch) ** 2 + 1, width),
        "v.patch_embd.weight": (width, 3 * patch**2),
        "mm.model.mlp.1.weight": (width, inner),
        "mm.model.mlp.2.weight": (width, width),
        "mm.model.fc.weight": (width, width),
        **{f"v.{norm}.{part}": (width,) for norm in ("pre_ln", "post_ln") for part in ("weight", "bias")},
    }
    for layer in range(2):
        for name, rows, columns in (
            *((f"attn_{part}", width, width) for part in ("q", "k", "v", "out")),
            *(("ffn_up", inner, width), ("ffn_down", width, inner)),
        ):
            shapes |= {f"v.blk.{layer}.{name}.weight": (rows, columns), f"v.blk.{layer}.{name}.bias": (rows,)}
        shapes |= {f"v.blk.{layer}.{norm}.{part}": (width,) for norm in ("ln1", "ln2") for part in ("weight", "bias")}
    random = np.random.default_rng(0)
    return _file(fields, {name: (shape, F32, _tower_data(random, name, shape)) for name, shape in shapes.items()})


def _tower_data(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Norms are even, and what would mix patches or tell their places is zero."""
    if name.endswith(("_ln.weight", "ln1.weight", "ln2.weight")):
        values = np.ones(shape, np.float32)
    elif name.endswith(".bias") or "attn_out" in name or "ffn_down" in name or "position_embd" in name:
        values = np.zeros(shape, np.float32)
    else:
        values = random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
    return values.view(np.uint8)


def _file(fields: dict[str, Value], tensors: dict[str, tuple[tuple[int, ...], Format, NDArray[np.uint8]]]) -> bytes:
    header, _ = encode_header(fields, [(name, shape, format_) for name, (shape, format_, _) in tensors.items()])
    data = (values.tobytes() for _, _, values in tensors.values())
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

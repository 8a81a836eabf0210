"""Small models of Qwen2, and of architectures that edge-llama does not convert: as GGUF and in transformers."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ggufs import rewritten
from numpy.typing import NDArray
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edge_llama.files.formats import F16, F32
from edge_llama.files.gguf import Header, Value, encode_header, f32, string, u32

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, CONTEXT, EPS = 64, 160, 2, 4, 2, 512, 1e-5
Tensors = Iterator[tuple[str, NDArray[np.float32]]]
_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": EPS,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_MAMBA = {
    "mixer.in_proj": "ssm_in",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.x_proj": "ssm_x",
    "mixer.dt_proj": "ssm_dt",
    "mixer.out_proj": "ssm_out",
    "norm": "attn_norm",
}
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "backbone.embeddings": "token_embd",
    "model.norm": "output_norm",
    "backbone.norm_f": "output_norm",
    "lm_head": "output",
}


def qwen2(n_vocab: int) -> tuple[PreTrainedModel, dict[str, Value]]:
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=n_vocab, tie_word_embeddings=False, **_SIZES))
    return model, _fields("qwen2")


def gemma(n_vocab: int) -> tuple[PreTrainedModel, dict[str, Value]]:
    model = GemmaForCausalLM(GemmaConfig(vocab_size=n_vocab, head_dim=32, **_SIZES))
    return model, _fields("gemma") | {f"gemma.attention.{key}_length": u32(32) for key in ("key", "value")}


def phi3(n_vocab: int) -> tuple[PreTrainedModel, dict[str, Value]]:
    model = Phi3ForCausalLM(Phi3Config(vocab_size=n_vocab, tie_word_embeddings=False, **_SIZES))
    return model, _fields("phi3") | {"phi3.rope.dimension_count": u32(HIDDEN // HEADS)}


def mamba(n_vocab: int) -> tuple[PreTrainedModel, dict[str, Value]]:
    """Recurrent: no cache of positions, but a state that can't be taken back."""
    sizes = {"state_size": 8, "conv_kernel": 4, "time_step_rank": 4, "layer_norm_epsilon": EPS}
    config = MambaConfig(vocab_size=n_vocab, hidden_size=HIDDEN, num_hidden_layers=LAYERS, **sizes)
    fields = _fields("mamba") | {"mamba.attention.head_count": u32(0), "mamba.feed_forward_length": u32(0)}
    ssm = {"conv_kernel": 4, "inner_size": 2 * HIDDEN, "state_size": 8, "time_step_rank": 4}
    return MambaForCausalLM(config), fields | {f"mamba.ssm.{key}": u32(size) for key, size in ssm.items()}


ARCHITECTURES: dict[str, Callable[[int], tuple[PreTrainedModel, dict[str, Value]]]] = {
    make.__name__: make for make in (qwen2, gemma, phi3, mamba)
}


def _fields(name: str) -> dict[str, Value]:
    return {
        "general.architecture": string(name),
        f"{name}.block_count": u32(LAYERS),
        f"{name}.context_length": u32(CONTEXT),
        f"{name}.embedding_length": u32(HIDDEN),
        f"{name}.feed_forward_length": u32(FFN),
        f"{name}.attention.head_count": u32(HEADS),
        f"{name}.attention.head_count_kv": u32(KV_HEADS),
        f"{name}.attention.layer_norm_rms_epsilon": f32(EPS),
        f"{name}.rope.freq_base": f32(10000.0),
    }


def written(path: Path, name: str, vocabulary: Header, seed: int = 0) -> PreTrainedModel:
    """Write a model with random weights and the vocabulary of another file to ``path``; the same in transformers."""
    torch.manual_seed(seed)
    model, fields = ARCHITECTURES[name](len(vocabulary.fields["tokenizer.ggml.tokens"].data))
    for parameter in model.parameters():
        if parameter.dim() > 1:  # logits that spread over a few units
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    fields |= {key: value for key, value in vocabulary.fields.items() if key.startswith("tokenizer.")}
    write(path, fields, dict(_tensors(model, name)))
    return model.eval()


def deadly(path: Path, vocabulary: Header) -> Path:
    """A model that llama.cpp loads and dies of: a norm in f16."""
    sound = path.with_name("sound.gguf")
    written(sound, "gemma", vocabulary)
    norm = "output_norm.weight"
    return rewritten(sound, path, formats=lambda info: F16 if info.name == norm else info.format)


def write(path: Path, fields: Mapping[str, Value], tensors: Mapping[str, NDArray[np.float32]]) -> None:
    header, _ = encode_header(fields, [(key, tensor.shape, F32) for key, tensor in tensors.items()])
    data = (np.ascontiguousarray(tensor, np.float32).tobytes() for tensor in tensors.values())
    path.write_bytes(header + b"".join(part + bytes(-len(part) % 32) for part in data))


def _tensors(model: PreTrainedModel, name: str) -> Tensors:
    """Under llama.cpp's names, as its converter changes them (``conversion/gemma.py``, ``conversion/mamba.py``)."""
    for key, parameter in model.named_parameters():
        tensor = parameter.detach().numpy().copy()
        stem, _, kind = key.rpartition(".")
        if stem in _OUTSIDE:
            found = f"{_OUTSIDE[stem]}.{kind}"
        elif key.endswith("A_log"):
            found, tensor = f"blk.{key.split('.')[2]}.ssm_a", -np.exp(tensor)
        elif key.endswith("mixer.D"):
            found = f"blk.{key.split('.')[2]}.ssm_d"
        else:
            _, _, layer, rest = stem.split(".", 3)
            found = f"blk.{layer}.{(_ATTENTION | _MAMBA)[rest]}.{kind}"
        if name == "gemma" and "norm" in found:
            tensor += 1
        yield found, tensor.squeeze(1) if tensor.ndim == 3 else tensor

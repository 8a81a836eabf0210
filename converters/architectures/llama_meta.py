"""Llama 1 to 3.3 as Meta publishes it: params.json and its names, in Hugging Face's terms.

Sources: github.com/meta-llama/llama and llama-models (``model.py``: what the fields mean), transformers'
``convert_llama_weights_to_hf.py`` (what they become in config.json). Meta writes down neither the context's length
nor the factor of the rotary scaling; both are derived here as that script does, with the model told apart by what it
holds rather than by an option.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.architectures.llama import halved
from converters.architectures.llama_families import LLAMA3_TOKENS
from converters.checkpoint import Fields, Tensor
from converters.metadata.vocabulary import Vocabulary

NAME = "Llama"
TOKENS = LLAMA3_TOKENS
IGNORED = re.compile(r"(^|\.)rope\.freqs$")  # Llama 1 and 2: recomputed by every runtime
EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"
GATE = "layers.0.feed_forward.w1.weight"
OUTSIDE = {EMBEDDING: "model.embed_tokens.weight", "norm.weight": "model.norm.weight", OUTPUT: "lm_head.weight"}
_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
}
_ELSEWHERE = {
    "moe_args": "a mixture of experts",
    "vision_args": "a model with vision",
    "vision_chunk_size": "a model with vision",
    "vision_num_cross_attention_layers": "a model with vision",
    "quantization_args": "quantized weights",
    "lora_args": "an adapter beside the weights",
}
REMEDY = "give the folder of a text Llama in full precision, or its Hugging Face version"


@dataclass(frozen=True, slots=True)
class Params:
    """params.json, checked. ``n_vocab`` None: to be taken from the embedding (Llama 2 says -1)."""

    fields: Fields
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int | None
    norm_eps: float
    rope_theta: float
    scaled_rope: bool

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        return self.dim // self.n_heads

    @property
    def n_ff(self) -> int:
        """The feed-forward width, by the formula of Meta's ``FeedForward``."""
        width = int(2 * 4 * self.dim / 3)
        if self.fields.config.get("ffn_dim_multiplier") is not None:
            width = int(self.fields.real("ffn_dim_multiplier", 1.0) * width)
        multiple = self.fields.size("multiple_of", 256)
        return -(-width // multiple) * multiple


def read_params(config: Mapping[str, Any], path: Path) -> Params:
    """Check the content of ``path``/params.json; CheckpointError names the field."""
    nested = config.get("model")  # Llama 3.1 405B's
    fields = Fields(nested if isinstance(nested, dict) else config, path, "params.json")
    for key, meaning in _ELSEWHERE.items():
        value = fields.config.get(key)
        if value and value != -1:
            raise fields.fail(key, f"is set: {meaning} can't be converted from Meta's format", REMEDY)
    dim, n_heads = fields.size("dim"), fields.size("n_heads")
    n_kv_heads = fields.size("n_kv_heads", n_heads)
    if dim % n_heads or dim // n_heads % 2:
        raise fields.fail("n_heads", f"is {n_heads}, which does not divide dim {dim} into heads of even size")
    if n_heads % n_kv_heads:
        raise fields.fail("n_kv_heads", f"is {n_kv_heads}, which does not divide {n_heads} heads")
    return Params(
        fields=fields,
        dim=dim,
        n_layers=fields.size("n_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        n_vocab=None if fields.config.get("vocab_size", -1) == -1 else fields.size("vocab_size"),
        norm_eps=fields.real("norm_eps", 1e-5),
        rope_theta=fields.real("rope_theta", 10000.0),
        scaled_rope=fields.flag("use_scaled_rope"),
    )


def split(shard: Mapping[str, Tensor], _params: Params, _where: Path) -> Mapping[str, Tensor]:
    """A shard's tensors, each of which is one."""
    return shard


def is_known(name: str, _params: Params) -> bool:
    """Whether a Llama has a tensor of that name."""
    return _new_name(name) is not None


def hugging_face(merged: Mapping[str, Tensor], params: Params) -> dict[str, Tensor]:
    """Whole tensors as Hugging Face has them."""
    found = {}
    for name, tensor in merged.items():
        new_name = _new_name(name) or name
        found[new_name] = (halved(tensor, params.head_dim) if _is_rotary(name) else tensor).renamed(new_name)
    return found


def _new_name(name: str) -> str | None:
    match = re.fullmatch(r"layers\.(0|[1-9]\d{0,5})\.(.+)", name)
    rest = _LAYER.get(match[2]) if match else None
    return f"model.layers.{match[1]}.{rest}" if match and rest else OUTSIDE.get(name)


def shape(name: str, params: Params, n_vocab: int) -> tuple[int, ...]:
    """What a tensor's shape must be, all shards together."""
    q, kv = params.dim, params.n_kv_heads * params.head_dim
    return {
        EMBEDDING: (n_vocab, params.dim),
        OUTPUT: (n_vocab, params.dim),
        "attention.wq.weight": (q, params.dim),
        "attention.wk.weight": (kv, params.dim),
        "attention.wv.weight": (kv, params.dim),
        "attention.wo.weight": (params.dim, q),
        "feed_forward.w1.weight": (params.n_ff, params.dim),
        "feed_forward.w3.weight": (params.n_ff, params.dim),
        "feed_forward.w2.weight": (params.dim, params.n_ff),
    }.get(re.sub(r"^layers\.\d+\.", "", name), (params.dim,))


def copies(name: str, params: Params, shards: int) -> int:
    """In how many neighbouring shards the same rows lie: K and V of fewer heads than shards (405B in 16 parts)."""
    is_kv = name.endswith((".attention.wk.weight", ".attention.wv.weight"))
    return max(shards // params.n_kv_heads, 1) if is_kv else 1


def is_whole(_name: str, shape: tuple[int, ...]) -> bool:
    """Whether each shard may have all of it."""
    return len(shape) == 1


def _is_rotary(name: str) -> bool:
    """Whether rows are in the order of Meta's rotary embedding: neighbours are a pair."""
    return name.endswith((".attention.wq.weight", ".attention.wk.weight"))


def config(params: Params, vocabulary: Vocabulary, *, tied: bool) -> dict[str, Any]:
    """config.json's content."""
    scaling = _rope_scaling(params, tied) if params.scaled_rope else None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": len(vocabulary.tokens),
        "hidden_size": params.dim,
        "intermediate_size": params.n_ff,
        "num_hidden_layers": params.n_layers,
        "num_attention_heads": params.n_heads,
        "num_key_value_heads": params.n_kv_heads,
        "head_dim": params.head_dim,
        "max_position_embeddings": _context(params, _is_llama3(vocabulary)),
        "rms_norm_eps": params.norm_eps,
        "rope_theta": params.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _context(params: Params, is_llama3: bool) -> int:
    """Tokens of context that the model was trained for, which params.json doesn't say.

    By transformers' script; Llama 1 is told from Llama 2 by its eps, as llama.cpp's older script did.
    """
    if is_llama3:
        return 131072 if params.scaled_rope else 8192
    if params.rope_theta > 10000.0:
        return 16384  # Code Llama
    return 4096 if params.norm_eps == 1e-5 else 2048


def _rope_scaling(params: Params, tied: bool) -> dict[str, Any]:
    """Llama 3.1's scaling. Its factor, where params.json has none, is 8, and 32 in Llama 3.2 1B and 3B.

    Meta's own code says 8 for all; the published config.json files say 32 for these two, and so do torchtune and
    every GGUF of them. They are the only Llamas whose output is the embedding (3.2 11B and 90B, with vision, have 8).
    """
    factor = 32.0 if tied else 8.0
    return {
        "rope_type": "llama3",
        "factor": params.fields.real("rope_scaling_factor", factor),
        "low_freq_factor": 1.0,
        "high_freq_factor": params.fields.real("rope_high_freq_factor", 4.0),
        "original_max_position_embeddings": 8192,
    }


def family(params: Params, vocabulary: Vocabulary) -> str:
    """The chat template's name."""
    return ("llama3.1" if params.scaled_rope else "llama3") if _is_llama3(vocabulary) else "llama2"


def _is_llama3(vocabulary: Vocabulary) -> bool:
    return vocabulary.merges is not None


def notes(params: Params, config: Mapping[str, Any]) -> dict[str, str]:
    """What params.json left open, by topic."""
    scaling = config["rope_scaling"]
    if scaling is None or params.fields.config.get("rope_scaling_factor") is not None:
        return {}
    which = "Llama 3.2, since the output is the embedding" if scaling["factor"] == 32.0 else "Llama 3.1 and 3.3"
    return {"rotary scaling": f"factor {scaling['factor']:g}, as in {which} (params.json doesn't say)"}

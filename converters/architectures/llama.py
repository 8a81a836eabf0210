"""Llama 1 to 3.3 and models of the same shape (SmolLM2, TinyLlama): dense, RMSNorm, rotary, grouped queries.

Sources: transformers' ``configuration_llama.py`` and ``modeling_llama.py`` for what a checkpoint means, llama.cpp's
``src/models/llama.cpp`` and ``conversion/llama.py`` for what a GGUF file must hold. Other families' tables are made of
these rows.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.architectures.family import HEAD, Family
from converters.architectures.hyperparameters import Hyperparameters
from converters.architectures.table import FLAG, REAL, TEXT, HParam, Limit, TensorSpec, Values, one_of, same
from converters.tensors.views import PLAIN, ROTARY


def _of_equal_size(values: Values, config: Mapping[str, Any]) -> str:
    heads, width = values["n_head"], values["n_embd"]
    is_uneven = config.get("head_dim") is None and width % heads
    return f"is {heads}, which does not divide hidden_size {width}" if is_uneven else ""


def divides(values: Values, _config: Mapping[str, Any]) -> str:
    """What is wrong with the number of KV heads."""
    heads, kv = values["n_head"], values["n_head_kv"]
    return f"is {kv}, which does not divide {heads} heads" if heads % kv else ""


def even(values: Values, _config: Mapping[str, Any]) -> str:
    """What is wrong with the size of a head."""
    return f"is {values['head_dim']}, expected an even number" if values["head_dim"] % 2 else ""


def head_dim(values: Values) -> int:
    """What is left for each head."""
    return int(values["n_embd"] // values["n_head"])


N_LAYER = HParam("n_layer", "num_hidden_layers", ("block_count",))
N_EMBD = HParam("n_embd", "hidden_size", ("embedding_length",))
N_FF = HParam("n_ff", "intermediate_size", ("feed_forward_length",))
N_HEAD = HParam("n_head", "num_attention_heads", ("attention.head_count",), check=_of_equal_size)
N_HEAD_KV = HParam(
    "n_head_kv", "num_key_value_heads", ("attention.head_count_kv",), default=same("n_head"), check=divides
)


def kv_heads(default: int) -> HParam:
    """The row of the KV heads: ``default`` if config.json doesn't say, as many as query heads if it says null."""
    return replace(N_HEAD_KV, default=default, null=same("n_head"))


HEAD_DIM = HParam(
    "head_dim", "head_dim", ("attention.key_length", "attention.value_length"), default=head_dim, check=even
)
N_VOCAB = HParam("n_vocab", "vocab_size", ("vocab_size",))
ACTIVATION = HParam("activation", "hidden_act", (), TEXT, "silu", one_of("activation", "silu", "swish"))
TIED = HParam("tied", "tie_word_embeddings", (), FLAG, False)


def context(default: int) -> HParam:
    """The row of the context's length."""
    return HParam("n_ctx", "max_position_embeddings", ("context_length",), default=default)


def eps(default: float) -> HParam:
    """The row of the norms' epsilon."""
    return HParam("norm_eps", "rms_norm_eps", ("attention.layer_norm_rms_epsilon",), REAL, default)


def rotary(gguf: str = "rope.dimension_count") -> HParam:
    """The row that says how many values of a head are rotated: all."""
    return HParam("head_dim", "head_dim", (gguf,), default=same("head_dim"), null=same("head_dim"))


def biases(field: str, key: str, tensor: str) -> HParam:
    """The row of a flag for biases, which GGUF tells by ``tensor``."""
    return HParam(field, key, (), FLAG, False, tensor=f"blk.0.{tensor}.bias")


def linear(gguf: str, hf: str, rows: str, columns: str, **options: Any) -> TensorSpec:
    """The row of a matrix, whose role is its name in GGUF."""
    return TensorSpec(f"{gguf}.weight", f"{hf}.weight", gguf, (rows, columns), **options)


def bias(gguf: str, hf: str, rows: str, **options: Any) -> TensorSpec:
    """The row of a bias."""
    return TensorSpec(f"{gguf}.bias", f"{hf}.bias", "bias", (rows,), **options)


def norm(gguf: str, hf: str, size: str = "n_embd", **options: Any) -> TensorSpec:
    """The row of a norm."""
    return TensorSpec(f"{gguf}.weight", f"{hf}.weight", "norm", (size,), **options)


def experts_enough(values: Values, _config: Mapping[str, Any]) -> str:
    """What is wrong with the number of experts that are used."""
    used, experts = values["n_expert_used"], values["n_expert"]
    return f"is {used} of {experts} experts" if used > max(experts, 1) else ""


def unpermuted(spec: TensorSpec) -> TensorSpec:
    """The row of a family whose RoPE pairs halves of a head in GGUF too."""
    return replace(spec, view=PLAIN)


def has_attention_bias(hp: Hyperparameters, _layer: int) -> bool:
    """Whether the four projections of attention have biases."""
    return hp.attention_bias


def _has_mlp_bias(hp: Hyperparameters, _layer: int) -> bool:
    return hp.mlp_bias


OUTSIDE = (
    linear("token_embd", "model.embed_tokens", "n_vocab", "n_embd"),
    norm("output_norm", "model.norm"),
    TensorSpec("output.weight", HEAD, "output", ("n_vocab", "n_embd")),
)
NORMS = (norm("attn_norm", "input_layernorm"), norm("ffn_norm", "post_attention_layernorm"))
ATTENTION = (
    linear("attn_q", "self_attn.q_proj", "q", "n_embd", view=ROTARY),
    linear("attn_k", "self_attn.k_proj", "kv", "n_embd", view=ROTARY),
    linear("attn_v", "self_attn.v_proj", "kv", "n_embd"),
    linear("attn_output", "self_attn.o_proj", "n_embd", "q"),
)
ATTENTION_BIASES = (
    bias("attn_q", "self_attn.q_proj", "q", when=has_attention_bias, view=ROTARY),
    bias("attn_k", "self_attn.k_proj", "kv", when=has_attention_bias, view=ROTARY),
    bias("attn_v", "self_attn.v_proj", "kv", when=has_attention_bias),
    bias("attn_output", "self_attn.o_proj", "n_embd", when=has_attention_bias),
)
FEED_FORWARD = (
    linear("ffn_gate", "mlp.gate_proj", "n_ff", "n_embd"),
    linear("ffn_up", "mlp.up_proj", "n_ff", "n_embd"),
    linear("ffn_down", "mlp.down_proj", "n_embd", "n_ff"),
)
_FEED_FORWARD_BIASES = (
    bias("ffn_gate", "mlp.gate_proj", "n_ff", when=_has_mlp_bias),
    bias("ffn_up", "mlp.up_proj", "n_ff", when=_has_mlp_bias),
    bias("ffn_down", "mlp.down_proj", "n_embd", when=_has_mlp_bias),
)
LAYER = (*NORMS, *ATTENTION, *FEED_FORWARD, *ATTENTION_BIASES, *_FEED_FORWARD_BIASES)
NO_BIASES = Limit(("attention_bias",), lambda hp: not hp.attention_bias, "no biases")

LLAMA = Family(
    name="llama",
    called="Llama",
    gguf_name="llama",
    config_names=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_type="llama",
    has_experts=False,
    hparams=(
        N_LAYER,
        context(2048),
        N_EMBD,
        N_FF,
        N_HEAD,
        N_HEAD_KV,
        eps(1e-6),
        HEAD_DIM,
        N_VOCAB,
        rotary(),
        ACTIVATION,
        TIED,
        biases("attention_bias", "attention_bias", "attn_q"),
        biases("mlp_bias", "mlp_bias", "ffn_up"),
    ),
    outside=OUTSIDE,
    layer=LAYER,
)

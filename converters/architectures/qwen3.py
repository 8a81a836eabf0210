"""Qwen3, dense: Llama with norms of the heads of Q and K, whose size is given.

Sources: transformers' ``configuration_qwen3.py`` and ``modeling_qwen3.py``, llama.cpp's ``conversion/qwen.py`` and
``src/models/qwen3.cpp``.
"""

from dataclasses import replace

from converters.architectures import llama
from converters.architectures.family import Family
from converters.architectures.qwen2 import ROPES, windows, without_window
from converters.architectures.windows import ALL_FULL, WINDOW_KEYS

QWEN3 = Family(
    name="qwen3",
    called="Qwen3",
    gguf_name="qwen3",
    config_names=("Qwen3ForCausalLM",),
    model_type="qwen3",
    hparams=(
        llama.N_LAYER,
        llama.context(32768),
        llama.N_EMBD,
        llama.N_FF,
        llama.N_HEAD,
        llama.kv_heads(32),
        llama.eps(1e-6),
        replace(llama.HEAD_DIM, default=128),
        replace(llama.N_VOCAB, gguf=()),
        llama.ACTIVATION,
        llama.TIED,
        llama.biases("attention_bias", "attention_bias", "attn_q"),
    ),
    outside=llama.OUTSIDE,
    layer=(
        *llama.NORMS,
        *map(llama.unpermuted, (*llama.ATTENTION, *llama.ATTENTION_BIASES)),
        llama.norm("attn_q_norm", "self_attn.q_norm", "head_dim"),
        llama.norm("attn_k_norm", "self_attn.k_norm", "head_dim"),
        *llama.FEED_FORWARD,
    ),
    ropes=ROPES,
    fixed={"qk_norm": True},
    tells_space_prefix=False,
    derived=windows,
    derived_keys=WINDOW_KEYS,
    limits={"gguf": (ALL_FULL, llama.NO_BIASES)},
    from_gguf=without_window,
)

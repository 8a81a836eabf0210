"""Gemma 3's text tower: windows in five of six layers, two bases of RoPE, norms around both parts of a layer.

Sources: transformers' ``configuration_gemma3.py`` and ``modeling_gemma3.py``, llama.cpp's ``conversion/gemma.py`` and
``src/models/gemma3.cpp``. A vision tower in the same checkpoint is not part of it.
"""

from dataclasses import replace

from converters.architectures import gemma3_fields as fields
from converters.architectures import llama
from converters.architectures.family import Family
from converters.architectures.table import OPTIONAL, TEXT, HParam, Limit, one_of
from converters.tensors.views import FROM_ZERO

GEMMA3 = Family(
    name="gemma3",
    called="Gemma 3",
    gguf_name="gemma3",
    config_names=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_type="gemma3_text",
    default_theta=1000000.0,
    hparams=(
        llama.N_LAYER,
        llama.context(131072),
        llama.N_EMBD,
        llama.N_FF,
        replace(llama.N_HEAD, default=8, check=None),
        llama.kv_heads(4),
        llama.eps(1e-6),
        replace(llama.HEAD_DIM, default=256),
        replace(llama.N_VOCAB, gguf=(), default=262208),
        HParam(
            "activation", "hidden_activation", (), TEXT, "gelu_pytorch_tanh", one_of("activation", "gelu_pytorch_tanh")
        ),
        replace(llama.TIED, default=True),
        llama.biases("attention_bias", "attention_bias", "attn_q"),
        HParam("window", "sliding_window", ("attention.sliding_window",), OPTIONAL, 4096),
        HParam("final_softcap", "final_logit_softcapping", ("final_logit_softcapping",), fields.OPTIONAL_REAL),
    ),
    outside=(llama.OUTSIDE[0], llama.norm("output_norm", "model.norm", view=FROM_ZERO), llama.OUTSIDE[2]),
    layer=(
        llama.norm("attn_norm", "input_layernorm", view=FROM_ZERO),
        llama.norm("post_attention_norm", "post_attention_layernorm", view=FROM_ZERO),
        llama.norm("ffn_norm", "pre_feedforward_layernorm", view=FROM_ZERO),
        llama.norm("post_ffw_norm", "post_feedforward_layernorm", view=FROM_ZERO),
        llama.norm("attn_q_norm", "self_attn.q_norm", "head_dim", view=FROM_ZERO),
        llama.norm("attn_k_norm", "self_attn.k_norm", "head_dim", view=FROM_ZERO),
        *map(llama.unpermuted, (*llama.ATTENTION, *llama.ATTENTION_BIASES)),
        *llama.FEED_FORWARD,
    ),
    ropes=("default", "linear"),
    tells_space_prefix=False,
    fixed={"qk_norm": True, "post_norms": True},
    read_ropes=fields.ropes,
    derived=fields.layers,
    derived_keys=fields.KEYS | {"hidden_act", "mm_tokens_per_image"},  # the first is Gemma 1's; the other of vision
    limits={
        "gguf": (
            Limit(
                ("layer_types", "sliding_window_pattern"),
                fields.has_built_in_layers,
                "every sixth layer with full_attention",
            ),
            Limit(("query_pre_attn_scalar",), fields.has_built_in_scale, "the size of a head"),
            llama.NO_BIASES,
        )
    },
    towers=("language_model.model.", "model.language_model."),
    others=r"^(model\.)?(vision_tower|multi_modal_projector)\.",
    from_gguf=fields.from_gguf,
    kept_modules=(r".*vision_tower\.", r".*multi_modal_projector\."),
    overflows_float16=True,
)

"""Gemma 3's text tower: windows in five of six layers, two bases of RoPE, norms around both parts of a layer.

Sources: transformers' ``configuration_gemma3.py`` and ``modeling_gemma3.py``, llama.cpp's ``conversion/gemma.py`` and
``src/models/gemma3.cpp``. A vision tower in the same checkpoint is not part of it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.architectures import llama, rope
from converters.architectures.family import Family
from converters.architectures.hyperparameters import Hyperparameters, Rope
from converters.architectures.table import OPTIONAL, REAL, TEXT, HParam, Limit, Values, one_of
from converters.architectures.unused_fields import check_unknown_within
from converters.architectures.windows import FULL, SLIDING, typed_layers
from converters.tensors.views import FROM_ZERO
from edge_llama.files.gguf import Header, shortest
from edge_llama.files.json_fields import Fields

_PATTERN = 6  # built into llama.cpp: every sixth layer sees everything
_LOCAL = "rope_local_base_freq"
_N_LAYER_27B = 62  # llama.cpp tells 27B from others by its layers


def _optional_real(fields: Fields, key: str, default: Any) -> float | None:
    return default if fields.content.get(key) is None else fields.real(key, 1.0)


def _layers(fields: Fields, values: Values) -> Mapping[str, Any]:
    n_layer, pattern = values["n_layer"], fields.size("sliding_window_pattern", _PATTERN)
    usual = [FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(n_layer)]
    found = dict(typed_layers(fields, n_layer, usual, values["window"]))
    scale = fields.real("query_pre_attn_scalar", 256) ** -0.5
    return found | {"embedding_scale": values["n_embd"] ** 0.5, "attention_scale": scale}


def _ropes(fields: Fields, values: Values, default_theta: float) -> dict[str, Rope]:
    """As transformers' ``Gemma3TextConfig.convert_rope_params_to_dict``: ``rope_scaling`` adds to the full layers'."""
    places = fields.get("rope_parameters", dict, {})
    check_unknown_within(replace(fields, content=places, called="rope_parameters."), (FULL, SLIDING))
    given = {kind: places.get(kind) or {} for kind in (FULL, SLIDING)}
    for kind, content in given.items():
        if not isinstance(content, dict):
            raise fields.fail("rope_parameters", f"has {content!r:.100} for {kind}, expected an object")
    full = {**given[FULL], **fields.get("rope_scaling", dict, {})}
    n_ctx, theta, local = values["n_ctx"], fields.real("rope_theta", default_theta), fields.real(_LOCAL, 1e4)
    window_rope = rope.rope_within(fields, "rope_parameters", given[SLIDING], n_ctx, local)
    if window_rope.kind != "default":
        raise fields.fail("rope_parameters", f"scales {SLIDING}: {window_rope.kind}", "only full_attention can have it")
    return {"rope": rope.rope_within(fields, "rope_scaling", full, n_ctx, theta), "window_rope": window_rope}


def _is_built_in(hp: Hyperparameters) -> bool:
    every_sixth = tuple((layer + 1) % _PATTERN != 0 for layer in range(hp.n_layer))
    return hp.window is None or hp.window_layers == every_sixth


def _has_built_in_scale(hp: Hyperparameters) -> bool:
    divisor = hp.n_embd // hp.n_head if hp.n_layer == _N_LAYER_27B else hp.head_dim
    return hp.attention_scale is not None and abs(hp.attention_scale * divisor**0.5 - 1) < 1e-6


def _from_gguf(header: Header) -> Mapping[str, Any]:
    n_layer = header.get("gemma3.block_count", int, 0)
    heads, width = header.get("gemma3.attention.head_count", int, 1), header.get("gemma3.embedding_length", int, 0)
    head_dim = header.get("gemma3.attention.key_length", int, width // max(heads, 1))
    pattern = header.get("gemma3.attention.sliding_window_pattern", int, _PATTERN)
    has_window = header.get("gemma3.attention.sliding_window", int, 0) > 0
    return {
        "query_pre_attn_scalar": width // max(heads, 1) if n_layer == _N_LAYER_27B else head_dim,
        "sliding_window_pattern": pattern if has_window else 1,
        _LOCAL: shortest(header.get("gemma3.rope.freq_base_swa", float, 1e4)),
    }


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
        HParam(
            "final_softcap", "final_logit_softcapping", ("final_logit_softcapping",), replace(REAL, read=_optional_real)
        ),
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
    read_ropes=_ropes,
    derived=_layers,
    derived_keys=frozenset(
        {"layer_types", "sliding_window_pattern", "query_pre_attn_scalar", _LOCAL, "hidden_act", "mm_tokens_per_image"}
    ),
    limits={
        "gguf": (
            Limit(("layer_types", "sliding_window_pattern"), _is_built_in, "every sixth layer with full_attention"),
            Limit(("query_pre_attn_scalar",), _has_built_in_scale, "the size of a head"),
            llama.NO_BIASES,
        )
    },
    towers=("language_model.model.", "model.language_model."),
    others=r"^(model\.)?(vision_tower|multi_modal_projector)\.",
    from_gguf=_from_gguf,
)

"""Fields of config.json: published ones are read, what changes nothing is passed over, what nobody knows is refused."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from converters.architectures import ARCHITECTURES
from edge_llama import CheckpointError

FAMILIES = {architecture.config_names[0]: architecture for architecture in ARCHITECTURES}
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CLASSES = {
    "LlamaForCausalLM": transformers.LlamaConfig,
    "MistralForCausalLM": transformers.MistralConfig,
    "MixtralForCausalLM": transformers.MixtralConfig,
    "Qwen2ForCausalLM": transformers.Qwen2Config,
    "Qwen3ForCausalLM": transformers.Qwen3Config,
    "SmolLM3ForCausalLM": transformers.SmolLM3Config,
    "Gemma3ForCausalLM": transformers.Gemma3TextConfig,
    "Llama4ForCausalLM": transformers.Llama4TextConfig,
}


def read(name: str, config: dict[str, Any]) -> Any:
    return FAMILIES[name].read(config, Path("folder"), has_head=True)


def test_every_family_is_here() -> None:
    assert CLASSES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_saves_is_read_and_its_defaults_are_ours(name: str) -> None:
    """All that it writes, and nothing but the sizes: both mean the same."""
    config = CLASSES[name](**SIZES).to_dict()
    assert config["rope_parameters"]
    needed = {"intermediate_size_mlp": 16384} if name == "Llama4ForCausalLM" else {}
    full, sparse = read(name, config), read(name, SIZES | needed)
    assert full == sparse
    assert full.n_ctx == config["max_position_embeddings"]
    assert full.norm_eps == config["rms_norm_eps"]


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2": (
        "LlamaForCausalLM",
        {
            "attention_dropout": 0.0,
            "initializer_range": 0.041666666666666664,
            "is_llama_config": True,
            "pretraining_tp": 1,
            "rope_interleaved": False,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            "transformers_version": "4.42.3",
            "use_cache": True,
        },
    ),
    "Unsloth's": (
        "LlamaForCausalLM",
        {"unsloth_fixed": True, "unsloth_version": "2025.6.1", "pad_token_id": 128004, "_name_or_path": "a/b"},
    ),
    "Falcon 3": ("LlamaForCausalLM", {"activation": "swiglu", "head_dim": 32, "torch_dtype": "bfloat16"}),
    "Vicuna": ("LlamaForCausalLM", {"max_sequence_length": 2048, "temperature": 0.9, "top_p": 0.6, "do_sample": True}),
    "Llama 1": ("LlamaForCausalLM", {"auto_map": {"AutoModelForCausalLM": "m.M"}, "max_length": 4096}),
    "Mistral 7B": ("MistralForCausalLM", {"sliding_window": None, "_attn_implementation_autoset": True}),
    "Mixtral": ("MixtralForCausalLM", {"output_router_logits": True, "router_aux_loss_coef": 0.02}),
    "R1's Qwen": ("Qwen2ForCausalLM", {"sliding_window": 4096, "max_window_layers": 21, "use_mrope": False}),
    "SmolLM3": (
        "SmolLM3ForCausalLM",
        {"max_window_layers": 28, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0], "pretraining_tp": 2},
    ),
    "Gemma 3 270M": (
        "Gemma3ForCausalLM",
        {
            "_sliding_window_pattern": 6,
            "attn_logit_softcapping": None,
            "rope_local_base_freq": 10000.0,
            "use_bidirectional_attention": False,
            "layer_types": ["sliding_attention"] * 4,
        },
    ),
    "Gemma 3 4B": (
        "Gemma3ForCausalLM",
        {"mm_tokens_per_image": 256, "boi_token_index": 255999, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields_pass(name: str) -> None:
    family, fields = PUBLISHED[name]
    read(family, SIZES | fields)


UNKNOWN: dict[str, Any] = {
    "residual_multiplier": 0.22,
    "logit_scale": 8.0,
    "scale_emb": 12,
    "bias": True,
    "sliding_window": 4096,
    "num_local_experts": 8,
    "attn_logit_softcapping": 50.0,
    "position_embedding_type": "alibi",
    "clip_qkv": 8.0,
    "per_layer_config": {"0": {"num_attention_heads": 2}},
    "a_field_of_tomorrow": [1],
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_what_no_table_knows_is_refused_by_name(key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} is .*, and it isn't known what that changes"):
        read("LlamaForCausalLM", SIZES | {key: UNKNOWN[key]})
    for nothing in (None, False, 0, [], {}, ""):
        read("LlamaForCausalLM", SIZES | {key: nothing})


def test_text_that_is_read_both_ways_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is_causal is False"):
        read("LlamaForCausalLM", SIZES | {"is_causal": False})


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_quantized_weights_are_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is set: these weights are quantized"):
        read("Qwen3ForCausalLM", SIZES | {key: {"bits": 4}})

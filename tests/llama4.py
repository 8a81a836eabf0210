"""Small Llama 4 checkpoints with everything that the published folders have, and the same in Meta's form.

Weights are random, but scaled so that logits spread over a few units and experts really differ. ``changes`` are fields
of ``text_config`` and ``vision`` fields of ``vision_config``, by Hugging Face's names; shapes follow from the two.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import DTYPES, write_json, write_weights
from numpy.typing import NDArray
from vocabularies import llama4_tokenizer

Weights = dict[str, NDArray[np.float32]]

K_QUANTS: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "intermediate_size_mlp": 512, "head_dim": 64}
"""Changes to a width at which K-quants occur; small otherwise."""
SMALL_MAVERICK = {
    "num_local_experts": 8,
    "interleave_moe_layer_step": 2,
    "intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "use_qk_norm": False,
    "rope_scaling": None,
}
"""Changes to a text tower of Maverick's form."""
ODD = {
    "attention_chunk_size": 16,
    "floor_scale": 8,
    "attn_scale": 0.3,
    "no_rope_layers": [1, 0, 1, 1],
    "layer_types": ["chunked_attention", "full_attention", "chunked_attention", "chunked_attention"],
}
"""Changes to what GGUF refuses: short chunks, another temperature, other layers without positions."""

_TEXT: dict[str, Any] = {
    "model_type": "llama4_text",
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 1,
    "intermediate_size": 96,
    "intermediate_size_mlp": 192,
    "no_rope_layers": [],
    "num_attention_heads": 4,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "tie_word_embeddings": False,
    "use_cache": True,
}
SCOUT = {
    "num_local_experts": 4,
    "use_qk_norm": True,
    "max_position_embeddings": 10485760,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
_MAVERICK = {
    "num_local_experts": 128,
    "interleave_moe_layer_step": 2,
    "intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "use_qk_norm": False,
    "max_position_embeddings": 1048576,
    "rope_scaling": None,
}
VISION: dict[str, Any] = {
    "model_type": "llama4_vision_model",
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 48,
    "image_size": 56,
    "initializer_range": 0.02,
    "intermediate_size": 192,
    "multi_modal_projector_bias": False,
    "norm_eps": 1e-5,
    "num_attention_heads": 3,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_dropout": 0.0,
    "projector_input_dim": 80,
    "projector_output_dim": 80,
    "rope_theta": 10000,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "vision_output_dim": 80,
}


def scout(
    folder: Path,
    *,
    dtype: str = "F32",
    seed: int = 0,
    shards: int = 1,
    vision: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Scout's form: experts in every layer, QK norm, scaled rotary frequencies, two towers."""
    return write(folder, config(SCOUT | changes, vision or {}), dtype=dtype, seed=seed, shards=shards)


def maverick(
    folder: Path,
    *,
    dtype: str = "F32",
    seed: int = 0,
    shards: int = 1,
    vision: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Maverick's form: 128 experts in every second layer, the others dense, no QK norm.

    llama.cpp takes QK norm from the number of experts: a test with fewer must ask for ``use_qk_norm=True``.
    """
    return write(folder, config(_MAVERICK | changes, vision or {}), dtype=dtype, seed=seed, shards=shards)


def text_only(folder: Path, *, dtype: str = "F32", seed: int = 0, shards: int = 1, **changes: Any) -> Path:
    """``Llama4ForCausalLM``: Scout's text tower alone, its names without prefix."""
    return write(folder, config(SCOUT | changes, None), dtype=dtype, seed=seed, shards=shards)


def config(changes: Mapping[str, Any], vision: Mapping[str, Any] | None) -> dict[str, Any]:
    """``config.json`` as published, in the spelling before transformers 5; ``vision`` None: the text tower's alone."""
    tokenizer = llama4_tokenizer()
    text = _TEXT | {"vocab_size": tokenizer.get_vocab_size()} | _token_ids() | changes
    step = text["interleave_moe_layer_step"]
    text.setdefault("moe_layers", list(range(step - 1, text["num_hidden_layers"], step)))
    if vision is None:
        return {"architectures": ["Llama4ForCausalLM"], **text}
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "boi_token_index": tokenizer.token_to_id("<|image_start|>"),
        "eoi_token_index": tokenizer.token_to_id("<|image_end|>"),
        "image_token_index": tokenizer.token_to_id("<|patch|>"),
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
        "vision_config": VISION | vision,
    }


def _token_ids() -> dict[str, Any]:
    id_of = llama4_tokenizer().token_to_id
    return {
        "bos_token_id": id_of("<|begin_of_text|>"),
        "eos_token_id": [id_of("<|end_of_text|>"), id_of("<|eom|>"), id_of("<|eot|>")],
        "pad_token_id": id_of("<|finetune_right_pad|>"),
    }


def write(folder: Path, settings: dict[str, Any], *, dtype: str, seed: int, shards: int) -> Path:
    """The whole folder for such a ``config.json``, with random weights."""
    folder.mkdir(parents=True)
    write_settings(folder, settings, dtype)
    write_weights(folder, weights(settings, seed), dtype, shards)
    return folder


def write_settings(folder: Path, settings: dict[str, Any], dtype: str) -> None:
    """All files but the weights'."""
    write_json(folder / "config.json", **settings, torch_dtype=DTYPES[dtype])
    write_json(folder / "generation_config.json", **_token_ids(), do_sample=True, temperature=0.6, top_p=0.9)
    _write_tokenizer(folder)
    if "vision_config" in settings:
        _write_processor(folder, settings["vision_config"])


def _write_tokenizer(folder: Path) -> None:
    from transformers.models.llama4.processing_llama4 import chat_template  # noqa: PLC0415 - slow

    llama4_tokenizer().save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>", "pad_token": "<|finetune_right_pad|>"}
    write_json(folder / "special_tokens_map.json", **special)
    write_json(
        folder / "tokenizer_config.json",
        **special,
        tokenizer_class="PreTrainedTokenizerFast",
        processor_class="Llama4Processor",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=10485760,
        clean_up_tokenization_spaces=False,
    )
    (folder / "chat_template.jinja").write_text(chat_template, "utf-8")


def _write_processor(folder: Path, vision: dict[str, Any]) -> None:
    write_json(
        folder / "processor_config.json",
        fake_image_token="<|image|>",
        image_token="<|image|>",
        patch_size=vision["patch_size"],
        pixel_shuffle_ratio=vision["pixel_shuffle_ratio"],
        processor_class="Llama4Processor",
    )
    write_json(
        folder / "preprocessor_config.json",
        image_processor_type="Llama4ImageProcessorFast",
        processor_class="Llama4Processor",
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        max_patches=16,
        resample=2,
        rescale_factor=1 / 255,
        resize_to_max_canvas=False,
        size={"height": vision["image_size"], "width": vision["image_size"]},
    )


def weights(settings: dict[str, Any], seed: int) -> Weights:
    """Random weights under Hugging Face's names, float32; biases and norms differ from 0 and 1."""
    rng = np.random.default_rng(seed)

    def drawn(shape: tuple[int, ...], centre: float, deviation: float) -> NDArray[np.float32]:
        return (centre + deviation * rng.standard_normal(shape)).astype(np.float32)

    return {name: drawn(*how) for name, how in tensors(settings)}


_Drawn = tuple[tuple[int, ...], float, float]
"""A shape, the mean and the standard deviation of what fills it."""


def _matrix(rows: int, columns: int, gain: float = 1.0) -> _Drawn:
    return (rows, columns), 0.0, gain / columns**0.5


def _norm(width: int) -> _Drawn:
    return (width,), 1.0, 0.1


def _bias(width: int) -> _Drawn:
    return (width,), 0.0, 0.1


def tensors(settings: dict[str, Any]) -> Iterator[tuple[str, _Drawn]]:
    """Names under Hugging Face, and what fills them."""
    if "vision_config" not in settings:
        yield from _text_tensors(settings)
        return
    text, vision = settings["text_config"], settings["vision_config"]
    for name, how in _text_tensors(text):
        yield f"language_model.{name}", how
    for name, how in _vision_tensors(vision):
        yield f"vision_model.{name}", how
    yield "multi_modal_projector.linear_1.weight", _matrix(text["hidden_size"], vision["vision_output_dim"])


def _text_tensors(text: dict[str, Any]) -> Iterator[tuple[str, _Drawn]]:
    width, head = text["hidden_size"], text["head_dim"]
    q, kv = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", _matrix(text["vocab_size"], width, 3.0)
    yield "model.norm.weight", _norm(width)
    if not text["tie_word_embeddings"]:
        yield "lm_head.weight", _matrix(text["vocab_size"], width, 3.0)
    for layer in range(text["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", _norm(width)
        yield prefix + "self_attn.q_proj.weight", _matrix(q, width, 2.0)
        yield prefix + "self_attn.k_proj.weight", _matrix(kv, width, 2.0)
        yield prefix + "self_attn.v_proj.weight", _matrix(kv, width)
        yield prefix + "self_attn.o_proj.weight", _matrix(width, q)
        yield prefix + "post_attention_layernorm.weight", _norm(width)
        experts = _moe_tensors(text) if layer in text["moe_layers"] else _mlp(width, text["intermediate_size_mlp"])
        for name, how in experts:
            yield f"{prefix}feed_forward.{name}", how


def _moe_tensors(text: dict[str, Any]) -> Iterator[tuple[str, _Drawn]]:
    """The experts' matrices stand [expert, in, out] and have no suffix."""
    experts, width, ffn = text["num_local_experts"], text["hidden_size"], text["intermediate_size"]
    yield "router.weight", _matrix(experts, width, 2.0)
    yield "experts.gate_up_proj", ((experts, width, 2 * ffn), 0.0, width**-0.5)
    yield "experts.down_proj", ((experts, ffn, width), 0.0, 2 * ffn**-0.5)
    for name, how in _mlp(width, ffn):
        yield f"shared_expert.{name}", how


def _mlp(width: int, ffn: int) -> Iterator[tuple[str, _Drawn]]:
    yield "gate_proj.weight", _matrix(ffn, width)
    yield "up_proj.weight", _matrix(ffn, width)
    yield "down_proj.weight", _matrix(width, ffn)


def _vision_tensors(vision: dict[str, Any]) -> Iterator[tuple[str, _Drawn]]:
    width, ffn, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    yield "class_embedding", _bias(width)
    yield "positional_embedding_vlm", ((patches + 1, width), 0.0, 0.5)
    yield "patch_embedding.linear.weight", _matrix(width, vision["num_channels"] * patch**2, 3.0)
    for layer in range(vision["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", _norm(width)
        yield prefix + "input_layernorm.bias", _bias(width)
        for part in "qkvo":
            yield f"{prefix}self_attn.{part}_proj.weight", _matrix(width, width, 2.0 if part in "qk" else 1.0)
            yield f"{prefix}self_attn.{part}_proj.bias", _bias(width)
        yield prefix + "post_attention_layernorm.weight", _norm(width)
        yield prefix + "post_attention_layernorm.bias", _bias(width)
        yield prefix + "mlp.fc1.weight", _matrix(ffn, width)
        yield prefix + "mlp.fc1.bias", _bias(ffn)
        yield prefix + "mlp.fc2.weight", _matrix(width, ffn)
        yield prefix + "mlp.fc2.bias", _bias(width)
    for name in ("layernorm_pre", "layernorm_post"):
        yield f"{name}.weight", _norm(width)
        yield f"{name}.bias", _bias(width)
    # The adapter reads four patches of ratio 0.5 at once: that width is the FFN's.
    yield "vision_adapter.mlp.fc1.weight", _matrix(vision["projector_input_dim"], ffn, 2.0)
    yield "vision_adapter.mlp.fc2.weight", _matrix(vision["projector_output_dim"], vision["projector_output_dim"], 2.0)


_META_LAYER = {
    "input_layernorm.weight": ("attention_norm.weight", None),
    "self_attn.q_proj.weight": ("attention.wq.weight", 0),
    "self_attn.k_proj.weight": ("attention.wk.weight", 0),
    "self_attn.v_proj.weight": ("attention.wv.weight", 0),
    "self_attn.o_proj.weight": ("attention.wo.weight", 1),
    "post_attention_layernorm.weight": ("ffn_norm.weight", None),
    "feed_forward.router.weight": ("feed_forward.router_DE", None),
    "feed_forward.experts.down_proj": ("feed_forward.experts.w2", 1),
    **{
        f"feed_forward.{expert}{theirs}_proj.weight": (f"feed_forward.{expert}{ours}.weight", axis)
        for expert in ("", "shared_expert.")
        for theirs, ours, axis in (("gate", "w1", 0), ("down", "w2", 1), ("up", "w3", 0))
    },
}
_META_BLOCK = {
    **{f"self_attn.{x}_proj.weight": (f"attn.w{x}.weight", int(x == "o")) for x in "qkvo"},
    **{f"self_attn.{x}_proj.bias": (f"attn.w{x}.bias", None if x == "o" else 0) for x in "qkvo"},
    **{f"input_layernorm.{x}": (f"ln_1.{x}", None) for x in ("weight", "bias")},
    **{f"post_attention_layernorm.{x}": (f"ln_2.{x}", None) for x in ("weight", "bias")},
    "mlp.fc1.weight": ("mlp.c_fc.weight", 0),
    "mlp.fc1.bias": ("mlp.c_fc.bias", 0),
    "mlp.fc2.weight": ("mlp.c_proj.weight", 1),
    "mlp.fc2.bias": ("mlp.c_proj.bias", None),
}
_ENCODER = "vision_embeddings.vision_encoder"
_META_OUTSIDE = {
    "model.embed_tokens.weight": ("tok_embeddings.weight", 0),
    "model.norm.weight": ("norm.weight", None),
    "lm_head.weight": ("output.weight", 0),
    "vision_model.class_embedding": (f"{_ENCODER}.class_embedding", None),
    "vision_model.positional_embedding_vlm": (f"{_ENCODER}.positional_embedding_vlm", None),
    "vision_model.patch_embedding.linear.weight": (f"{_ENCODER}.conv1._linear.weight", 0),
    **{
        f"vision_model.layernorm_{at}.{x}": (f"{_ENCODER}.ln_{at}.{x}", None)
        for at in ("pre", "post")
        for x in ("weight", "bias")
    },
    "vision_model.vision_adapter.mlp.fc1.weight": ("vision_embeddings.vision_adapter.mlp.c_fc.weight", 0),
    "vision_model.vision_adapter.mlp.fc2.weight": ("vision_embeddings.vision_adapter.mlp.c_proj.weight", 1),
    "multi_modal_projector.linear_1.weight": ("vision_projection.weight", 0),
}
_FUSED = {
    "attention_norm.weight": "attention.wqkv.layer_norm_weight",
    "feed_forward.w2.weight": "feed_forward.mlp.fc2_weight",
    "feed_forward.experts.w1": "feed_forward.experts.moe_w_in_eD_F",
    "feed_forward.experts.w2": "feed_forward.experts.moe_w_out_eF_D",
    "feed_forward.experts.w3": "feed_forward.experts.moe_w_swiglu_eD_F",
    "feed_forward.shared_expert.w1.weight": "feed_forward.w_in_shared_FD.weight",
    "feed_forward.shared_expert.w2.weight": "feed_forward.w_out_shared_DF.weight",
    "feed_forward.shared_expert.w3.weight": "feed_forward.w_swiglu_FD.weight",
}


def meta(folder: Path, source: Path, *, fused: bool, shards: int = 1) -> Path:
    """The weights of ``source``, a folder of this module, as Meta publishes them; ``fused`` or under split names.

    Needs as many key-value heads as shards, and ``intermediate_size_mlp`` twice ``intermediate_size``, as Meta's have.
    The fused form has what training left in Meta's files: statistics, and ``_extra_state`` in byte streams.
    """
    import torch  # noqa: PLC0415 - slow
    from meta_folders import small_ranks  # noqa: PLC0415 - imports torch
    from safetensors.torch import load_file  # noqa: PLC0415

    settings = json.loads((source / "config.json").read_text())
    text = settings.get("text_config", settings)
    files = sorted(source.glob("*.safetensors"))
    found = {name.removeprefix("language_model."): tensor for path in files for name, tensor in load_file(path).items()}
    found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(small_ranks(llama4_tokenizer()))
    write_json(folder / "params.json", **_params(text, settings.get("vision_config")))
    named = [entry for name, tensor in found.items() for entry in _meta_entries(name, tensor)]
    for shard in range(shards):
        part = {name: _cut(tensor, axis, shard, shards) for name, tensor, axis in named}
        part = _fuse(part, text) if fused else part
        part["rope.freqs"] = torch.ones(text["head_dim"] // 2)
        torch.save(part, folder / f"consolidated.{shard:02}.pth")
    return folder


def _meta_entries(name: str, tensor: Any) -> Iterator[tuple[str, Any, int | None]]:
    """Name, tensor and the axis along which shards cut it; None: each holds the whole."""
    if name in _META_OUTSIDE:
        renamed, axis = _META_OUTSIDE[name]
        yield renamed, tensor, axis
        return
    match = re.fullmatch(r"(vision_model\.)?model\.layers\.(\d+)\.(.+)", name)
    assert match, name
    prefix = f"{_ENCODER}.transformer.resblocks" if match[1] else "layers"
    if match[3] == "feed_forward.experts.gate_up_proj":
        for renamed, half in zip(("w1", "w3"), tensor.chunk(2, -1), strict=True):
            yield f"layers.{match[2]}.feed_forward.experts.{renamed}", half, 2
        return
    renamed, axis = (_META_BLOCK if match[1] else _META_LAYER)[match[3]]
    yield f"{prefix}.{match[2]}.{renamed}", tensor.T if renamed.endswith("router_DE") else tensor, axis


def _cut(tensor: Any, axis: int | None, shard: int, shards: int) -> Any:
    return (tensor if axis is None else tensor.chunk(shards, axis)[shard]).contiguous().clone()


def _fuse(part: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """One shard under the names that Meta trained with."""
    import torch  # noqa: PLC0415 - slow

    for layer in range(text["num_hidden_layers"]):
        at = f"layers.{layer}."
        is_moe = layer in text["moe_layers"]
        part[at + "attention.wqkv.weight"] = torch.cat([part.pop(f"{at}attention.w{x}.weight") for x in "qkv"])
        if not is_moe:
            halves = [part.pop(f"{at}feed_forward.{x}.weight") for x in ("w1", "w3")]
            part[at + "feed_forward.mlp.fc1_weight"] = torch.cat(halves)
        norm = "feed_forward.norm.weight" if is_moe else "feed_forward.mlp.layer_norm_weight"
        for old, new in (_FUSED | {"ffn_norm.weight": norm}).items():
            if at + old in part:
                whole = part.pop(at + old)
                part[at + new] = whole.flatten(0, 1) if whole.ndim == 3 else whole
        for name in ("attention.wqkv", "attention.wo"):
            part[f"{at}{name}._extra_state"] = io.BytesIO(b"state")
        if is_moe:
            part[at + "feed_forward.global_gate_stats_3E"] = torch.ones(3, text["num_local_experts"])
            part[at + "feed_forward.running_gate_stats_3E"] = torch.ones(3, text["num_local_experts"])
            part[at + "feed_forward.expert_activation_DE"] = torch.ones(text["hidden_size"], text["num_local_experts"])
    return part


def _params(text: dict[str, Any], vision: dict[str, Any] | None) -> dict[str, Any]:
    """``params.json``: the FFN's widths only by the factors from which Meta's code computes them."""
    width, dense, multiple_of = text["hidden_size"], text["intermediate_size_mlp"], 32
    assert (dense % (2 * multiple_of), text["intermediate_size"]) == (0, dense // 2), "Meta's form has no such widths"
    scaling = text["rope_scaling"]
    params = {
        "dim": width,
        "n_layers": text["num_hidden_layers"],
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "vocab_size": text["vocab_size"],
        "multiple_of": multiple_of,
        "ffn_exp": 4.0,
        # Half a step below the width, so that rounding up to the next multiple finds it.
        "ffn_dim_multiplier": (dense - multiple_of / 2) / (8 * width / 3),
        "norm_eps": text["rms_norm_eps"],
        "rope_theta": text["rope_theta"],
        "use_scaled_rope": scaling is not None,
        "attention_chunk_size": text["attention_chunk_size"],
        "nope_layer_interval": 4,
        "use_qk_norm": text["use_qk_norm"],
        "attn_temperature_tuning": text["attn_temperature_tuning"],
        "floor_scale": float(text["floor_scale"]),
        "attn_scale": text["attn_scale"],
        "moe_args": {
            "num_experts": text["num_local_experts"],
            "capacity_factor": 1.0,
            "auto_scale_F": True,
            "top_k": text["num_experts_per_tok"],
            "interleave_moe_layer_step": text["interleave_moe_layer_step"],
        },
    }
    # Meta's published files leave the two out where they are 16 and 1.
    if scaling and (scaling["factor"], scaling["high_freq_factor"]) != (16.0, 1.0):
        params |= {"rope_scaling_factor": scaling["factor"], "rope_high_freq_factor": scaling["high_freq_factor"]}
    return params | ({"vision_args": _vision_args(vision)} if vision else {})


def _vision_args(vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": {"height": vision["image_size"], "width": vision["image_size"]},
        "patch_size": {"height": vision["patch_size"], "width": vision["patch_size"]},
        "dim": vision["hidden_size"],
        "n_layers": vision["num_hidden_layers"],
        "n_heads": vision["num_attention_heads"],
        "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        "output_dim": vision["vision_output_dim"],
        "pixel_shuffle_ratio": vision["pixel_shuffle_ratio"],
    }

"""Llama 4's text tower: a mixture of experts, some layers without rotary embedding, attention in chunks.

Sources: transformers' ``modeling_llama4.py`` for what a checkpoint means, llama.cpp's ``src/models/llama4.cpp`` and
``conversion/llama.py`` for what a GGUF file must hold. Much of what config.json says has no key in GGUF: llama.cpp
computes with one value that is built in. A checkpoint that has another is sound, but no GGUF file can hold it.
"""

from typing import Any

from converters.architectures import llama
from converters.architectures.family import Family
from converters.architectures.hyperparameters import Hyperparameters
from converters.architectures.nope import KEYS, every, integers, is_built_in, rope_layers
from converters.architectures.table import FLAG, OPTIONAL, REAL, TEXT, HParam, Kind, Limit, TensorSpec, Values
from converters.tensors.views import Transposed
from edge_llama.files.gguf import Header, boolean, u32
from edge_llama.files.gguf_limits import LLAMA4_NOPE_INTERVAL
from edge_llama.files.json_fields import Fields

_KINDS = ("gate", "up", "down")
_ROUTED = "feed_forward.experts."
_CHUNK, _FLOOR_SCALE, _ATTN_SCALE = 8192, 8192, 0.1
_WITHOUT_QK_NORM = 128  # llama.cpp tells Maverick from Scout by its experts


def _is_dense(hp: Hyperparameters, layer: int) -> bool:
    return not hp.has_experts(layer)


def _feed_forward(kind: str, name: str, hf: str, when: Any, width: str) -> TensorSpec:
    sizes = ("n_embd", width) if kind == "down" else (width, "n_embd")
    return TensorSpec(f"ffn_{kind}{name}.weight", f"feed_forward.{hf}{kind}_proj.weight", f"ffn_{kind}", sizes, when)


# A folder's experts multiply from the right, and gate and up stand side by side in one matrix.
_VIEWS = {
    "gate": Transposed(f"{_ROUTED}gate_up_proj", 0, 2),
    "up": Transposed(f"{_ROUTED}gate_up_proj", 1, 2),
    "down": Transposed(f"{_ROUTED}down_proj"),
}
_EXPERTS = tuple(
    TensorSpec(
        f"ffn_{kind}_exps.weight",
        f"{_ROUTED}{kind}_proj.weight",
        f"ffn_{kind}",
        ("n_expert", "n_embd", "n_ff") if kind == "down" else ("n_expert", "n_ff", "n_embd"),
        Hyperparameters.has_experts,
        _VIEWS[kind],
    )
    for kind in _KINDS
)


def _whole_number(fields: Fields, key: str, default: Any) -> int:
    value = fields.content.get(key, default)
    if not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise fields.fail(key, f"is {value!r:.100}, expected an integer of at least 0")
    return int(value)


WHOLE = Kind(_whole_number, u32, lambda header, key: header.get(key, int, 0))
"""From 0 on; true is 1: temperature tuning was published as 4, and as true."""
TRUTH = Kind(
    lambda fields, key, default: bool(_whole_number(fields, key, default)), boolean, lambda _header, _key: True
)


def _layer_types(rotary: tuple[bool, ...], chunk: int | None) -> tuple[str, ...]:
    return tuple("chunked_attention" if rope and chunk is not None else "full_attention" for rope in rotary)


def _derived(fields: Fields, values: Values) -> dict[str, Any]:
    n_layer, chunk = values["n_layer"], values["chunk_size"]
    step = values["moe_step"]
    listed = integers(fields, "moe_layers")
    layers = tuple(range(step - 1, n_layer, step)) if listed is None else listed
    rotary = rope_layers(fields, n_layer)
    types = fields.content.get("layer_types") or _layer_types(rotary, chunk)
    return {
        "moe_layers": layers,
        "moe_step": layers[0] + 1 if layers else step,
        "rope_layers": rotary,
        "layer_types": tuple(map(str, types)) if isinstance(types, list | tuple) else (str(types),),
    }


_LIMITS = (
    Limit(("num_hidden_layers",), lambda hp: hp.n_layer >= LLAMA4_NOPE_INTERVAL, f"{LLAMA4_NOPE_INTERVAL} or more"),
    Limit(("num_local_experts",), lambda hp: hp.n_expert > 0, "at least one expert"),
    Limit(("hidden_act",), lambda hp: hp.activation in ("silu", "swish"), "silu"),
    Limit(("attention_bias",), lambda hp: not hp.attention_bias, "no biases"),
    Limit(
        ("use_qk_norm",),
        lambda hp: hp.use_qk_norm == (hp.n_expert != _WITHOUT_QK_NORM),
        f"false with {_WITHOUT_QK_NORM} experts, true with any other number",
    ),
    Limit(("attention_chunk_size",), lambda hp: hp.chunk_size == _CHUNK, f"{_CHUNK}"),
    Limit(("attn_temperature_tuning",), lambda hp: hp.has_temperature, "true"),
    Limit(("floor_scale",), lambda hp: hp.floor_scale == _FLOOR_SCALE, f"{_FLOOR_SCALE}"),
    Limit(("attn_scale",), lambda hp: hp.attn_scale == _ATTN_SCALE, f"{_ATTN_SCALE}"),
    Limit(KEYS, lambda hp: is_built_in(hp.rope_layers), "every fourth layer without"),
    Limit(
        ("layer_types",),
        lambda hp: hp.layer_types == _layer_types(every(LLAMA4_NOPE_INTERVAL, hp.n_layer), _CHUNK),
        "full_attention in every fourth layer, chunked_attention in the others",
    ),
    Limit(
        ("moe_layers",),
        lambda hp: hp.moe_layers == tuple(range(hp.moe_step - 1, hp.n_layer, hp.moe_step)),
        "every layer, or every second, third ...",
    ),
)
_SILU = Limit(("hidden_act",), lambda hp: hp.activation in ("silu", "swish"), "silu")


def _from_gguf(header: Header) -> dict[str, Any]:
    return {"use_qk_norm": header.get("llama4.expert_count", int, 0) != _WITHOUT_QK_NORM}


LLAMA4 = Family(
    name="llama4",
    called="Llama 4",
    gguf_name="llama4",
    config_names=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
    model_type="llama4_text",
    default_theta=500000.0,
    hparams=(
        llama.N_LAYER,
        llama.context(131072),
        llama.N_EMBD,
        HParam("n_ff_dense", "intermediate_size_mlp", ("feed_forward_length",)),
        llama.N_HEAD,
        llama.kv_heads(8),
        llama.eps(1e-5),
        HParam(
            "head_dim",
            "head_dim",
            ("attention.key_length", "attention.value_length"),
            default=128,
            check=llama.even,
            null=llama.head_dim,
        ),
        llama.N_VOCAB,
        llama.rotary(),
        HParam("n_ff", "intermediate_size", ("expert_feed_forward_length",)),
        HParam("n_expert", "num_local_experts", ("expert_count",), WHOLE, 16),
        HParam("n_expert_used", "num_experts_per_tok", ("expert_used_count",), default=1, check=llama.experts_enough),
        HParam("moe_step", "interleave_moe_layer_step", ("interleave_moe_layer_step",), default=1),
        HParam("activation", "hidden_act", (), TEXT, "silu"),
        llama.TIED,
        llama.biases("attention_bias", "attention_bias", "attn_q"),
        HParam("use_qk_norm", "use_qk_norm", (), FLAG, True),
        HParam("chunk_size", "attention_chunk_size", (), OPTIONAL, _CHUNK, null=lambda _values: None),
        HParam("has_temperature", "attn_temperature_tuning", (), TRUTH, True),
        HParam("floor_scale", "floor_scale", (), REAL, _FLOOR_SCALE),
        HParam("attn_scale", "attn_scale", (), REAL, _ATTN_SCALE),
    ),
    outside=llama.OUTSIDE,
    layer=(
        *llama.NORMS,
        *(llama.unpermuted(spec) for spec in (*llama.ATTENTION, *llama.ATTENTION_BIASES)),
        *(_feed_forward(kind, "", "", _is_dense, "n_ff_dense") for kind in _KINDS),
        *(_feed_forward(kind, "_shexp", "shared_expert.", Hyperparameters.has_experts, "n_ff") for kind in _KINDS),
        TensorSpec(
            "ffn_gate_inp.weight",
            "feed_forward.router.weight",
            "router",
            ("n_expert", "n_embd"),
            Hyperparameters.has_experts,
        ),
        *_EXPERTS,
    ),
    derived=_derived,
    derived_keys=frozenset({"moe_layers", "layer_types", *KEYS}),
    limits={"gguf": _LIMITS, "onnx": (_SILU,)},
    towers=("language_model.model.",),
    others=r"^(vision_model|multi_modal_projector)\.",
    from_gguf=_from_gguf,
    # Of Q and K vLLM reorders the rows; not those of packed ones, or not those of their scales, in versions that are in
    # use (github.com/vllm-project/vllm/pull/34471): answers are nonsense. Published checkpoints leave attention out.
    kept_roles=frozenset({"attn_q", "attn_k", "attn_v", "attn_output"}),
    kept_modules=(r".*self_attn\.", r".*\.router$", r".*vision_model\.", r".*multi_modal_projector\."),
)

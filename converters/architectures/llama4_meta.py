"""Llama 4 as Meta publishes it: params.json and its names, in Hugging Face's terms.

Source: github.com/meta-llama/llama-models, ``models/llama4``: ``args.py`` for what the fields mean, the load hooks of
``model.py``, ``moe.py`` and ``ffn.py`` for what tensors under the names of training hold. Rotary embedding pairs
neighbouring rows in both, so no rows are reordered. The vision tower's tensors get Hugging Face's names too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from converters.architectures.family import MAX_LAYERS
from converters.architectures.llama4_vision import gguf_name
from converters.architectures.llama_families import LLAMA4_TOKENS, Tokens
from converters.architectures.llama_meta import OUTSIDE, MetaLlama
from converters.checkpoint import Tensor, config_fields
from converters.metadata.vocabulary import Vocabulary
from converters.tensors.joined import joined
from converters.tensors.resampled import resampled
from converters.tensors.split import rows
from converters.tensors.transposed import transposed
from edge_llama.errors import CheckpointError
from edge_llama.files.json_fields import Fields
from edge_llama.files.llama4_vision_shapes import VisionSizes

_CONTEXT, _SCALED_CONTEXT = 1 << 20, 10 << 20  # Maverick's and Scout's, as published; params.json doesn't say
_REMEDY = "give the folder of a Llama 4 in full precision, or its Hugging Face version"
_ROUTER, _EXPERTS = "feed_forward.router_DE", "feed_forward.experts"
_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    **{f"attention.w{part}.weight": f"self_attn.{part}_proj.weight" for part in "qkvo"},
    **{
        f"feed_forward.{kind}{ours}.weight": f"feed_forward.{kind}{theirs}_proj.weight"
        for kind in ("", "shared_expert.")
        for ours, theirs in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
    },
}
_TRAINED = {  # names that the code trained with
    "attention.wqkv.layer_norm_weight": "attention_norm.weight",
    "feed_forward.mlp.layer_norm_weight": "ffn_norm.weight",
    "feed_forward.norm.weight": "ffn_norm.weight",
    "feed_forward.mlp.fc2_weight": "feed_forward.w2.weight",
    "feed_forward.w_in_shared_FD.weight": "feed_forward.shared_expert.w1.weight",
    "feed_forward.w_out_shared_DF.weight": "feed_forward.shared_expert.w2.weight",
    "feed_forward.w_swiglu_FD.weight": "feed_forward.shared_expert.w3.weight",
    "feed_forward.experts.moe_w_in_eD_F": "feed_forward.experts.w1",
    "feed_forward.experts.moe_w_out_eF_D": "feed_forward.experts.w2",
    "feed_forward.experts.moe_w_swiglu_eD_F": "feed_forward.experts.w3",
}
_TOGETHER = {  # several in one, each shard's parts below each other
    "attention.wqkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
    "feed_forward.mlp.fc1_weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}
_BIAS = ("weight", "bias")
_ENCODER, _ADAPTER = "vision_embeddings.vision_encoder.", "vision_embeddings.vision_adapter."
_BLOCK = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in (
        *((f"attn.w{part}", f"self_attn.{part}_proj") for part in "qkvo"),
        ("ln_1", "input_layernorm"),
        ("ln_2", "post_attention_layernorm"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    )
    for kind in _BIAS
}
_VISION = {
    f"{_ENCODER}class_embedding": "vision_model.class_embedding",
    f"{_ENCODER}positional_embedding_vlm": "vision_model.positional_embedding_vlm",
    f"{_ENCODER}conv1._linear.weight": "vision_model.patch_embedding.linear.weight",
    **{f"{_ENCODER}ln_{at}.{kind}": f"vision_model.layernorm_{at}.{kind}" for at in ("pre", "post") for kind in _BIAS},
    f"{_ADAPTER}mlp.c_fc.weight": "vision_model.vision_adapter.mlp.fc1.weight",
    f"{_ADAPTER}mlp.c_proj.weight": "vision_model.vision_adapter.mlp.fc2.weight",
    "vision_projection.weight": "multi_modal_projector.linear_1.weight",
}


@dataclass(frozen=True, slots=True)
class Vision:
    """params.json's ``vision_args``, checked."""

    image: int
    patch: int
    dim: int
    n_layers: int
    n_heads: int
    n_ff: int
    output_dim: int
    shuffle_ratio: float

    def sizes(self, n_text: int) -> VisionSizes:
        """What the shapes follow from beside a text tower of width ``n_text``."""
        return VisionSizes(
            n_embd=self.dim,
            n_ff=self.n_ff,
            patch=self.patch,
            positions=(self.image // self.patch) ** 2 + 1,
            shuffled=int(self.dim // self.shuffle_ratio**2),
            n_adapter=self.output_dim,
            n_text=n_text,
        )


@dataclass(frozen=True, slots=True)
class MetaLlama4:
    """params.json, checked; see :class:`~converters.architectures.meta.MetaFamily`.

    ``base.n_ff`` is the width of layers without experts, ``n_ff`` that of an expert.
    """

    name: ClassVar[str] = "Llama 4"
    tokens: ClassVar[Tokens] = LLAMA4_TOKENS
    has_sentencepiece: ClassVar[bool] = False
    ignored: ClassVar[re.Pattern[str]] = re.compile(
        r"(^|\.)rope\.freqs$|\._extra_state$|_gate_stats_3E$|\.expert_activation_DE$"
    )
    """Recomputed by every runtime, or left over from training."""
    remedy: ClassVar[str] = _REMEDY
    gate: ClassVar[None] = None
    has_integers: ClassVar[bool] = False
    warnings: ClassVar[tuple[str, ...]] = ()

    base: MetaLlama
    n_expert: int
    n_expert_used: int
    moe_step: int
    n_ff: int
    vision: Vision | None

    @classmethod
    def read(cls, config: Mapping[str, Any], path: Path) -> "MetaLlama4":
        """Check the content of ``path``/params.json; CheckpointError names the field."""
        others = {key: value for key, value in config.items() if key not in ("moe_args", "vision_args")}
        if others.get("quantization_args"):
            fields = config_fields(others, path, "params.json")
            raise fields.fail("quantization_args", "is set: quantized weights of a Llama 4 are not read", _REMEDY)
        base = MetaLlama.read({"rope_theta": 500000.0, **others}, path)
        if base.n_layers > MAX_LAYERS:
            raise base.fields.fail("n_layers", f"is {base.n_layers}, expected {MAX_LAYERS} at most")
        moe = config_fields(config["moe_args"], path, "params.json: moe_args")
        vision = config.get("vision_args")
        if vision is not None and not isinstance(vision, dict):
            raise base.fields.fail("vision_args", f"is {vision!r:.100}, expected an object")
        return cls(
            base=base,
            n_expert=moe.size("num_experts"),
            n_expert_used=moe.size("top_k", 1),
            moe_step=moe.size("interleave_moe_layer_step", 1),
            n_ff=_expert_width(base, moe),
            vision=_vision(config_fields(vision, path, "params.json: vision_args")) if vision else None,
        )

    @property
    def fields(self) -> Fields:
        """params.json, for errors and for what needs no check."""
        return self.base.fields

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.base.dim

    @property
    def n_vocab(self) -> int | None:
        """Rows of the embedding; None: as many as there are."""
        return self.base.n_vocab

    def split(self, shard: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
        """A shard's tensors under the names of Meta's published code, experts as ``(expert, inputs, outputs)``."""
        found: dict[str, Tensor] = {}
        for name, tensor in shard.items():
            prefix, rest = _layer(name)
            for part_name, part in _taken_apart(rest, tensor, self) if prefix else (_outside(name, tensor, self),):
                if prefix + part_name in found:
                    raise CheckpointError(f"{where}: tensor {prefix + part_name!r} is there twice", remedy=_REMEDY)
                found[prefix + part_name] = part
        return found

    def is_known(self, name: str) -> bool:
        """Whether a Llama 4 of these params has a tensor of that name."""
        prefix, rest = _layer(name)
        if prefix:
            return rest in _LAYER or rest in (_ROUTER, *(f"{_EXPERTS}.w{number}" for number in (1, 2, 3)))
        return name in OUTSIDE or (self.vision is not None and _vision_name(name) is not None)

    def shape(self, name: str, n_vocab: int) -> tuple[int, ...]:
        """What a tensor's shape must be, all shards together."""
        prefix, rest = _layer(name)
        dim, width = self.dim, self.n_ff
        if prefix and rest.startswith((_EXPERTS, _ROUTER)):
            return {
                _ROUTER: (dim, self.n_expert),
                f"{_EXPERTS}.w2": (self.n_expert, width, dim),
            }.get(rest, (self.n_expert, dim, width))
        if prefix and "shared_expert" in rest:
            return (dim, width) if rest.endswith("w2.weight") else (width, dim)
        if self.vision and (known := _vision_name(name)):
            return self.vision.sizes(dim).shape(gguf_name(known))
        return self.base.shape(name, n_vocab)

    def copies(self, name: str, shards: int) -> int:
        """In how many neighbouring shards the same rows lie."""
        return self.base.copies(name, shards)

    def is_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether each shard may have all of it."""
        return len(shape) == 1 or name.endswith((_ROUTER, "positional_embedding_vlm"))

    def hugging_face(self, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors as Hugging Face has them."""
        text = "language_model." if self.vision else ""
        return {
            new_name: renamed.renamed(new_name)
            for name, tensor in merged.items()
            for new_name, renamed in _renamed(name, tensor, merged, text)
        }

    def config(self, vocabulary: Vocabulary, *, tied: bool) -> dict[str, Any]:
        """config.json's content."""
        text = {**_text_config(self, len(vocabulary.tokens)), "tie_word_embeddings": tied}
        if self.vision is None:
            return {"architectures": ["Llama4ForCausalLM"], **text}
        return {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "tie_word_embeddings": tied,
            "text_config": text,
            "vision_config": _vision_config(self.vision),
        }

    def template(self, _vocabulary: Vocabulary) -> str:
        """The chat template's name."""
        return "llama4"

    def notes(self, _config: Mapping[str, Any], _stored: Mapping[str, Tensor]) -> dict[str, str]:
        """What params.json left open, by topic."""
        context = _SCALED_CONTEXT if self.base.scaled_rope else _CONTEXT
        which = "Scout" if self.base.scaled_rope else "Maverick"
        return {"context length": f"{context:,}, as in Llama 4 {which} (params.json doesn't say)"}


def is_llama4(config: Mapping[str, Any]) -> bool:
    """Whether params.json's content is that of a Llama 4: the only ones with experts."""
    return isinstance(config.get("moe_args"), dict)


def _expert_width(base: MetaLlama, moe: Fields) -> int:
    """By the formula of Meta's ``MoE``: as many weights at work as in a dense layer."""
    width = int(2 * int(base.fields.real("ffn_exp", 4.0) * base.dim) / 3)
    width = int(base.fields.real("ffn_dim_multiplier", 1.0) * width)
    if moe.content.get("auto_scale_F", True):
        width = int(width / (moe.real("capacity_factor", 1.0) + 1))
    multiple = base.fields.size("multiple_of", 256)
    return width + -width % multiple


def _vision(fields: Fields) -> Vision:
    def side(key: str) -> int:
        size = fields.content.get(key)
        if not isinstance(size, dict) or size.get("height") != size.get("width"):
            raise fields.fail(key, f"is {size!r:.100}, expected a height and an equal width")
        return replace(fields, content=size, called=f"{key}: ").size("height")

    dim = fields.size("dim")
    return Vision(
        image=side("image_size"),
        patch=side("patch_size"),
        dim=dim,
        n_layers=fields.size("n_layers"),
        n_heads=fields.size("n_heads"),
        n_ff=int(fields.real("mlp_ratio", 4.0) * dim),
        output_dim=fields.size("output_dim"),
        shuffle_ratio=fields.real("pixel_shuffle_ratio", 0.5),
    )


def _outside(name: str, tensor: Tensor, params: MetaLlama4) -> tuple[str, Tensor]:
    """What has the wrong shape stays as it is, which will be found."""
    if name != f"{_ENCODER}positional_embedding" or params.vision is None:
        return name, tensor
    new_name = f"{name}_vlm"
    fits = tensor.shape == params.shape(new_name, 0)
    return new_name, resampled(tensor) if fits else tensor


def _layer(name: str) -> tuple[str, str]:
    """``layers.3.ffn_norm.weight`` -> ``layers.3.`` and the rest; nothing before it outside the layers."""
    match = re.fullmatch(r"(layers\.(?:0|[1-9]\d{0,5})\.)(.+)", name)
    return (match[1], match[2]) if match else ("", name)


def _taken_apart(rest: str, tensor: Tensor, params: MetaLlama4) -> Iterator[tuple[str, Tensor]]:
    """What doesn't divide evenly stays as it is: its shape will be found wrong."""
    if rest in _TOGETHER:
        sizes = (params.base.n_heads, params.base.n_kv_heads, params.base.n_kv_heads) if "wqkv" in rest else (1, 1)
        unit, at = tensor.shape[0] // sum(sizes), 0
        for name, size in zip(_TOGETHER[rest], sizes, strict=True):
            yield name, rows(tensor, at, at + size * unit)
            at += size * unit
        return
    name = _TRAINED.get(rest, rest)
    if name.startswith(_EXPERTS) and len(tensor.shape) == 2 and tensor.rows % params.n_expert == 0:
        tensor = replace(tensor, shape=(params.n_expert, tensor.rows // params.n_expert, tensor.columns))
    yield name, tensor


def _vision_name(name: str) -> str | None:
    match = re.fullmatch(rf"{re.escape(_ENCODER)}transformer\.resblocks\.(0|[1-9]\d{{0,5}})\.(.+)", name)
    if match and match[2] in _BLOCK:
        return f"vision_model.model.layers.{match[1]}.{_BLOCK[match[2]]}"
    return _VISION.get(name)


def _renamed(name: str, tensor: Tensor, merged: Mapping[str, Tensor], text: str) -> Iterator[tuple[str, Tensor]]:
    """Gate and up of the experts become one: the third matrix goes with the first."""
    prefix, rest = _layer(name)
    layer = f"{text}model.{prefix}"
    if not prefix:
        yield _vision_name(name) or text + OUTSIDE[name], tensor
    elif rest in _LAYER:
        yield layer + _LAYER[rest], tensor
    elif rest == _ROUTER:
        yield f"{layer}feed_forward.router.weight", transposed(tensor)
    elif rest == f"{_EXPERTS}.w2":
        yield f"{layer}{_EXPERTS}.down_proj", tensor
    elif rest == f"{_EXPERTS}.w1" and f"{prefix}{_EXPERTS}.w3" in merged:
        yield f"{layer}{_EXPERTS}.gate_up_proj", joined([tensor, merged[f"{prefix}{_EXPERTS}.w3"]], -1)


def _text_config(params: MetaLlama4, n_vocab: int) -> dict[str, Any]:
    base, fields = params.base, params.fields
    interval = fields.content.get("nope_layer_interval") and fields.size("nope_layer_interval")
    chunk = fields.content.get("attention_chunk_size") and fields.size("attention_chunk_size")
    floor = fields.real("floor_scale", 8192.0)
    return {
        "model_type": "llama4_text",
        "hidden_act": "silu",
        "vocab_size": n_vocab,
        "hidden_size": base.dim,
        "intermediate_size": params.n_ff,
        "intermediate_size_mlp": base.n_ff,
        "num_hidden_layers": base.n_layers,
        "num_attention_heads": base.n_heads,
        "num_key_value_heads": base.n_kv_heads,
        "head_dim": base.head_dim,
        "num_local_experts": params.n_expert,
        "num_experts_per_tok": params.n_expert_used,
        "interleave_moe_layer_step": params.moe_step,
        "max_position_embeddings": _SCALED_CONTEXT if base.scaled_rope else _CONTEXT,
        "rms_norm_eps": base.norm_eps,
        "rope_theta": base.rope_theta,
        "rope_scaling": _rope_scaling(fields) if base.scaled_rope else None,
        "no_rope_layers": [int(not interval or (layer + 1) % interval != 0) for layer in range(base.n_layers)],
        "attention_chunk_size": chunk or None,
        "use_qk_norm": fields.flag("use_qk_norm"),
        "attn_temperature_tuning": fields.flag("attn_temperature_tuning"),
        "floor_scale": int(floor) if floor.is_integer() else floor,  # transformers takes no float
        "attn_scale": fields.real("attn_scale", 0.1),
        "attention_bias": False,
    }


def _rope_scaling(fields: Fields) -> dict[str, Any]:
    """Scout's, where params.json has no numbers: so Meta's code has it."""
    return {
        "rope_type": "llama3",
        "factor": fields.real("rope_scaling_factor", 16.0),
        "low_freq_factor": 1.0,
        "high_freq_factor": fields.real("rope_high_freq_factor", 1.0),
        "original_max_position_embeddings": 8192,
    }


def _vision_config(vision: Vision) -> dict[str, Any]:
    return {
        "model_type": "llama4_vision_model",
        "hidden_act": "gelu",
        "hidden_size": vision.dim,
        "intermediate_size": vision.n_ff,
        "num_hidden_layers": vision.n_layers,
        "num_attention_heads": vision.n_heads,
        "num_channels": 3,
        "image_size": vision.image,
        "patch_size": vision.patch,
        "norm_eps": 1e-5,
        "rope_theta": 10000,
        "pixel_shuffle_ratio": vision.shuffle_ratio,
        "projector_input_dim": vision.output_dim,
        "projector_output_dim": vision.output_dim,
        "vision_output_dim": vision.output_dim,
        "multi_modal_projector_bias": False,
    }

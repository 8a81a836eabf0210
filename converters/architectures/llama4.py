"""Llama 4's text tower: a mixture of experts, some layers without rotary embedding, attention in chunks.

Sources: transformers' ``modeling_llama4.py`` for what a checkpoint means, llama.cpp's ``src/models/llama4.cpp`` and
``conversion/llama.py`` for what a GGUF file must hold. Much of what config.json says has no key in GGUF: llama.cpp
computes with one value that is built in. A checkpoint that has another is sound, but no GGUF file can hold it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.architectures import llama
from converters.architectures.llama import OUTSIDE, ROPE_FREQS, Weight
from converters.checkpoint import Checkpoint, Tensor, config_fields, text_config
from converters.tensors.joined import joined
from converters.tensors.transposed import floats, transposed
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import Header, Value, u32
from edge_llama.files.gguf_limits import LLAMA4_NOPE_INTERVAL
from edge_llama.files.json_fields import Fields
from quant.recipe import Model

_DEFAULTS = {  # of transformers' Llama4TextConfig, where they differ from Llama's
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "num_local_experts": 16,
    "use_qk_norm": True,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": True,
}
_KINDS = ("gate", "up", "down")
_DENSE = {f"ffn_{kind}.weight": (f"feed_forward.{kind}_proj.weight", f"ffn_{kind}") for kind in _KINDS}
_SHARED = {
    f"ffn_{kind}_shexp.weight": (f"feed_forward.shared_expert.{kind}_proj.weight", f"ffn_{kind}") for kind in _KINDS
}
_ROUTER = {"ffn_gate_inp.weight": ("feed_forward.router.weight", "router")}
# As GGUF has them, a row for each output: so they are named in what a GGUF source gives.
_EXPERTS = {f"ffn_{kind}_exps.weight": (f"feed_forward.experts.{kind}_proj.weight", f"ffn_{kind}") for kind in _KINDS}
_FUSED, _DOWN = "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"
_VISION = r"^(vision_model|multi_modal_projector)\."
_LANGUAGE = "language_model."
_CHUNK, _FLOOR_SCALE, _ATTN_SCALE = 8192, 8192, 0.1
MAX_LAYERS = 1 << 12
"""Lists are made of a number in a file: it must be one that a model may have."""
_WITHOUT_QK_NORM = 128  # llama.cpp tells Maverick from Scout by its experts
_KEEP = "keep the Hugging Face folder: only a target that writes the computation itself, as ONNX, can express this"


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """A Llama 4's text config, checked, with transformers' defaults filled in.

    ``base`` is what it shares with Llama: its ``n_ff`` is an expert's width, ``n_ff_dense`` that of layers without.
    ``rope_layers`` says by layer whether positions are rotary there. ``moe_step``: every so many layers have experts,
    if ``moe_layers`` are even.
    """

    base: llama.Hyperparameters
    n_ff_dense: int
    n_expert: int
    n_expert_used: int
    moe_layers: tuple[int, ...]
    moe_step: int
    rope_layers: tuple[bool, ...]
    layer_types: tuple[str, ...]
    activation: str
    use_qk_norm: bool
    chunk_size: int | None
    has_temperature: bool
    floor_scale: float
    attn_scale: float


def hyperparameters(config: Mapping[str, Any], path: Path) -> Hyperparameters:
    """Read the text part of a Llama 4's config.json; CheckpointError names the field that is missing or wrong."""
    text = {**_DEFAULTS, **text_config(config)}
    fields = config_fields(text, path)
    base = llama.hyperparameters({**text, "hidden_act": "silu"}, path)
    if base.n_layer > MAX_LAYERS:
        raise fields.fail("num_hidden_layers", f"is {base.n_layer}, expected {MAX_LAYERS} at most")
    n_expert = _whole(fields, "num_local_experts", 0)
    n_used = fields.size("num_experts_per_tok", 1)
    if n_used > max(n_expert, 1):
        raise fields.fail("num_experts_per_tok", f"is {n_used} of {n_expert} experts")
    step = fields.size("interleave_moe_layer_step", 1)
    moe_layers = _integers(fields, "moe_layers", range(step - 1, base.n_layer, step))
    rope_layers = _rope_layers(fields, base.n_layer)
    chunk = None if text["attention_chunk_size"] is None else fields.size("attention_chunk_size")
    types = text.get("layer_types") or _layer_types(rope_layers, chunk)
    return Hyperparameters(
        base=base,
        n_ff_dense=fields.size("intermediate_size_mlp"),
        n_expert=n_expert,
        n_expert_used=n_used,
        moe_layers=moe_layers,
        moe_step=moe_layers[0] + 1 if moe_layers else step,
        rope_layers=rope_layers,
        layer_types=tuple(map(str, types)) if isinstance(types, list | tuple) else (str(types),),
        activation=str(text.get("hidden_act", "silu")),
        use_qk_norm=fields.flag("use_qk_norm"),
        chunk_size=chunk,
        has_temperature=bool(_whole(fields, "attn_temperature_tuning", 0)),  # published as 4, and as true
        floor_scale=fields.real("floor_scale", _FLOOR_SCALE),
        attn_scale=fields.real("attn_scale", _ATTN_SCALE),
    )


def _whole(fields: Fields, key: str, least: int) -> int:
    value = fields.content[key]
    if not isinstance(value, int) or not least <= value < 1 << 32:
        raise fields.fail(key, f"is {value!r:.100}, expected an integer of at least {least}")
    return int(value)


def _integers(fields: Fields, key: str, default: range) -> tuple[int, ...]:
    """A list of small numbers; layers that are listed are there."""
    value = fields.content.get(key)
    if value is None:
        return tuple(default)
    if not isinstance(value, list) or any(not isinstance(item, int) or not 0 <= item < 1 << 16 for item in value):
        raise fields.fail(key, f"is {value!r:.100}, expected a list of layers")
    return tuple(map(int, value))


def _rope_layers(fields: Fields, n_layer: int) -> tuple[bool, ...]:
    """The list counts, 0 for a layer without; none or an empty one means every so many layers."""
    interval = fields.size("no_rope_layer_interval", LLAMA4_NOPE_INTERVAL)
    listed = _integers(fields, "no_rope_layers", range(0))
    if listed and len(listed) < n_layer:
        raise fields.fail("no_rope_layers", f"has {len(listed)} entries for {n_layer} layers")
    return tuple(map(bool, listed[:n_layer])) if listed else _rotary(n_layer, interval)


def _rotary(n_layer: int, interval: int) -> tuple[bool, ...]:
    return tuple((layer + 1) % interval != 0 for layer in range(n_layer))


def _layer_types(rope_layers: tuple[bool, ...], chunk: int | None) -> tuple[str, ...]:
    return tuple("chunked_attention" if rope and chunk is not None else "full_attention" for rope in rope_layers)


def _check_for_gguf(hp: Hyperparameters, config: Mapping[str, Any], path: Path) -> None:
    """CheckpointError for the first value that differs from what is built into llama.cpp."""
    n_layer = hp.base.n_layer
    rope = "no_rope_layers" if text_config(config).get("no_rope_layers") else "no_rope_layer_interval"
    every_fourth = _rotary(n_layer, LLAMA4_NOPE_INTERVAL)
    for key, value, is_built_in, built_in in (
        ("num_hidden_layers", n_layer, n_layer >= LLAMA4_NOPE_INTERVAL, f"{LLAMA4_NOPE_INTERVAL} or more"),
        ("num_local_experts", hp.n_expert, hp.n_expert > 0, "at least one expert"),
        ("hidden_act", hp.activation, hp.activation in ("silu", "swish"), "silu"),
        ("attention_bias", hp.base.attention_bias, not hp.base.attention_bias, "no biases"),
        ("use_qk_norm", hp.use_qk_norm, hp.use_qk_norm == (hp.n_expert != _WITHOUT_QK_NORM), _qk_norm(hp)),
        ("attention_chunk_size", hp.chunk_size, hp.chunk_size == _CHUNK, f"{_CHUNK}"),
        ("attn_temperature_tuning", hp.has_temperature, hp.has_temperature, "true"),
        ("floor_scale", hp.floor_scale, hp.floor_scale == _FLOOR_SCALE, f"{_FLOOR_SCALE}"),
        ("attn_scale", hp.attn_scale, hp.attn_scale == _ATTN_SCALE, f"{_ATTN_SCALE}"),
        (rope, text_config(config).get(rope), hp.rope_layers == every_fourth, "every fourth layer without"),
        (
            "layer_types",
            list(hp.layer_types),
            hp.layer_types == _layer_types(every_fourth, _CHUNK),
            "full_attention in every fourth layer, chunked_attention in the others",
        ),
        (
            "moe_layers",
            list(hp.moe_layers),
            hp.moe_layers == tuple(range(hp.moe_step - 1, n_layer, hp.moe_step)),
            "every layer, or every second, third ...",
        ),
    ):
        if not is_built_in:
            problem = f"is {value!r:.100}; in GGUF it can only be: {built_in}"
            raise config_fields(config, path).fail(key, problem, _KEEP)


def _qk_norm(hp: Hyperparameters) -> str:
    return f"false with {_WITHOUT_QK_NORM} experts, true with any other number (here {hp.n_expert})"


def _layer_names(hp: Hyperparameters, layer: int) -> dict[str, tuple[str, str]]:
    """A layer's tensors that are the same in both, under GGUF's names: Hugging Face's name, and the role."""
    attention = {name: entry for name, entry in llama.layer_names(hp.base).items() if "mlp." not in entry[0]}
    return attention | (_SHARED | _ROUTER if layer in hp.moe_layers else _DENSE)


def _names(hp: Hyperparameters) -> dict[str, str]:
    """Hugging Face's names by GGUF's, for tensors that lie as GGUF has them."""
    names = {name: source for name, (source, _) in OUTSIDE.items()} | {ROPE_FREQS: ROPE_FREQS}
    for layer in range(hp.base.n_layer):
        entries = _layer_names(hp, layer) | (_EXPERTS if layer in hp.moe_layers else {})
        names |= {f"blk.{layer}.{name}": f"model.layers.{layer}.{source}" for name, (source, _) in entries.items()}
    return names


def _shape(name: str, hp: Hyperparameters) -> tuple[int, ...]:
    if name in _ROUTER:
        return (hp.n_expert, hp.base.n_embd)
    if not name.startswith("ffn_") or name == "ffn_norm.weight":
        return llama.shape(name, hp.base)
    n_ff = hp.n_ff_dense if name in _DENSE else hp.base.n_ff
    matrix = (hp.base.n_embd, n_ff) if name.startswith("ffn_down") else (n_ff, hp.base.n_embd)
    return (hp.n_expert, *matrix) if name in _EXPERTS else matrix


class _Tensors:
    """The text tower's tensors as GGUF has them, and afterwards which of the checkpoint's they were."""

    def __init__(self, checkpoint: Checkpoint, hp: Hyperparameters) -> None:
        self._checkpoint = checkpoint
        self._hp = hp
        self._prefix = _LANGUAGE if any(name.startswith(_LANGUAGE) for name in checkpoint.tensors) else ""
        self.used: set[str] = set()

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        name = self._prefix + name
        self.used.add(name)
        return self._checkpoint.tensor(name, shape)

    def _has(self, name: str) -> bool:
        return self._prefix + name in self._checkpoint.tensors

    def all(self) -> Iterator[Weight]:
        hp = self._hp
        for name, (source, role) in OUTSIDE.items():
            if role != "output" or not hp.base.tied or self._has(source):
                yield Weight(self._take(source, _shape(name, hp)).renamed(name), role, -1)
        for layer in range(hp.base.n_layer):
            prefix = f"model.layers.{layer}."
            for name, (source, role) in _layer_names(hp, layer).items():
                yield Weight(self._take(prefix + source, _shape(name, hp)).renamed(f"blk.{layer}.{name}"), role, layer)
            for name, tensor in self._experts(prefix) if layer in hp.moe_layers else ():
                yield Weight(tensor.renamed(f"blk.{layer}.{name}"), _EXPERTS[name][1], layer)
        yield from llama.rope_weights(hp.base, self._checkpoint)

    def _experts(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face's multiply from the right, and gate and up stand side by side in one matrix."""
        hp = self._hp
        if any(self._has(prefix + source) for source, _ in _EXPERTS.values()):
            for name, (source, _) in _EXPERTS.items():
                yield name, self._take(prefix + source, _shape(name, hp))
            return
        n_expert, n_embd, n_ff = hp.n_expert, hp.base.n_embd, hp.base.n_ff
        gate_up = self._take(prefix + _FUSED, (n_expert, n_embd, 2 * n_ff))
        down = self._take(prefix + _DOWN, (n_expert, n_ff, n_embd))
        yield "ffn_gate_exps.weight", transposed(gate_up, 0, n_ff)
        yield "ffn_up_exps.weight", transposed(gate_up, n_ff, 2 * n_ff)
        yield "ffn_down_exps.weight", transposed(down)


class Llama4:
    """The architecture's description. A vision tower in the same checkpoint is not part of it."""

    gguf_name = "llama4"
    config_names = ("Llama4ForConditionalGeneration", "Llama4ForCausalLM")

    def weights(self, checkpoint: Checkpoint) -> list[Weight]:
        """Every tensor of the GGUF file, checked for shape, sorted as llama.cpp sorts; experts are transposed."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        _check_for_gguf(hp, checkpoint.config, checkpoint.path)
        return llama.in_order(self._checked(checkpoint, hp))

    def _checked(self, checkpoint: Checkpoint, hp: Hyperparameters) -> list[Weight]:
        tensors = _Tensors(checkpoint, hp)
        weights = list(tensors.all())
        llama.check_leftovers(checkpoint, hp.base, tensors.used, others=_VISION)
        return weights

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Value]:
        """The hyperparameters under llama.cpp's keys."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        return llama.metadata(hp.base, self.gguf_name) | {
            "llama4.feed_forward_length": u32(hp.n_ff_dense),
            "llama4.expert_feed_forward_length": u32(hp.base.n_ff),
            "llama4.expert_count": u32(hp.n_expert),
            "llama4.expert_used_count": u32(hp.n_expert_used),
            "llama4.interleave_moe_layer_step": u32(hp.moe_step),
        }

    def recipe_model(self, checkpoint: Checkpoint) -> Model:
        """What a recipe's rules ask."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        return Model(hp.base.n_layer, hp.base.n_head, hp.base.n_head_kv, hp.n_expert)

    def tower_tensors(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """The text tower's under Hugging Face's names, experts transposed; CheckpointError unless it is whole."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        names = _names(hp)
        tensors = {names[weight.tensor.name]: weight.tensor for weight in self._checked(checkpoint, hp)}
        if not llama.keeps_rope_freqs(hp.base):
            tensors.pop(ROPE_FREQS, None)
        return tensors

    def folder_tensors(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """Those of both towers, a GGUF source's experts transposed; CheckpointError unless the text tower is whole."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        self._checked(checkpoint, hp)
        llama.check_scaling_for_folder(checkpoint, hp.base)
        tensors = dict(checkpoint.tensors)
        for layer in hp.moe_layers if checkpoint.metadata else ():
            at = f"model.layers.{layer}."
            gate, up, down = (transposed(floats(tensors.pop(at + source))) for source, _ in _EXPERTS.values())
            tensors[at + _FUSED] = joined([gate, up], -1).renamed(at + _FUSED)
            tensors[at + _DOWN] = down.renamed(at + _DOWN)
        return tensors

    def config_from_gguf(self, header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """A config.json's content from GGUF metadata, and from tensors that hold settings."""

        def number(key: str, default: int = 0) -> int:
            return header.get(f"llama4.{key}", int, default)

        n_expert = number("expert_count")
        return llama.LLAMA.config_from_gguf(header, tensors) | {
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "intermediate_size": number("expert_feed_forward_length"),
            "intermediate_size_mlp": number("feed_forward_length"),
            "num_local_experts": n_expert,
            "num_experts_per_tok": number("expert_used_count", 1),
            "interleave_moe_layer_step": number("interleave_moe_layer_step", 1),
            "use_qk_norm": n_expert != _WITHOUT_QK_NORM,
        }

    def tensors_from_gguf(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
    ) -> dict[str, Tensor]:
        """GGUF's tensors under Hugging Face's names; experts stay as they lie, each kind under a name of its own."""
        hp = hyperparameters(config, path)
        names = _names(hp)
        if unknown := sorted(tensors.keys() - names.keys()):
            raise CheckpointError(
                f"{path}: tensor {unknown[0]!r} is not part of a Llama 4", remedy="start from the original checkpoint"
            )
        kept = llama.keeps_rope_freqs(hp.base)
        return {
            names[name]: tensor.renamed(names[name]) for name, tensor in tensors.items() if kept or name != ROPE_FREQS
        }


LLAMA4 = Llama4()

"""Llama 4's vision tower: a transformer over the patches of a tile, four patches to an embedding for the text tower.

Sources: transformers' ``modeling_llama4.py`` for what a checkpoint means; llama.cpp's ``conversion/llama4.py`` for what
an mmproj holds, but for the second norm of a layer: its converter writes it under a name that its graph doesn't read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.architectures.family import Weight
from converters.checkpoint import NOT_TOGETHER, Checkpoint, Tensor, config_fields, read_json, text_config
from edge_llama.errors import ArtifactError, CheckpointError
from edge_llama.files.gguf import Value, ValueType, array, boolean, f32, string, u32
from edge_llama.files.json_fields import Fields
from edge_llama.files.llama4_vision_shapes import VisionSizes
from edge_llama.files.vision_spec import VisionSpec

EPS = 1e-5  # of every LayerNorm, whatever config.json says: transformers never asks it
MODEL, PROJECTOR = "vision_model.", "multi_modal_projector.linear_1.weight"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files with the image processor's settings: of the first that is there."""
_ROPE_THETA = 10000.0  # llama.cpp's, built in
_BEFORE = {
    "class_embedding": "v.class_embd",
    "positional_embedding_vlm": "v.position_embd.weight",
    "patch_embedding.linear.weight": "v.patch_embd.weight",
    "layernorm_pre.weight": "v.pre_ln.weight",
    "layernorm_pre.bias": "v.pre_ln.bias",
    "layernorm_post.weight": "v.post_ln.weight",
    "layernorm_post.bias": "v.post_ln.bias",
}
_AFTER = {
    "vision_adapter.mlp.fc1.weight": "mm.model.mlp.1.weight",
    "vision_adapter.mlp.fc2.weight": "mm.model.mlp.2.weight",
}
_LAYER = {
    "input_layernorm": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """A vision config, checked, with transformers' defaults filled in.

    ``scale`` patches in each direction become one embedding (pixel shuffle); ``n_adapter`` is the width of the adapter
    after it, ``n_text`` that of the text tower.
    """

    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    image_size: int
    patch_size: int
    scale: int
    n_adapter: int
    n_text: int
    rope_theta: float

    @property
    def grid(self) -> int:
        """Patches on a side of a tile."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        return self.n_embd // self.n_head


def hyperparameters(checkpoint: Checkpoint) -> Hyperparameters:
    """Read ``vision_config``; CheckpointError names the field that is missing, wrong or unsupported."""
    config = checkpoint.config.get("vision_config")
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{checkpoint.path}: config.json: vision_config is missing", remedy="download it again")
    fields = config_fields(config, checkpoint.path, "config.json: vision_config")
    _check_kind(fields)
    n_embd, n_head = fields.size("hidden_size", 768), fields.size("num_attention_heads", 16)
    if n_embd % (4 * n_head):
        raise fields.fail("num_attention_heads", f"is {n_head}, which makes no heads of four of {n_embd:,}")
    image_size, patch_size = fields.size("image_size", 448), fields.size("patch_size", 14)
    scale = _scale(fields)
    if image_size % (patch_size * scale):
        raise fields.fail(
            "image_size", f"is {image_size}, no multiple of {patch_size * scale} (patches, pixel shuffle)"
        )
    n_ff = fields.size("intermediate_size", 5632)
    if n_ff != n_embd * scale**2:  # transformers reads the adapter's input width from it
        raise fields.fail("intermediate_size", f"is {n_ff}, expected {n_embd * scale**2}, the adapter's width")
    text = config_fields(text_config(checkpoint.config), checkpoint.path, "config.json: text_config")
    parameters = config.get("rope_parameters")
    rope = replace(fields, content=parameters) if isinstance(parameters, Mapping) else fields
    return Hyperparameters(
        n_embd=n_embd,
        n_ff=n_ff,
        n_layer=fields.size("num_hidden_layers", 34),
        n_head=n_head,
        image_size=image_size,
        patch_size=patch_size,
        scale=scale,
        n_adapter=_n_adapter(fields),
        n_text=text.size("hidden_size", 5120),
        rope_theta=rope.real("rope_theta", _ROPE_THETA),
    )


def _check_kind(fields: Fields) -> None:
    for key, expected in (
        *(("hidden_act", "gelu"), ("num_channels", 3), ("vision_feature_layer", -1)),
        *(("vision_feature_select_strategy", "default"), ("multi_modal_projector_bias", False)),
    ):
        if (found := fields.content.get(key, expected)) != expected:
            raise fields.fail(key, f"is {found!r:.100}, expected {expected!r}", "only Llama 4's own is supported")


def _scale(fields: Fields) -> int:
    ratio = fields.real("pixel_shuffle_ratio", 0.5)
    scale = round(1 / ratio)
    if not 1 <= scale <= 64 or scale * ratio != 1:
        raise fields.fail("pixel_shuffle_ratio", f"is {ratio}, expected 1 / a whole number")
    return scale


def _n_adapter(fields: Fields) -> int:
    width = fields.size("projector_output_dim", 4096)
    for key in ("projector_input_dim", "vision_output_dim"):
        if (found := fields.size(key, width)) != width:
            raise fields.fail(key, f"is {found}, expected {width}, as projector_output_dim")
    return width


def spec(checkpoint: Checkpoint) -> VisionSpec:
    """What a runtime needs to prepare images: from config.json, and preprocessor_config.json where there is one."""
    hp = hyperparameters(checkpoint)
    given = _preprocessor(checkpoint.path)
    try:
        return VisionSpec(
            tile=hp.image_size,
            max_tiles=given.get("max_patches", 16),
            tokens_per_tile=(hp.grid // hp.scale) ** 2,
            n_embd=hp.n_text,
            mean=given.get("image_mean", (0.5, 0.5, 0.5)),
            std=given.get("image_std", (0.5, 0.5, 0.5)),
        )
    except ArtifactError as error:
        raise CheckpointError(f"{checkpoint.path}: preprocessor_config.json: {error.message}") from error


def _preprocessor(folder: Path) -> dict[str, Any]:
    """The image processor's settings: in a file of their own, or within processor_config.json."""
    own, within = (folder / name for name in PREPROCESSORS)
    if own.is_file():
        return read_json(own)
    given = read_json(within).get("image_processor") if within.is_file() else None
    return given if isinstance(given, dict) else {}


def tensors(checkpoint: Checkpoint, hp: Hyperparameters) -> dict[str, Tensor]:
    """Every tensor by its name in the checkpoint, without ``vision_model.``, in its order, checked for shape."""
    found = {name: checkpoint.tensor(name, shape) for name, shape in shapes(hp).items()}
    ours = [name for name in checkpoint.tensors if name.startswith((MODEL, "multi_modal_projector."))]
    if left := sorted(set(ours) - found.keys()):
        raise CheckpointError(
            f"{checkpoint.path}: tensor {left[0]!r} is not part of a Llama 4's vision tower of this config",
            remedy=NOT_TOGETHER,
        )
    return {name.removeprefix(MODEL): found[name] for name in ours}


def shapes(hp: Hyperparameters) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by its name in the checkpoint."""
    sizes = VisionSizes(
        n_embd=hp.n_embd,
        n_ff=hp.n_ff,
        patch=hp.patch_size,
        positions=hp.grid**2 + 1,
        shuffled=hp.n_embd * hp.scale**2,
        n_adapter=hp.n_adapter,
        n_text=hp.n_text,
    )
    return {name: sizes.shape(gguf_name(name)) for name in _names(hp.n_layer)}


def _names(n_layer: int) -> Iterator[str]:
    """Every tensor of a tower of so many layers, under Hugging Face's name."""
    yield from (MODEL + name for name in _BEFORE)
    for layer in range(n_layer):
        yield from (f"{MODEL}model.layers.{layer}.{part}.{kind}" for part in _LAYER for kind in ("weight", "bias"))
    yield from (MODEL + name for name in _AFTER)
    yield PROJECTOR


def mmproj(checkpoint: Checkpoint) -> tuple[list[Weight], dict[str, Value]]:
    """Tensors and metadata of an mmproj, in llama.cpp's names. CheckpointError for what llama.cpp can't compute."""
    hp = hyperparameters(checkpoint)
    if hp.rope_theta != _ROPE_THETA:
        raise CheckpointError(
            f"{checkpoint.path}: config.json: vision_config: rope_theta is {hp.rope_theta:g}, llama.cpp computes with "
            f"{_ROPE_THETA:g}",
            remedy="write the vision tower as ONNX (--vision-to onnx)",
        )
    in_order = sorted(tensors(checkpoint, hp).items(), key=lambda entry: entry[1].name)  # as a safetensors file is
    weights = [Weight(tensor.renamed(gguf_name(name)), "vision", -1) for name, tensor in in_order]
    return weights, _metadata(hp, spec(checkpoint))


def gguf_name(name: str) -> str:
    """GGUF's name for the tensor that Hugging Face calls ``name``, with or without ``vision_model.``."""
    name = name.removeprefix(MODEL)
    if name == PROJECTOR:
        return "mm.model.fc.weight"
    if found := _BEFORE.get(name) or _AFTER.get(name):
        return found
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return f"v.blk.{layer}.{_LAYER[part]}.{kind}"


def _metadata(hp: Hyperparameters, images: VisionSpec) -> dict[str, Value]:
    prefix = "clip.vision."
    return {
        "clip.has_vision_encoder": boolean(True),
        prefix + "projection_dim": u32(hp.n_text),
        prefix + "image_size": u32(hp.image_size),
        prefix + "patch_size": u32(hp.patch_size),
        prefix + "embedding_length": u32(hp.n_embd),
        prefix + "feed_forward_length": u32(hp.n_ff),
        prefix + "block_count": u32(hp.n_layer),
        prefix + "attention.head_count": u32(hp.n_head),
        prefix + "image_mean": array(ValueType.FLOAT32, images.mean),
        prefix + "image_std": array(ValueType.FLOAT32, images.std),
        "clip.projector_type": string("llama4"),
        prefix + "attention.layer_norm_epsilon": f32(EPS),
        prefix + "projector.scale_factor": u32(hp.scale),
        "clip.use_gelu": boolean(True),
    }


def rotary(hp: Hyperparameters) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """RoPE's cosines and sines for each pair of values in a head, float32 ``(patches + 1, head_dim / 2)``.

    The first half of the pairs is rotated by a patch's column, the second by its row, both from 1; the class token,
    which is the last, is not rotated. Powers are float64's: float32's last bit is not every processor's.
    """
    patches = np.arange(hp.grid**2)
    half = hp.head_dim // 2
    exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    powers = np.power(np.float64(hp.rope_theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    columns, rows = (place.astype(np.float32)[:, None] + 1 for place in (patches % hp.grid, patches // hp.grid))
    angles = np.concatenate([columns * frequencies, rows * frequencies], axis=1)
    angles = np.concatenate([angles, np.zeros((1, half), np.float32)])
    return np.cos(angles), np.sin(angles)

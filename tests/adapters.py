"""LoRA adapters as peft saves them, with random numbers in place of training, and what peft makes of them."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from converters.checkpoint import Checkpoint
from converters.sources import open_checkpoint
from converters.transforms.lora import merge
from edge_llama.files.formats import F32
from quant.kernels import recode

WEIGHTS = "adapter_model.safetensors"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL = checkpoints.Shape(hidden=32, ffn=48, layers=2, heads=2, kv_heads=1)
KINDS: dict[str, dict[str, Any]] = {
    "queries and values": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "every linear layer": {"r": 4, "lora_alpha": 3, "target_modules": LINEAR},
    "all-linear": {"r": 4, "lora_alpha": 3, "target_modules": "all-linear"},
    "rsLoRA": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": LINEAR},
    "ranks and alphas by pattern": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": LINEAR,
        "rank_pattern": {"layers.1.self_attn.q_proj": 3, "down_proj": 12},
        "alpha_pattern": {r"layers\.[02]\.mlp\.up_proj": 5},
    },
    "some layers": {"r": 4, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]},
    "one layer, by its pattern": {
        "r": 4,
        "target_modules": ["q_proj"],
        "layers_to_transform": 1,
        "layers_pattern": "layers",
    },
    "all but some": {"r": 4, "target_modules": LINEAR, "exclude_modules": ["layers.0.mlp.up_proj", "k_proj"]},
    "a regular expression": {"r": 4, "target_modules": r".*\.[12]\.self_attn\.(q|o)_proj"},
    "head and embedding": {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "whole modules": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "a whole network inside": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]},
}
"""Of an untied Llama of three layers: what peft is asked to train."""
_TRAINED = ("lora_", "modules_to_save", "trainable_tokens_delta")


def trained(
    base: Path, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, rows: int | None = None, **options: Any
) -> Path:
    """An adapter as peft saves it, with random matrices in place of training: none is zero.

    ``rows``: the vocabulary is resized to so many first.
    """
    return saved(in_training(_opened(base, dtype, rows), seed, **options), folder)


def saved(model: Any, folder: Path) -> Path:
    """The adapter in ``folder``, as peft saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft remarks on embeddings in target_modules
        model.save_pretrained(folder)
    return folder


def in_training(model: Any, seed: int = 0, **options: Any) -> Any:
    """peft's model around ``model``, with random numbers in all that is trained."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if any(part in name for part in _TRAINED) or (name.endswith("bias") and parameter.requires_grad):
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32, rows: int | None = None) -> Any:
    """The model that peft's ``merge_and_unload`` gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return merged(PeftModel.from_pretrained(_opened(base, dtype, rows), adapter))


def merged(model: Any) -> Any:
    """What peft makes of its own ``model``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks on tied embeddings
        return model.merge_and_unload()


def _opened(base: Path, dtype: torch.dtype, rows: int | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def state_of(model: Any) -> dict[str, NDArray[np.float32]]:
    """A model's tensors by name, a tied head under both names."""
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def numbers(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """A checkpoint's tensors as float32; a tied head under both names."""
    found = {
        name: recode(tensor.read(0, tensor.rows), tensor.format, F32).view(np.float32).reshape(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    }
    embedding = "model.embed_tokens.weight"
    return ({"lm_head.weight": found[embedding]} if embedding in found else {}) | found


def merged_by_us(base: Path, adapter: Path) -> Checkpoint:
    """The base's checkpoint with the adapter merged."""
    return merge(open_checkpoint(base), adapter)


def assert_equal(ours: Mapping[str, NDArray[np.float32]], expected: Mapping[str, NDArray[np.float32]]) -> None:
    """Within 1e-6, absolute and relative: products and lengths (DoRA) are summed in another order."""
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert ours[key].shape == tensor.shape, key
        assert np.allclose(ours[key], tensor, rtol=1e-6, atol=1e-6), key

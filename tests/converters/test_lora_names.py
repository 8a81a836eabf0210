"""What an adapter's files may be called inside: raw state dicts, other beginnings, and fields of other trainers."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from adapters import (
    SMALL,
    WEIGHTS,
    assert_equal,
    in_training,
    merged_by_peft,
    merged_by_us,
    numbers,
    saved,
    state_of,
    trained,
)
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM
from variants import edit_json

import converters
from edge_llama import CheckpointError

EVERYTHING: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 5,
    "target_modules": ["q_proj", "lm_head"],
    "modules_to_save": ["embed_tokens", "layers.1.mlp"],
    "use_dora": True,
}
Arrays = Mapping[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama3(tmp_path_factory.mktemp("base") / "Base", shape=SMALL, dtype="F32", tied=False)


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(base, tmp_path_factory.mktemp("good") / "adapter", **EVERYTHING)


@pytest.fixture(scope="module")
def expected(base: Path, good: Path) -> Arrays:
    return state_of(merged_by_peft(base, good))


def with_names(good: Path, folder: Path, rename: Callable[[str], str]) -> Path:
    """The adapter with other names for its tensors."""
    shutil.copytree(good, folder)
    save_file({rename(name): tensor for name, tensor in load_file(good / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


def raw(name: str) -> str:
    """As a model's own state dict calls it."""
    for part in (".lora_A", ".lora_B"):
        name = name.replace(f"{part}.weight", f"{part}.default.weight")
    if name.endswith("lora_magnitude_vector"):
        return name + ".default.weight"
    for module in ("embed_tokens", "layers.1.mlp"):
        name = name.replace(f"{module}.", f"{module}.modules_to_save.default.")
    return name


RENAMED: dict[str, Callable[[str], str]] = {
    "raw": raw,
    "another adapter's name": lambda name: raw(name).replace(".default.", ".my-adapter."),
    "without the prefix": lambda name: name.removeprefix("base_model.model."),
    "raw without the prefix": lambda name: raw(name).removeprefix("base_model.model."),
    "an older DoRA": lambda name: name.replace("magnitude_vector", "magnitude_vector.weight"),
    "a raw older DoRA": lambda name: raw(name).replace("magnitude_vector.default.weight", "magnitude_vector.default"),
    "under FSDP": lambda name: name.replace("self_attn", "_fsdp_wrapped_module.self_attn"),
    "compiled": lambda name: f"_orig_mod.{name}",
    "data-parallel": lambda name: f"module.{name}",
    "wrapped twice": lambda name: name.replace("model.layers", "model.model.layers"),
    "trained without a head's class": lambda name: name.replace("model.model.layers", "model.layers"),
}


@pytest.mark.parametrize("name", RENAMED)
def test_other_names_mean_the_same(name: str, base: Path, good: Path, expected: Arrays, tmp_path: Path) -> None:
    ours = merged_by_us(base, with_names(good, tmp_path / "adapter", RENAMED[name]))
    assert_equal(numbers(ours), expected)
    assert "adapter" not in ours.notes


def test_a_whole_raw_state_dict(base: Path, tmp_path: Path) -> None:
    """With the base's tensors, as they are and as they were before training: the former are used, and that is told."""
    model = in_training(AutoModelForCausalLM.from_pretrained(base), **EVERYTHING)
    adapter = saved(model, tmp_path / "adapter")
    save_torch({name: tensor.clone() for name, tensor in model.state_dict().items()}, adapter / WEIGHTS)
    ours = merged_by_us(base, adapter)
    assert_equal(numbers(ours), state_of(model.merge_and_unload()))
    assert "tensors that adapter_config.json doesn't name stand in place of the base's" in ours.notes["adapter"]


PATTERNS: dict[str, dict[str, Any]] = {
    "ends": {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.1.self_attn.v_proj": 7}},
    "whole names": {"rank_pattern": {"model.layers.0.self_attn.q_proj": 1}, "alpha_pattern": {"^model.*v_proj": 0.5}},
    "the first counts": {"rank_pattern": {"layers.0.*": 3, "q_proj": 6}, "alpha_pattern": {"nothing": 9}},
    "choices": {"rank_pattern": {"q_proj|v_proj": 6}, "alpha_pattern": {r"layers\.\d+\.self_attn\.(q|k)_proj": -4}},
    "by the root": {"use_rslora": True, "rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 2}},
    "no weight at all": {"alpha_pattern": {"v_proj": 0}},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_ranks_and_alphas_by_pattern(name: str, base: Path, seed: int, tmp_path: Path) -> None:
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **PATTERNS[name]}
    adapter = trained(base, tmp_path / "adapter", seed=seed, **options)
    assert_equal(numbers(merged_by_us(base, adapter)), state_of(merged_by_peft(base, adapter)))


def test_fields_without_effect_pass(base: Path, good: Path, expected: Arrays, tmp_path: Path) -> None:
    """Those of unsloth, ms-swift and older peft, and what only training heeds."""
    shutil.copytree(good, tmp_path / "adapter")
    edit_json(
        tmp_path / "adapter" / "adapter_config.json",
        unsloth_fixed=True,
        auto_mapping={"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        enable_lora=None,
        merge_weights=False,
        fan_in_fan_out=True,
        runtime_config={"ephemeral_gpu_offload": True},
        loftq_config={"loftq_bits": 4},
        megatron_core="megatron.core",
        revision="main",
        swift_type="LORA",
        lorap_lr_ratio=16.0,
        lorap_emb_lr=1e-06,
        a_field_of_the_future=None,
        another={},
    )
    assert_equal(numbers(merged_by_us(base, tmp_path / "adapter")), expected)


def test_a_config_without_targets_takes_what_is_there(base: Path, good: Path, expected: Arrays, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", target_modules=None)
    assert_equal(numbers(merged_by_us(base, tmp_path / "adapter")), expected)


@pytest.fixture(scope="module")
def biased(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with biases at the attention's matrices."""
    folder = tmp_path_factory.mktemp("biased") / "Biased"
    shutil.copytree(base, folder)
    edit_json(folder / "config.json", attention_bias=True)
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(5)
    for name in [name for name in tensors if "self_attn" in name]:
        bias = rng.standard_normal(tensors[name].shape[0]).astype(np.float32)
        tensors[name.replace(".weight", ".bias")] = bias
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("options", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_biases(options: dict[str, Any], biased: Path, seed: int, tmp_path: Path) -> None:
    options = {"r": 4, "target_modules": ["q_proj", "o_proj"], **options}
    adapter = trained(biased, tmp_path / "adapter", seed=seed, **options)
    ours = merged_by_us(biased, adapter)
    merged, name = numbers(ours), "model.layers.0.self_attn.o_proj.bias"
    assert_equal(merged, state_of(merged_by_peft(biased, adapter)))
    assert not np.array_equal(merged[name], load_file(biased / "model.safetensors")[name])
    assert ours.warnings == ()
    assert "adapter" not in ours.notes


def test_biases_that_were_not_saved_are_told(biased: Path, tmp_path: Path) -> None:
    """Older peft says lora_only and saves none."""
    adapter = trained(biased, tmp_path / "adapter", r=4, target_modules=["q_proj"])
    edit_json(adapter / "adapter_config.json", bias="lora_only")
    assert "biases were trained (lora_only), and the adapter holds none" in merged_by_us(biased, adapter).warnings[0]


def test_a_bias_without_one_in_the_base(base: Path, biased: Path, tmp_path: Path) -> None:
    adapter = trained(biased, tmp_path / "adapter", r=4, target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(CheckpointError, match=r"lora_bias is true, and .*q_proj' of the base has no bias"):
        converters.plan(base, tmp_path / "out.gguf", lora=adapter)

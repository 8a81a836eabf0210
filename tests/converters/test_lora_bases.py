"""Bases of other kinds: Llama 4's towers, Meta's folders; and an adapter whose files are damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import families
import llama4
import meta_folders
import numpy as np
import pytest
import torch
from adapters import SMALL, WEIGHTS, assert_equal, in_training, merged, merged_by_us, numbers, saved, state_of, trained
from safetensors.numpy import load_file, save_file
from transformers import Llama4ForConditionalGeneration
from variants import edit_json

import converters
from converters.checkpoint import Checkpoint
from converters.sources import open_checkpoint
from converters.transforms.lora import merge
from edge_llama import CheckpointError

PLAIN = {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"]}


def test_both_towers_of_a_llama_4(tmp_path: Path) -> None:
    """Every linear layer: attention, shared experts, the router, the vision tower and the projector."""
    base = llama4.scout(tmp_path / "base")
    opened = Llama4ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    model = in_training(opened, r=2, lora_alpha=5, target_modules="all-linear")
    ours = numbers(merged_by_us(base, saved(model, tmp_path / "adapter")))
    before = numbers(open_checkpoint(base))
    expected = state_of(merged(model))
    changed = {name for name in before if not np.array_equal(ours[name], before[name])}
    for part in ("q_proj", "router", "shared_expert.up_proj", "vision_model", "multi_modal_projector"):
        assert any(part in name for name in changed), part
    assert_equal({name: ours[name] for name in changed}, {name: expected[name] for name in changed})
    assert all(np.array_equal(expected[name], before[name]) for name in expected.keys() & before.keys() - changed)


def test_a_text_tower_alone_takes_an_adapter_of_both(tmp_path: Path) -> None:
    """Inside the class with both towers, the text's names begin with language_model."""
    base = llama4.text_only(tmp_path / "base")
    adapter = trained(base, tmp_path / "adapter", **PLAIN)
    expected = numbers(merged_by_us(base, adapter))
    tensors = load_file(adapter / WEIGHTS)
    inside = {name.replace("model.model.layers", "model.language_model.model.layers"): t for name, t in tensors.items()}
    assert inside.keys().isdisjoint(tensors)
    save_file(inside, adapter / WEIGHTS)
    assert_equal(numbers(merged_by_us(base, adapter)), expected)


def test_metas_folder_merged_as_hugging_faces(tmp_path: Path) -> None:
    """The same weights, whose rows of Q and K Meta has in another order."""
    base, meta = checkpoints.llama2(tmp_path / "hf"), meta_folders.llama2(tmp_path / "meta", shards=2)
    adapter = trained(base, tmp_path / "adapter", **PLAIN, modules_to_save=["lm_head"])
    ours = numbers(merged_by_us(meta, adapter))
    assert_equal(ours, numbers(merged_by_us(base, adapter)))


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"bias": "all"},
    "gemma3": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm"]},
    "gemma3_with_vision": {"target_modules": r".*language_model.*\.(q_proj|embed_tokens)"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(name: str, tmp_path: Path) -> None:
    """Biases, norms that are stored less one, and a text tower whose names transformers begins in another way."""
    base = getattr(families, name)(tmp_path / "base")
    model = in_training(families.reference(base), **PLAIN | FAMILIES[name])
    ours, before = numbers(merged_by_us(base, saved(model, tmp_path / "adapter"))), numbers(open_checkpoint(base))
    merged(model).save_pretrained(tmp_path / "merged")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    assert_equal({key: ours[key] for key in expected}, expected)
    assert any(not np.array_equal(before[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama3(tmp_path_factory.mktemp("base") / "Base", shape=SMALL, dtype="F32", tied=False)


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its tokenizer."""
    folder = tmp_path_factory.mktemp("good") / "adapter"
    trained(base, folder, **PLAIN, modules_to_save=["norm"], trainable_token_indices=[3, 4])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    return folder


WRONG: list[Any] = ["(", -1, True, [None], {"(": 1}]


def test_every_field_with_a_wrong_value_is_told_or_without_effect(base: Path, good: Path, tmp_path: Path) -> None:
    """A value that fits merges; any other is an error that names the adapter, never a crash."""
    checkpoint = open_checkpoint(base)
    content = json.loads((good / "adapter_config.json").read_text())
    shutil.copytree(good, tmp_path / "adapter")
    refused = set()
    for field in content:
        for value in WRONG:
            (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(content | {field: value}))
            if told := error_of(checkpoint, tmp_path / "adapter"):
                assert str(tmp_path / "adapter") in told, (field, value)
                refused.add(field)
    assert {"r", "lora_alpha", "target_modules", "use_dora", "peft_type", "trainable_token_indices"} <= refused
    assert {"peft_version", "revision", "lora_dropout", "inference_mode", "eva_config"}.isdisjoint(refused)


def error_of(checkpoint: Checkpoint, adapter: Path) -> str:
    """What a merge is refused with; empty if it isn't."""
    try:
        merge(checkpoint, adapter)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_cut_short(name: str, base: Path, good: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    shutil.copytree(good, tmp_path / "adapter")
    whole = (good / name).read_bytes()
    for size in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        (tmp_path / "adapter" / name).write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as caught:
            merge(checkpoint, tmp_path / "adapter")
        assert str(tmp_path / "adapter" / name) in str(caught.value), size


def test_what_was_not_gathered_is_told(base: Path, good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "adapter")
    tensors = load_file(good / WEIGHTS)
    tensors[next(iter(tensors))] = np.zeros(0, np.float32)
    save_file(tensors, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"of shape \[0\] is empty.*DeepSpeed ZeRO-3"):
        merge(open_checkpoint(base), tmp_path / "adapter")


@pytest.mark.parametrize("end", ["norm.weight", "lora_A.weight", "trainable_tokens_delta"])
def test_numbers_that_are_none_name_the_adapter(end: str, base: Path, good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "adapter")
    tensors = load_file(good / WEIGHTS)
    name = next(name for name in tensors if name.endswith(end))
    tensors[name][0] = np.inf
    save_file(tensors, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"{end}': .* weights are NaN or infinite; the training went wrong"):
        converters.convert(base, tmp_path / "out.gguf", lora=tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


FOLDERS: dict[str, tuple[dict[str, str], str]] = {
    "a config of nothing": ({"adapter_config.json": "{}", "adapter_model.bin": ""}, "peft_type is None"),
    "weights in a pickle": ({"adapter_model.bin": ""}, "adapter_model.bin is a pickle.*save it again"),
    "MLX's": ({"adapters.safetensors": ""}, "adapters.safetensors is MLX's"),
    "a whole checkpoint": ({"config.json": "{}", "adapter_config.json": ""}, "this is a whole checkpoint"),
    "a folder of checkpoints": ({"checkpoint-5/adapter_config.json": "{}", "adapter_config.json": ""}, "checkpoint-5"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_another_kind_of_folder_is_told(name: str, base: Path, good: Path, tmp_path: Path) -> None:
    files, expected = FOLDERS[name]
    folder = tmp_path / "adapter"
    folder.mkdir()
    shutil.copy(good / "adapter_config.json", folder)
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content)
        if file == "adapter_config.json" and not content:
            (folder / file).unlink()
    with pytest.raises(CheckpointError, match=expected):
        merge(open_checkpoint(base), folder)


def test_another_base_is_named(base: Path, good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="meta-llama/Llama-3.2-1B")
    shape = checkpoints.Shape(hidden=64, ffn=48, layers=2, heads=2)
    wider = checkpoints.llama3(tmp_path / "Wider", shape=shape, tied=False)
    expected = (
        r"has shape \[32\], the base's has \[64\]; is it an adapter for another base\? It was trained on 'meta-llama"
    )
    with pytest.raises(CheckpointError, match=expected):
        merge(open_checkpoint(wider), tmp_path / "adapter")

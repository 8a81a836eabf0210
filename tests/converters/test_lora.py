"""LoRA adapters merged while streaming: what peft's own merge gives."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from adapters import KINDS, WEIGHTS, assert_equal, merged_by_peft, merged_by_us, numbers, state_of, trained
from engines import last_logits
from ggufs import all_in
from ggufs import weights as gguf_weights
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from variants import edit_json

import converters
from converters.sources import open_checkpoint
from converters.transforms.lora import merge
from edge_llama import CheckpointError, OutputError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3.2 in f32, untied, grouped queries."""
    return checkpoints.llama3(tmp_path_factory.mktemp("base") / "Base", dtype="F32", tied=False)


@pytest.mark.parametrize("name", KINDS)
def test_an_f32_merge_equals_pefts(name: str, base: Path, seed: int, tmp_path: Path) -> None:
    """Also which tensors change."""
    adapter = trained(base, tmp_path / "adapter", seed=seed, **KINDS[name])
    expected = state_of(merged_by_peft(base, adapter))
    ours, original = numbers(merged_by_us(base, adapter)), load_file(base / "model.safetensors")
    assert_equal(ours, expected)
    assert any(not np.array_equal(ours[key], original[key]) for key in ours)
    for key, tensor in expected.items():
        assert np.array_equal(ours[key], original[key]) == np.array_equal(tensor, original[key]), key


def test_a_bf16_merge_is_within_one_bf16_step_of_pefts(seed: int, tmp_path: Path) -> None:
    """Of the largest among base, product and sum: peft rounds the product too, we round once."""
    base = checkpoints.llama3(tmp_path / "Base", dtype="BF16", tied=False)
    adapter = trained(base, tmp_path / "adapter", torch.bfloat16, seed, **KINDS["every linear layer"])
    converters.convert(base, tmp_path / "merged", to="safetensors", quant="bf16", lora=adapter)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16).state_dict()
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).state_dict()
    for key, tensor in merged_by_peft(base, adapter, torch.bfloat16).state_dict().items():
        product = (tensor.float() - before[key].float()).abs()
        largest = torch.maximum(torch.maximum(tensor.float().abs(), before[key].float().abs()), product)
        step = torch.exp2(torch.floor(torch.log2(largest.clamp(min=1e-30)))) * 2**-7
        assert ((ours[key].float() - tensor.float()).abs() <= step).all(), key


def test_the_gguf_of_a_merge_answers_as_pefts_merge_does(base: Path, tmp_path: Path) -> None:
    """Q and K rows are merged before they are reordered."""
    adapter = trained(base, tmp_path / "adapter", **KINDS["every linear layer"])
    plan = converters.convert(base, tmp_path / "merged.gguf", quant="f32", lora=adapter).plan
    assert plan.warnings == ()
    tokens = [int(token) for token in np.random.default_rng(0).integers(3, 500, 40)]
    with torch.no_grad():
        expected = merged_by_peft(base, adapter)(torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.abs(last_logits(tmp_path / "merged.gguf", tokens) - expected).max() < 1e-3


def test_merging_on_the_way_is_merging_first(base: Path, tmp_path: Path) -> None:
    """One step gives the bytes of two: our merge in f32, then its quantization."""
    adapter = trained(base, tmp_path / "adapter", **KINDS["every linear layer"])
    converters.convert(base, tmp_path / "ours.gguf", quant="q8_0", lora=adapter)
    converters.convert(base, tmp_path / "merged", to="safetensors", quant="f32", lora=adapter)
    converters.convert(tmp_path / "merged", tmp_path / "two-steps.gguf", quant="q8_0")
    two_steps = gguf_weights(tmp_path / "two-steps.gguf")
    for name, tensor in gguf_weights(tmp_path / "ours.gguf").items():
        assert np.array_equal(tensor, two_steps[name]), name


def test_chunks_and_threads_do_not_change_the_bytes(base: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    adapter = trained(base, tmp_path / "adapter", **KINDS["head and embedding"])
    for name, tensor in merge(open_checkpoint(base), adapter).tensors.items():
        whole = tensor.read(0, tensor.rows)
        cuts = sorted({0, tensor.rows, *(int(cut) for cut in rng.integers(0, tensor.rows + 1, 5))})
        parts = [tensor.read(start, stop) for start, stop in pairwise(cuts)]
        assert np.array_equal(np.concatenate(parts), whole), name
    for threads in (1, 4):
        converters.convert(base, tmp_path / f"{threads}.gguf", lora=adapter, threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "4.gguf").read_bytes()


def test_a_quantized_gguf_is_a_base_too_and_that_is_said(base: Path, tmp_path: Path) -> None:
    converters.convert(base, tmp_path / "f32.gguf", quant="f32")
    quantized = all_in(tmp_path / "f32.gguf", tmp_path / "q8_0.gguf", "q8_0")
    adapter = trained(base, tmp_path / "adapter", **KINDS["queries and values"])
    plan = converters.convert(quantized, tmp_path / "merged.gguf", quant="f32", lora=adapter).plan
    assert "merged into 6 quantized tensors" in plan.warnings[0]
    before, after = gguf_weights(quantized), gguf_weights(tmp_path / "merged.gguf")
    direct = gguf_weights(tmp_path / "f32.gguf")
    converters.convert(base, tmp_path / "direct.gguf", quant="f32", lora=adapter)
    name = "blk.1.attn_q.weight"
    delta = gguf_weights(tmp_path / "direct.gguf")[name] - direct[name]
    assert np.abs(after[name] - before[name] - delta).max() < 1e-6


def test_output_and_adapter_may_not_be_the_same(base: Path, tmp_path: Path) -> None:
    adapter = trained(base, tmp_path / "adapter", **KINDS["queries and values"])
    with pytest.raises(OutputError, match="same"):
        converters.convert(base, adapter, to="safetensors", lora=adapter, force=True)
    assert (adapter / WEIGHTS).is_file()


def fields(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


def tensors(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        edit(found)
        save_file(found, folder / WEIGHTS)

    return spoil


Q1 = "base_model.model.model.layers.1.self_attn.q_proj."
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "DoRA without magnitudes": (fields(use_dora=True), "lora_magnitude_vector of '.*q_proj' is missing"),
    "another method": (fields(peft_type="IA3"), "peft_type is 'IA3'"),
    "unknown biases": (fields(bias="some"), "bias is 'some'"),
    "no bias in the adapter": (fields(lora_bias=True), "the bias of lora_B of '.*q_proj' is missing"),
    "an initialisation that changes the base": (fields(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "trained tokens that aren't there": (
        fields(trainable_token_indices=[1, 2]),
        "trainable_tokens_delta of 'model.embed_tokens' is missing",
    ),
    "trained tokens of a wrong type": (fields(trainable_token_indices={"lm_head": [-1]}), "expected token ids"),
    "replicated layers": (fields(layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
    "a field of the future": (fields(use_xyz={"a": 1}), "use_xyz"),
    "a flag of a wrong type": (fields(use_rslora="false"), "use_rslora is 'false'"),
    "no rank": (fields(r=0), "r is 0 for .*, expected a positive integer"),
    "a rank of a wrong type": (fields(r="8"), "r is '8'"),
    "alpha that is no number": (fields(lora_alpha=float("nan")), "lora_alpha is nan"),
    "ranks that are no object": (fields(rank_pattern=[1]), "rank_pattern is"),
    "a pattern that is none": (fields(target_modules="("), "target_modules is no regular expression"),
    "targets of a wrong type": (fields(target_modules=[1]), "target_modules is"),
    "an unknown target": (fields(target_modules=["q_proj", "v_proj", "c_attn"]), "target_modules names 'c_attn'"),
    "an unknown module to save": (fields(modules_to_save=["score"]), "modules_to_save names 'score'"),
    "a rank that disagrees": (fields(r=4), r"lora_A\.weight' has shape \[8, 128\], rank 4"),
    "a target without tensors": (fields(target_modules=["q_proj", "v_proj", "k_proj"]), "lora_A of '.*k_proj' is miss"),
    "a module to save without tensors": (fields(modules_to_save=["lm_head"]), "weight of 'lm_head' is missing"),
    "tensors without a target": (fields(target_modules=["q_proj"]), r"v_proj\.lora_A\.weight' is left over"),
    "a missing matrix": (tensors(lambda found: found.pop(Q1 + "lora_B.weight")), r"lora_B of '.*1.*q_proj' is missing"),
    "a layer too many": (
        tensors(lambda found: found.update({Q1.replace("1", "7") + "lora_A.weight": np.ones((8, 128), np.float32)})),
        r"tensors of 'model\.layers\.7\.self_attn\.q_proj'",
    ),
    "a shape that disagrees": (
        tensors(lambda found: found.update({Q1 + "lora_B.weight": np.ones((64, 8), np.float32)})),
        r"has shape \[64, 8\], rank 8 and the base imply \[128, 8\]",
    ),
    "a magnitude without DoRA": (
        tensors(lambda found: found.update({Q1 + "lora_magnitude_vector": np.ones(128, np.float32)})),
        "lora_magnitude_vector' is left over",
    ),
    "a tensor of another kind": (
        tensors(lambda found: found.update({Q1 + "lora_E": np.ones((8, 1), np.float32)})),
        "lora_E' is not understood",
    ),
    "a module that the base has not": (
        tensors(lambda found: found.update({"model.x.lora_A.weight": np.ones((8, 8), np.float32)})),
        "tensors of 'model.x', which .* has not",
    ),
    "two adapters": (
        tensors(
            lambda found: found.update(
                {Q1 + f"lora_A.{name}.weight": np.ones((8, 128), np.float32) for name in ("a", "b")}
            )
        ),
        "holds several adapters: a, b",
    ),
    "the same twice": (
        tensors(lambda found: found.update({Q1 + "lora_A.default.weight": np.ones((8, 128), np.float32)})),
        "are for the same thing",
    ),
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "half of a module, without targets": (
        lambda folder: (
            fields(target_modules=None)(folder),
            tensors(lambda found: found.pop(Q1 + "lora_B.weight"))(folder),
        ),
        r"lora_B of '.*1.*q_proj' is missing",
    ),
    "layers of a wrong type": (fields(layers_to_transform="0"), "layers_to_transform is '0'"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "adapter_model.safetensors is missing"),
    "damaged weights": (lambda folder: (folder / WEIGHTS).write_bytes(b"junk"), "not a safetensors file"),
    "NaN": (
        tensors(lambda found: found[Q1 + "lora_A.weight"].fill(np.nan)),
        r"lora_A\.weight': 1,024 weights are NaN",
    ),
}


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(base, tmp_path_factory.mktemp("adapter") / "good", **KINDS["queries and values"])


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_understood_is_a_typed_error_that_names_it(
    name: str, base: Path, good: Path, tmp_path: Path
) -> None:
    spoil, expected = BAD[name]
    adapter = tmp_path / "adapter"
    shutil.copytree(good, adapter)
    spoil(adapter)
    with pytest.raises(CheckpointError, match=expected) as caught:
        converters.convert(base, tmp_path / "out.gguf", lora=adapter)
    assert str(adapter) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_for_another_base_is_refused(good: Path, tmp_path: Path) -> None:
    other = checkpoints.llama3(tmp_path / "Other", shape=checkpoints.Shape(hidden=256, heads=8))
    deeper = checkpoints.llama3(tmp_path / "Deeper", shape=checkpoints.Shape(layers=4))
    for base, difference in ((other, r"\[8, 128\].* \[8, 256\]"), (deeper, "the adapter has 3 layers, the base 4")):
        with pytest.raises(CheckpointError, match=f"{difference}.*another base"):
            converters.plan(base, tmp_path / "out.gguf", lora=good)

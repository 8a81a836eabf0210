"""An adapter that changes embedding or head: where both are one matrix, and where the vocabulary is resized."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from adapters import SMALL, WEIGHTS, assert_equal, merged_by_peft, merged_by_us, numbers, state_of, trained
from engines import last_logits
from ggufs import weights as gguf_weights
from onnx_graphs import TextGraph
from safetensors.numpy import load_file, save_file
from variants import edit_json

import converters
from edge_llama import CheckpointError
from edge_llama.files.gguf import read_header

PLAIN = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama3(tmp_path_factory.mktemp("tied") / "Tied", shape=SMALL, dtype="F32")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama3(tmp_path_factory.mktemp("untied") / "Untied", shape=SMALL, dtype="F32", tied=False)


ON_TIED: dict[str, tuple[dict[str, Any], bool, str]] = {
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, True, "'model.embed_tokens'"),
    "head": ({"target_modules": ["lm_head", "q_proj"]}, True, "'lm_head'"),
    "both": ({"target_modules": ["lm_head", "embed_tokens"]}, True, "'model.embed_tokens' and 'lm_head'"),
    "both as one": (
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        True,
        "'model.embed_tokens' and 'lm_head'",
    ),
    "by DoRA": ({"target_modules": ["lm_head", "embed_tokens"], "use_dora": True}, True, "'lm_head'"),
    "embedding whole": ({"modules_to_save": ["embed_tokens"]}, False, ""),
    "head whole": ({"modules_to_save": ["lm_head"]}, False, ""),
    "both whole": ({"modules_to_save": ["lm_head", "embed_tokens"]}, False, ""),
    "embedding whole, tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True, ""),
    "head whole, tied": ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True, ""),
    "one whole, one not": ({"modules_to_save": ["lm_head"], "target_modules": ["embed_tokens"]}, False, ""),
    "tokens": ({"trainable_token_indices": [3, 41]}, True, ""),
    "tokens of both": ({"trainable_token_indices": {"embed_tokens": [3], "lm_head": [3]}}, True, ""),
    "tokens of each": ({"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3]}}, True, "'lm_head'"),
    "tokens of the head": ({"trainable_token_indices": {"lm_head": [3]}}, True, "'lm_head'"),
}


@pytest.mark.parametrize("name", ON_TIED)
def test_a_tied_base_merged_as_peft_does(name: str, tied: Path, seed: int, tmp_path: Path) -> None:
    """Embedding and head, and whether they are one matrix afterwards."""
    options, stays_tied, warned = ON_TIED[name]
    adapter = trained(tied, tmp_path / "adapter", seed=seed, **PLAIN | options)
    model = merged_by_peft(tied, adapter)
    ours = merged_by_us(tied, adapter)
    assert_equal(numbers(ours), state_of(model))
    assert model.config.tie_word_embeddings == stays_tied
    assert ours.config["tie_word_embeddings"] == stays_tied
    assert (HEAD in ours.tensors) != stays_tied
    assert bool(ours.warnings) == bool(warned)
    assert warned in "".join(ours.warnings)


ON_UNTIED: dict[str, dict[str, Any]] = {
    "DoRA": {"target_modules": ["embed_tokens", "lm_head", "q_proj", "down_proj"], "use_dora": True},
    "DoRA, rsLoRA": {
        "target_modules": ["v_proj"],
        "use_dora": True,
        "use_rslora": True,
        "alpha_pattern": {"v_proj": 3},
    },
    "tokens": {"trainable_token_indices": [7, 3]},
    "tokens of each": {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [4]}},
    "whole": {"modules_to_save": ["embed_tokens"]},
    "ties nothing": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("name", ON_UNTIED)
def test_an_untied_base_merged_as_peft_does(name: str, untied: Path, seed: int, tmp_path: Path) -> None:
    adapter = trained(untied, tmp_path / "adapter", seed=seed, **PLAIN | ON_UNTIED[name])
    ours = merged_by_us(untied, adapter)
    assert_equal(numbers(ours), state_of(merged_by_peft(untied, adapter)))
    assert ours.warnings == ()


@pytest.mark.parametrize("name", ["plain", "tokens", "embedding whole"])
def test_a_resized_vocabulary(name: str, tied: Path, tmp_path: Path) -> None:
    """peft saves embedding and head whole once their size is not the base's; it merges into a base of that size."""
    rows = rows_of(tied) + 5
    options: dict[str, Any] = {
        "plain": {},
        "tokens": {"trainable_token_indices": [rows - 1, 2]},
        "embedding whole": {"modules_to_save": ["embed_tokens"]},
    }[name]
    adapter = trained(tied, tmp_path / "adapter", rows=rows, **PLAIN | options)
    ours = merged_by_us(tied, adapter)
    assert_equal(numbers(ours), state_of(merged_by_peft(tied, adapter, rows=rows)))
    assert ours.config["vocab_size"] == len(ours.vocabulary.tokens) == rows
    assert f"of {rows:,} rows in place of {rows - 5:,}; it brings no tokenizer" in ours.notes["vocabulary"]
    converters.convert(tied, tmp_path / "out.gguf", quant="f32", lora=adapter)
    assert gguf_weights(tmp_path / "out.gguf")["token_embd.weight"].shape[0] == rows


def test_fewer_rows_than_tokens_name_both_sizes(tied: Path, tmp_path: Path) -> None:
    rows = rows_of(tied) - 3
    adapter = trained(tied, tmp_path / "adapter", rows=rows, **PLAIN)
    with pytest.raises(
        CheckpointError, match=rf"embedding has {rows:,} rows, the base's tokenizer {rows + 3:,} tokens"
    ):
        converters.plan(tied, tmp_path / "out.gguf", lora=adapter)


def rows_of(base: Path) -> int:
    return int(load_file(base / "model.safetensors")[EMBED].shape[0])


def test_one_end_that_is_resized_alone_names_both_sizes(untied: Path, tmp_path: Path) -> None:
    adapter = trained(untied, tmp_path / "adapter", **PLAIN, modules_to_save=["lm_head"])
    tensors = load_file(adapter / WEIGHTS)
    tensors["base_model.model.lm_head.weight"] = np.ones((900, 32), np.float32)
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight' [\d,]+ and 'lm_head.weight' 900 rows"):
        converters.plan(untied, tmp_path / "out.gguf", lora=adapter)


def test_one_saved_end_is_enough_for_a_matrix_that_was_trained_as_one(tied: Path, tmp_path: Path) -> None:
    """Some writers drop the second of two equal tensors."""
    adapter = trained(tied, tmp_path / "adapter", **PLAIN, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    whole = numbers(merged_by_us(tied, adapter))
    tensors = load_file(adapter / WEIGHTS)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, adapter / WEIGHTS)
    assert_equal(numbers(merged_by_us(tied, adapter)), whole)


def test_the_other_end_is_no_substitute_where_they_were_trained_apart(tied: Path, tmp_path: Path) -> None:
    adapter = trained(tied, tmp_path / "adapter", **PLAIN, modules_to_save=["lm_head"])
    edit_json(adapter / "adapter_config.json", modules_to_save=["embed_tokens"])
    with pytest.raises(CheckpointError, match=r"weight of 'model.embed_tokens' is missing"):
        converters.plan(tied, tmp_path / "out.gguf", lora=adapter)


def test_tokens_that_are_no_rows(tied: Path, tmp_path: Path) -> None:
    adapter = trained(tied, tmp_path / "adapter", **PLAIN, trainable_token_indices=[3, 41])
    edit_json(adapter / "adapter_config.json", trainable_token_indices=[3, 123456])
    with pytest.raises(CheckpointError, match=r"trainable_token_indices has 123,456, .* has [\d,]+ rows"):
        converters.plan(tied, tmp_path / "out.gguf", lora=adapter)
    edit_json(adapter / "adapter_config.json", trainable_token_indices=[3])
    with pytest.raises(CheckpointError, match=r"shape \[2, 32\], 1 tokens and the base imply \[1, 32\]"):
        converters.plan(tied, tmp_path / "out.gguf", lora=adapter)


def test_every_target_writes_the_untied_ends(tied: Path, tmp_path: Path) -> None:
    """The head that the adapter brings, not the base's embedding, answers: in GGUF, ONNX and safetensors."""
    adapter = trained(tied, tmp_path / "adapter", **PLAIN, modules_to_save=["lm_head"])
    model = merged_by_peft(tied, adapter)
    tokens = [int(token) for token in np.random.default_rng(0).integers(3, 500, 9)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(torch.tensor([tokens])).logits[0, -1].numpy()
    converters.convert(tied, tmp_path / "out.gguf", quant="f32", lora=adapter)
    assert np.abs(last_logits(tmp_path / "out.gguf", tokens) - expected).max() < 1e-3
    converters.convert(tied, tmp_path / "onnx", to="onnx", quant="f32", lora=adapter)
    assert np.abs(TextGraph(tmp_path / "onnx").feed(tokens) - expected).max() < 1e-3
    converters.convert(tied, tmp_path / "folder", to="safetensors", quant="f32", lora=adapter)
    assert np.array_equal(load_file(tmp_path / "folder" / "model.safetensors")[HEAD], state_of(model)[HEAD])


@pytest.mark.parametrize("differ", [True, False])
@pytest.mark.parametrize("options", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}])
def test_a_base_that_says_tied_and_has_a_head(
    options: dict[str, Any], differ: bool, tied: Path, tmp_path: Path
) -> None:
    """The head that is there counts, as in transformers; where it is the embedding they are one matrix."""
    base = tmp_path / "base"
    shutil.copytree(tied, base)
    tensors = load_file(base / "model.safetensors")
    tensors[HEAD] = tensors[EMBED][::-1].copy() if differ else tensors[EMBED]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    adapter = trained(base, tmp_path / "adapter", **PLAIN | options)
    ours = merged_by_us(base, adapter)
    assert_equal(numbers(ours), state_of(merged_by_peft(base, adapter)))
    assert bool(ours.warnings) == (not differ and "target_modules" in options)


@pytest.mark.parametrize("more", [0, 5])
def test_a_gguf_base_gives_the_same_file(more: int, tied: Path, tmp_path: Path) -> None:
    """Its head of its own, its rows, and its sizes in the metadata."""
    rows = rows_of(tied) + more
    adapter = trained(tied, tmp_path / "adapter", rows=rows, **PLAIN, modules_to_save=["lm_head"])
    converters.convert(tied, tmp_path / "base.gguf", quant="f32")
    for name, source in (("direct", tied), ("merged", tmp_path / "base.gguf")):
        converters.convert(source, tmp_path / f"{name}.gguf", quant="f32", lora=adapter)
    direct, merged = (gguf_weights(tmp_path / f"{name}.gguf") for name in ("direct", "merged"))
    assert direct.keys() == merged.keys() >= {"output.weight"}
    assert all(np.array_equal(direct[key], merged[key]) for key in direct)
    header = read_header(tmp_path / "merged.gguf")
    assert header.get("llama.vocab_size", int, 0) == len(header.fields["tokenizer.ggml.tokens"].data) == rows

"""Families other than Llama: files equal llama.cpp's converter, say the same as transformers, and come back."""

import json
import shutil
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from families import FAMILIES
from ggufs import rewritten, weights
from llama_cpp_converter import converted_by_llama_cpp
from quantizer import differences, quantized_by_llama_cpp
from refusals import refusal
from safetensors.numpy import load_file
from safetensors.torch import save_file
from suite import shared

import converters
import edge_llama
from edge_llama import ArtifactError, CheckpointError
from edge_llama.files.formats import F16
from edge_llama.files.gguf import read_header, u32
from quant.recipe import RECIPES

PRE = {"qwen2": "qwen2", "qwen3": "qwen2", "smollm3": "llama-bpe"}
"""llama.cpp's names of byte-level tokenizers: those that were trained here it doesn't know."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family, and beside it what llama.cpp's converter makes of it."""

    def make(at: Path) -> None:
        at.mkdir()
        jobs = [
            (FAMILIES[name](at / name / "checkpoint"), at / name / "theirs.gguf", PRE.get(name, ""))
            for name in FAMILIES
        ]
        converted_by_llama_cpp(jobs)

    folder = shared(tmp_path_factory, "families", make)
    return {name: folder / name / "checkpoint" for name in FAMILIES}


@pytest.mark.parametrize("quant", ["f32", "q4_k_m"])
@pytest.mark.parametrize("name", FAMILIES)
def test_files_equal_llama_cpps_converter_and_quantizer(
    name: str, quant: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders[name]
    converters.convert(folder, tmp_path / "ours.gguf", quant=quant)
    theirs = quantized_by_llama_cpp(folder.with_name("theirs.gguf"), tmp_path / "theirs.gguf", RECIPES[quant].ftype)
    assert not list(differences(read_header(tmp_path / "ours.gguf"), read_header(theirs)))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_comes_back_from_gguf_is_the_same_model(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """To the bit for each weight, Gemma's norms included, which GGUF stores as they multiply."""
    folder = folders[name]
    converters.convert(folder, tmp_path / "a.gguf", quant="f32")
    converters.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", quant="f32")
    assert not list(differences(read_header(tmp_path / "a.gguf"), read_header(tmp_path / "b.gguf")))
    converters.convert(tmp_path / "a.gguf", tmp_path / "back", to="safetensors", quant="f32")
    ids = list(range(20, 60))
    model, back = families.reference(folder), families.reference(tmp_path / "back")
    if name != "mistral":  # a llama in GGUF
        assert type(back).__name__ == type(model).__name__.replace("ForConditionalGeneration", "ForCausalLM")
    assert abs(families.prompt_logits(back, ids) - families.prompt_logits(model, ids)).max() < 1e-4


LLAMA = "since llama.cpp's graph has no window"
REFUSED: dict[str, tuple[str, dict[str, object], str]] = {
    "Mistral's window": ("mistral", {"sliding_window": 4096}, f"sliding_window is 4096; .*{LLAMA}"),
    "Mistral's default window": ("mistral", {"sliding_window": ...}, f"sliding_window is None; .*{LLAMA}"),
    "Mixtral's window": ("mixtral", {"sliding_window": 128}, f"sliding_window is 128; .*{LLAMA}"),
    "Qwen2's window": (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 9, "layer_types": None},
        f"use_sliding_window is True; .*{LLAMA}",
    ),
    "Qwen3's layers": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        f"layer_types is .*{LLAMA}",
    ),
    "a window that is not": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "layer_types has sliding_attention, but",
    ),
    "layers of a third kind": (
        "qwen2",
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        "layer_types is .*expected a list of",
    ),
    "Qwen's rope": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 1e6,
            }
        },
        "rope_parameters is .*in GGUF it can only be: default, linear, yarn",
    ),
    "SmolLM3's layers": ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}, r"no_rope_layers is .*every fourth"),
    "Gemma's layers": (
        "gemma3",
        {"layer_types": ["full_attention"] + ["sliding_attention"] * 6},
        "layer_types is .*every sixth layer with full",
    ),
    "Gemma's scale": ("gemma3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64; .*the size of a head"),
    "Gemma's softcap": (
        "gemma3",
        {"attn_logit_softcapping": 50.0},
        "attn_logit_softcapping is 50.0, and it isn't known",
    ),
    "Gemma in both directions": (
        "gemma3",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention is True",
    ),
    "more experts used": ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5 of 4 experts"),
    "fewer experts": ("mixtral", {"num_local_experts": 3}, "shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_gguf_file_expresses_is_refused_by_name(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    family, changes, expected = REFUSED[name]
    folder = edited(folders[family], tmp_path / "checkpoint", changes)
    with refusal(CheckpointError, expected, folder):
        converters.plan(folder, tmp_path / "x.gguf")


def edited(folder: Path, to: Path, changes: dict[str, object]) -> Path:
    """The checkpoint with other fields in its config.json; ... removes one."""
    to.mkdir()
    for file in folder.iterdir():
        if file.name != "config.json":
            (to / file.name).symlink_to(file)
    config = {**json.loads((folder / "config.json").read_text("utf-8")), **changes}
    (to / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return to


def test_mixtral_is_refused_as_onnx(folders: dict[str, Path], tmp_path: Path) -> None:
    with refusal(CheckpointError, "MixtralForCausalLM can't be written as ONNX", folders["mixtral"]):
        converters.plan(folders["mixtral"], tmp_path / "out", to="onnx")


@pytest.mark.parametrize("key", ["rope.dimension_count", "attention.value_length"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "smollm3", "gemma3"])
def test_a_file_that_llama_cpp_dies_of_is_refused(
    name: str, key: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    key = f"{name}.{key}"
    path = rewritten(folders[name].with_name("theirs.gguf"), tmp_path / "x.gguf", fields={key: u32(6)})
    with refusal(ArtifactError, f"{key} is 6", path):
        edge_llama.open(path)


def test_norms_of_a_family_are_f32(folders: dict[str, Path], tmp_path: Path) -> None:
    theirs = folders["qwen3"].with_name("theirs.gguf")
    path = rewritten(theirs, tmp_path / "x.gguf", formats=lambda info: F16 if "q_norm" in info.name else info.format)
    with refusal(ArtifactError, "attn_q_norm.weight' is stored as f16, expected f32", path):
        edge_llama.open(path)


def test_experts_of_two_formats_lie_in_one_tensor(folders: dict[str, Path], tmp_path: Path) -> None:
    """As half-finished conversions leave them: numbers stay what they are."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders["mixtral"], folder)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    odd = next(name for name in tensors if "layers.1.block_sparse_moe.experts.2.w3" in name)
    tensors[odd] = tensors[odd].to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    converters.convert(folder, tmp_path / "x.gguf", quant="f32")
    found = weights(tmp_path / "x.gguf")["blk.1.ffn_up_exps.weight"]
    assert (found[2] == tensors[odd].float().numpy()).all()
    assert (found[3] == tensors[odd.replace("experts.2", "experts.3")].numpy()).all()


def test_a_vision_tower_is_left_out_and_said(folders: dict[str, Path], tmp_path: Path) -> None:
    plan = converters.plan(folders["gemma3_with_vision"], tmp_path / "x.gguf")
    assert "text tower" in plan.checkpoint.notes["vision tower"]
    assert not any("vision" in entry.tensor.name for entry in plan.layout.entries)
    converters.convert(folders["gemma3_with_vision"], tmp_path / "out", to="safetensors", quant="f32")
    assert any("vision_tower" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_gemmas_norms_in_float16_are_read_as_transformers_does(tmp_path: Path) -> None:
    """Where llama.cpp's converter is wrong: it adds one in float16 (benchmarks/converter_parity.py: KNOWN)."""
    folder = FAMILIES["gemma3"](tmp_path / "checkpoint", dtype="float16")
    converters.convert(folder, tmp_path / "x.gguf", quant="f16")
    stored = load_file(folder / "model.safetensors")["model.layers.2.self_attn.q_norm.weight"]
    assert stored.dtype == np.float16
    expected = 1 + stored.astype(np.float32)
    assert (weights(tmp_path / "x.gguf")["blk.2.attn_q_norm.weight"] == expected).all()
    assert (expected != (1 + stored).astype(np.float32)).any()

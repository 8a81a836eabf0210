"""Llama 4's text tower as a GGUF file: transformers' logits, llama.cpp's bytes, and what no such file can hold.

That our float files equal llama.cpp's converter needs its source: benchmarks/converter_parity.py.
"""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama4
import numpy as np
import pytest
import torch
from engines import on_engine
from ggufs import rewritten
from llama4_reference import Reference
from near_ties import decided
from quantizer import WITHOUT_IMPORTANCE, differences, quantized_by_llama_cpp
from refusals import refusal

import converters
import edge_llama
from converters.architectures import llama4 as architecture
from edge_llama.errors import ArtifactError, CheckpointError
from edge_llama.files.gguf import Header, read_header, u32
from quant.recipe import RECIPES

MAKERS: dict[str, Callable[..., Path]] = {
    "scout": llama4.scout,
    "maverick": llama4.maverick,
    "text only": llama4.text_only,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each shape, five layers: the last of them ends no group of four."""
    root = tmp_path_factory.mktemp("llama4")
    return {name: make(root / name, num_hidden_layers=5) for name, make in MAKERS.items()}


def converted(folder: Path, output: Path, quant: str = "f32") -> Header:
    converters.convert(folder, output, quant=quant, tower="text")
    return read_header(output)


def logits(path: Path, tokens: list[int]) -> Any:
    """After a prompt, at the settings where parity is tight: f32 cache, no flash attention."""

    def work(session: Any, tower: Any) -> Any:
        session.prefill(tokens)
        return session.logits()

    with edge_llama.open(path, n_ctx=1024, kv_format="f32") as model:
        return on_engine(model, work)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("scout", {}),
        ("maverick", {}),
        ("text only", {"num_experts_per_tok": 2, "num_local_experts": 16}),
        ("text only", {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ],
    ids=["scout", "maverick", "two experts a token", "tied, linear scaling"],
)
def test_logits_equal_transformers(
    name: str, changes: dict[str, Any], rng: np.random.Generator, tmp_path: Path
) -> None:
    """A prompt of several hundred tokens in f32. Tolerance 1e-3."""
    folder = MAKERS[name](tmp_path / "checkpoint", seed=int(rng.integers(1000)), **changes)
    header = converted(folder, tmp_path / "a.gguf")
    reference = Reference(folder)
    tokens = decided(reference.model, lambda: rng.integers(3, 700, 700).tolist())
    expected = reference.logits(tokens)[-1]
    assert np.abs(logits(header.path, tokens) - expected).max() < 1e-3


def random_checkpoint(folder: Path, rng: np.random.Generator, *, is_slow: bool) -> tuple[Path, str]:
    """A checkpoint, and the recipe of floats that loses nothing."""
    kind = "scout" if is_slow else str(rng.choice(["scout", "maverick"]))
    dtype = str(rng.choice(["F32", "BF16", "F16"]))
    wide = llama4.K_QUANTS if kind == "scout" and not is_slow and rng.integers(2) else {}
    changes: dict[str, Any] = {"num_hidden_layers": int(rng.integers(4, 10)), **wide}
    if kind == "scout":
        changes["num_local_experts"] = int(rng.choice([2, 8] if wide or is_slow else [2, 8, 16]))
        changes["num_key_value_heads"] = int(rng.choice([1, 2, 4]))
    print(kind, dtype, changes)
    make = MAKERS[kind]
    return make(folder, dtype=dtype, shards=int(rng.integers(1, 4)), **changes), "bf16" if dtype == "BF16" else "f32"


@pytest.mark.parametrize("quant", WITHOUT_IMPORTANCE)
def test_files_equal_llama_cpps_quantizer(quant: str, rng: np.random.Generator, tmp_path: Path) -> None:
    folder, lossless = random_checkpoint(tmp_path / "checkpoint", rng, is_slow=quant.startswith("iq"))
    floats, ours = converted(folder, tmp_path / "floats.gguf", lossless), converted(folder, tmp_path / "a.gguf", quant)
    theirs = quantized_by_llama_cpp(floats.path, tmp_path / "theirs.gguf", RECIPES[quant].ftype)
    assert not list(differences(ours, read_header(theirs)))


def test_a_gguf_source_is_requantized_as_llama_cpp_does(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        source = converted(folder, tmp_path / f"{name}-q8_0.gguf", "q8_0")
        ours = converted(source.path, tmp_path / f"{name}-q4_0.gguf", "q4_0")
        theirs = quantized_by_llama_cpp(source.path, tmp_path / "theirs.gguf", RECIPES["q4_0"].ftype)
        assert not list(differences(ours, read_header(theirs)))


@pytest.mark.parametrize("name", MAKERS)
def test_a_gguf_file_becomes_the_folder_again(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """In f32 with every bit of the text tower, read as transformers reads it; quantized with what its numbers mean."""
    source = converted(folders[name], tmp_path / "f32.gguf")
    converters.convert(source.path, tmp_path / "text", to="safetensors", quant="f32")
    ours, theirs = (
        converters.plan(at, tmp_path / "x.gguf", tower="text").checkpoint.tensors
        for at in (tmp_path / "text", folders[name])
    )
    for key, tensor in ours.items():
        original = theirs.get(f"language_model.{key}") or theirs[key]
        assert tensor.shape == original.shape
        assert np.array_equal(tensor.read(0, tensor.rows), original.read(0, tensor.rows)), key
    small = converted(folders[name], tmp_path / "q8_0.gguf", "q8_0")
    converters.convert(small.path, tmp_path / "again", to="safetensors", quant="f32")
    tokens = list(range(100, 140))
    expected = logits(converted(tmp_path / "again", tmp_path / "again.gguf").path, tokens)
    assert np.abs(Reference(tmp_path / "again").logits(tokens)[-1] - expected).max() < 1e-3


def test_experts_are_transposed_and_split(folders: dict[str, Path], tmp_path: Path) -> None:
    """Against torch's own transpose of what the checkpoint holds."""
    header = converted(folders["scout"], tmp_path / "a.gguf")
    stored = {
        info.name: np.fromfile(header.path, np.float32, info.nbytes // 4, offset=info.offset).reshape(info.shape)
        for info in header.tensors
    }
    weights = llama4.weights(json.loads((folders["scout"] / "config.json").read_text()), 0)
    at = "language_model.model.layers.2.feed_forward."
    gate, up = torch.from_numpy(weights[at + "experts.gate_up_proj"]).transpose(1, 2).chunk(2, 1)
    down = torch.from_numpy(weights[at + "experts.down_proj"]).transpose(1, 2)
    for kind, expected in (("gate", gate), ("up", up), ("down", down)):
        assert np.array_equal(stored[f"blk.2.ffn_{kind}_exps.weight"], expected.numpy())
    assert np.array_equal(stored["blk.2.ffn_gate_inp.weight"], weights[at + "router.weight"])


def test_rows_read_in_any_slices_are_the_same(
    folders: dict[str, Path], rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stripes so narrow that they cross from one expert to the next."""
    monkeypatch.setattr("converters.tensors.transposed._STRIPE", 20_000)
    monkeypatch.setattr("converters.tensors.transposed._BLOCK", 7)
    for entry in converters.plan(folders["scout"], tmp_path / "x.gguf", tower="text").layout.entries:
        tensor = entry.tensor
        cuts = rng.integers(0, tensor.rows // tensor.step + 1, 5) * tensor.step
        borders = sorted({0, *map(int, cuts), tensor.rows})
        slices = [tensor.read(start, stop) for start, stop in pairwise(borders)]
        assert np.array_equal(np.vstack(slices), tensor.read(0, tensor.rows)), tensor.name


def edited(source: Path, folder: Path, **changes: Any) -> Path:
    """The checkpoint with other fields in its text config; the weights are the same files."""
    shutil.copytree(source, folder, copy_function=lambda old, new: Path(new).symlink_to(old))
    config = json.loads((source / "config.json").read_text())
    config.get("text_config", config).update(changes)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


NOT_IN_GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "another chunk": ({"attention_chunk_size": 32}, "attention_chunk_size is 32; .*: 8192"),
    "no chunks": ({"attention_chunk_size": None}, "attention_chunk_size is None; .*: 8192"),
    "another floor": ({"floor_scale": 4096}, "floor_scale is 4096; .*: 8192"),
    "another strength": ({"attn_scale": 0.2}, "attn_scale is 0.2; .*: 0.1"),
    "no temperature": ({"attn_temperature_tuning": False}, "attn_temperature_tuning is False; .*: true"),
    "another interval": ({"no_rope_layer_interval": 2}, "no_rope_layer_interval is 2; .*every fourth layer"),
    "rotary everywhere": ({"no_rope_layers": [1] * 5}, r"no_rope_layers is \[1, 1, 1, 1, 1\]; .*every fourth layer"),
    "chunks nowhere": ({"layer_types": ["full_attention"] * 5}, "layer_types is .*full_attention in every fourth"),
    "no QK norm": ({"use_qk_norm": False}, r"use_qk_norm is False; .*true with any other number"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; .*: silu"),
    "experts here and there": ({"moe_layers": [0, 3]}, r"moe_layers is \[0, 3\]; .*every second"),
    "no experts": ({"num_local_experts": 0, "moe_layers": []}, "num_local_experts is 0; .*at least one"),
    "biases": ({"attention_bias": True}, "attention_bias is True; .*no biases"),
    "three layers": ({"num_hidden_layers": 3, "moe_layers": [0, 1, 2]}, "num_hidden_layers is 3; .*: 4 or more"),
}


@pytest.mark.parametrize("name", NOT_IN_GGUF)
def test_what_gguf_cannot_hold_is_refused_by_its_field(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The checkpoint is sound: a folder is written where weights and config still fit."""
    changes, expected = NOT_IN_GGUF[name]
    folder = edited(folders["scout"], tmp_path / "checkpoint", **changes)
    with refusal(CheckpointError, expected, folder, "config.json"):
        converters.convert(folder, tmp_path / "x.gguf", tower="text")
    assert not (tmp_path / "x.gguf").exists()
    if not {"moe_layers", "attention_bias"} & changes.keys():
        converters.plan(folder, tmp_path / "out", to="safetensors")


def test_mavericks_128_experts_have_no_qk_norm_in_gguf(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(folders["maverick"], tmp_path / "checkpoint", use_qk_norm=True)
    with refusal(CheckpointError, "use_qk_norm is True; in GGUF it can only be: false with 128 experts", folder):
        converters.plan(folder, tmp_path / "x.gguf", tower="text")


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_temperature_tuning": 4, "no_rope_layers": []},  # as first published
        {
            "no_rope_layers": [1, 1, 1, 0, 1],
            "layer_types": ["chunked_attention"] * 3 + ["full_attention", "chunked_attention"],
        },
        {"moe_layers": None, "hidden_act": "swish", "router_jitter_noise": 0.5, "for_llm_compressor": False},
    ],
)
def test_other_spellings_of_the_same_model_give_the_same_file(
    changes: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    same = converted(edited(folders["scout"], tmp_path / "checkpoint", **changes), tmp_path / "a.gguf")
    assert not list(differences(same, converted(folders["scout"], tmp_path / "b.gguf")))


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "a wider expert": ({"intermediate_size": 128}, "shared_expert.gate_proj.weight' has shape"),
    "more experts": ({"num_local_experts": 8}, "router.weight' has shape"),
    "fewer layers": ({"num_hidden_layers": 4, "moe_layers": [0, 1, 2, 3]}, r"layers\.4\..* and 11 more is not part of"),
    "dense layers between": ({"moe_layers": [1, 3]}, r"layers\.0\.feed_forward\.gate_proj.weight' is missing"),
    "too many experts a token": ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5 of 4 experts"),
    "a list that is short": ({"no_rope_layers": [1]}, "no_rope_layers has 1 entries for 5 layers"),
    "a list of words": ({"moe_layers": ["0"]}, "moe_layers is .*expected a list of layers"),
    "a chunk of words": ({"attention_chunk_size": "8k"}, "attention_chunk_size is '8k'"),
    "layers without end": ({"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648, expected 4096 at most"),
    "quantized weights": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is set"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_config_that_does_not_fit_the_weights_is_refused(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    changes, expected = MISFITS[name]
    folder = edited(folders["scout"], tmp_path / "checkpoint", **changes)
    for options in ({"tower": "text"}, {"to": "safetensors"}):
        with refusal(CheckpointError, expected, folder):
            converters.plan(folder, tmp_path / "x.gguf", **options)


def test_a_tensor_of_neither_tower_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = converters.plan(folders["scout"], tmp_path / "x.gguf", tower="text").checkpoint
    extra = {"audio_model.weight": next(iter(checkpoint.tensors.values()))}
    object.__setattr__(checkpoint, "tensors", {**checkpoint.tensors, **extra})
    with refusal(CheckpointError, "audio_model", folders["scout"]):
        architecture.LLAMA4.weights(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"), [("block_count", 3), ("attention.sliding_window", 0), ("attention.value_length", 32)]
)
def test_a_file_that_llama_cpp_dies_of_is_refused(
    key: str, value: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = converted(folders["text only"], tmp_path / "a.gguf", "q8_0")
    path = rewritten(source.path, tmp_path / "b.gguf", fields={f"llama4.{key}": u32(value)})
    with refusal(ArtifactError, f"llama4.{key} is {value}", path):
        edge_llama.open(path)

"""Adapters as GGUF files: llama.cpp's bytes where its converter is right, peft's numbers where it is not."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from adapters import KINDS, LINEAR, WEIGHTS, merged_by_peft, state_of, trained
from ggufs import weights
from llama_cpp_converter import adapters_by_llama_cpp
from numpy.typing import NDArray
from quantizer import differences
from refusals import refusal
from safetensors.numpy import load_file, save_file
from suite import shared
from variants import edit_json

import converters
from edge_llama import CheckpointError, OptionError, OutputError
from edge_llama.files.gguf import read_header
from edge_llama.files.gguf_adapter import read_adapter
from edge_llama.files.integrity import verify

WHOLE = ("whole modules", "a whole network inside")
"""What no GGUF adapter can express."""
SCALED = ("rsLoRA", "ranks and alphas by pattern")
"""What llama.cpp's converter writes with other numbers than peft computes with: it knows one alpha and no root."""
EQUAL = [name for name in KINDS if name not in (*WHOLE, *SCALED)]
FORMATS = ("f32", "f16", "bf16", "q8_0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3.2 in f32, untied, grouped queries."""
    return checkpoints.llama3(tmp_path_factory.mktemp("base") / "Base", dtype="F32", tied=False)


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every adapter that llama.cpp's converter writes right, and beside it what that makes of it."""

    def make(at: Path) -> None:
        at.mkdir()
        jobs = []
        for name in EQUAL:
            adapter = trained(base, at / name / "adapter", **KINDS[name])
            formats = FORMATS if name == "every linear layer" else ("f32",)
            jobs += [(base, adapter, at / name / f"{format_}.gguf", format_) for format_ in formats]
        adapters_by_llama_cpp(jobs)

    return shared(tmp_path_factory, "gguf-adapters", make)


@pytest.mark.parametrize("name", EQUAL)
def test_the_files_are_llama_cpps(name: str, base: Path, folders: Path, tmp_path: Path) -> None:
    """Tables, bytes and metadata, but for names and our own keys."""
    for theirs in sorted((folders / name).glob("*.gguf")):
        ours = tmp_path / theirs.name
        converters.convert(folders / name / "adapter", ours, base=base, quant=theirs.stem)
        assert list(differences(read_header(ours), read_header(theirs))) == []


def deltas(path: Path) -> dict[str, NDArray[np.float64]]:
    """What a file adds to the base's weights, by llama.cpp's arithmetic."""
    adapter, numbers = read_adapter(path), weights(path)
    found = {}
    for name, pair in adapter.pairs.items():
        a, b = numbers[pair.a.name].astype(np.float64), numbers[pair.b.name].astype(np.float64)
        scale = adapter.alpha / b.shape[1] if adapter.alpha else 1.0
        found[name] = scale * ((b @ a.T).T if name == "token_embd.weight" else b @ a)
    return found


@pytest.mark.parametrize("name", [name for name in KINDS if name not in WHOLE])
def test_what_is_added_is_what_peft_adds(name: str, base: Path, seed: int, tmp_path: Path) -> None:
    """Within 1e-6, also with ranks and alphas by pattern and by the root of the rank."""
    adapter = trained(base, tmp_path / "adapter", seed=seed, **KINDS[name])
    converters.convert(adapter, tmp_path / "a.gguf", base=base)
    converters.convert(base, tmp_path / "base.gguf", quant="f32")
    merged_by_peft(base, adapter).save_pretrained(tmp_path / "merged")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, tmp_path / "merged")
    converters.convert(tmp_path / "merged", tmp_path / "merged.gguf", quant="f32")
    before, after, added = (
        weights(tmp_path / "base.gguf"),
        weights(tmp_path / "merged.gguf"),
        deltas(tmp_path / "a.gguf"),
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == added.keys()
    for weight, delta in added.items():
        assert np.allclose(before[weight] + delta, after[weight], rtol=1e-6, atol=1e-6), weight


@pytest.mark.parametrize("pattern", [{"v_proj": 0}, {"q_proj": 7.5}])
@pytest.mark.parametrize("alpha", [0, 6])
def test_an_alpha_of_zero_is_no_alpha_to_llama_cpp(
    alpha: int, pattern: Mapping[str, float], base: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "alpha_pattern": pattern}
    adapter = trained(base, tmp_path / "adapter", lora_alpha=alpha, **options)
    converters.convert(adapter, tmp_path / "a.gguf", base=base)
    expected, before = state_of(merged_by_peft(base, adapter)), load_file(base / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    added = deltas(tmp_path / "a.gguf")["blk.1.attn_v.weight"]
    assert np.allclose(before[name] + added, expected[name], rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(base, tmp_path_factory.mktemp("plain") / "adapter", r=4, target_modules=LINEAR)


def test_a_config_alone_is_base_enough(base: Path, plain: Path, tmp_path: Path) -> None:
    """And so is a GGUF file of the base, and what the adapter names."""
    (tmp_path / "config").mkdir()
    shutil.copy(base / "config.json", tmp_path / "config")
    converters.convert(base, tmp_path / "base.gguf", quant="q4_k_m")
    named = tmp_path / "named"
    shutil.copytree(plain, named)
    edit_json(named / "adapter_config.json", base_model_name_or_path=str(base))
    sources: dict[str, tuple[Path, Path | None]] = {
        "checkpoint": (plain, base),
        "folder": (plain, tmp_path / "config"),
        "file": (plain, tmp_path / "config" / "config.json"),
        "gguf": (plain, tmp_path / "base.gguf"),
        "named": (named, None),
    }
    found = {}
    for name, (adapter, given) in sources.items():
        converters.convert(adapter, tmp_path / f"{name}-out.gguf", base=given)
        found[name] = weights(tmp_path / f"{name}-out.gguf")
    for other in found.values():
        assert found["checkpoint"].keys() == other.keys()
        assert all(np.array_equal(found["checkpoint"][key], other[key]) for key in other)


def test_the_file_can_be_verified_and_names_no_folder_of_its_maker(base: Path, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "legal")
    edit_json(tmp_path / "legal" / "adapter_config.json", base_model_name_or_path="/home/jane/models/Base-1B/")
    converters.convert(tmp_path / "legal", tmp_path / "a.gguf", base=base)
    header = read_header(tmp_path / "a.gguf")
    verify(header)
    assert header.get("general.name", str, "") == "legal"
    assert header.get("general.base_model.0.name", str, "") == "Base-1B"
    assert b"jane" not in (tmp_path / "a.gguf").read_bytes()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "whole modules": ({"modules_to_save": ["lm_head"]}, "'lm_head.weight' was trained as a whole"),
    "norms": ({"modules_to_save": ["norm"]}, "norm.weight' was trained as a whole"),
    "DoRA": ({"use_dora": True}, "q_proj' was trained by DoRA"),
    "tokens": ({"trainable_token_indices": [3, 4]}, "'model.embed_tokens' was trained for single tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_gguf_adapter_expresses_is_refused_and_the_way_named(name: str, base: Path, tmp_path: Path) -> None:
    options, problem = REFUSED[name]
    adapter = trained(base, tmp_path / "adapter", r=2, target_modules=["q_proj"], **options)
    expected = f"{problem}.*can't express; merge it .*--lora .*adapter"
    with refusal(CheckpointError, expected, adapter):
        converters.convert(adapter, tmp_path / "a.gguf", base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    converters.convert(base, tmp_path / "merged.gguf", lora=adapter)


@pytest.mark.parametrize("end", ["embed_tokens", "lm_head"])
def test_embedding_and_head_that_are_one_matrix(end: str, tmp_path: Path) -> None:
    tied = checkpoints.llama3(tmp_path / "Tied", dtype="F32")
    adapter = trained(tied, tmp_path / "adapter", r=2, target_modules=[end, "q_proj"])
    with pytest.raises(CheckpointError, match=f"{end}' was trained, a matrix that is embedding and head .*--lora"):
        converters.plan(adapter, tmp_path / "a.gguf", base=tied)


def test_a_copy_of_the_bases_embedding_is_left_out_where_it_is_one(base: Path, tmp_path: Path) -> None:
    """peft saves one beside an adapter of it. A config.json alone can't tell: that is said."""
    adapter = trained(base, tmp_path / "adapter", r=2, target_modules=["embed_tokens", "q_proj"])
    assert converters.plan(adapter, tmp_path / "a.gguf", base=base).warnings == ()
    told = converters.plan(adapter, tmp_path / "a.gguf", base=base / "config.json").warnings
    assert "the adapter has a copy of 'model.embed_tokens.weight'" in told[0]
    tensors = load_file(adapter / WEIGHTS)
    name = next(name for name in tensors if name.endswith("embed_tokens.base_layer.weight"))
    tensors[name][3, 5] += 1
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight' is another than the base's.*--lora"):
        converters.plan(adapter, tmp_path / "a.gguf", base=base)


def test_options_that_are_not_for_adapters_and_bases_that_are_not_there(
    base: Path, plain: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="--quant q4_k_m: not for an adapter; known: f32, f16, bf16, q8_0"):
        converters.plan(plain, tmp_path / "a.gguf", base=base, quant="q4_k_m")
    with pytest.raises(OptionError, match="--chat-template: not for an adapter"):
        converters.plan(plain, tmp_path / "a.gguf", base=base, chat_template="none")
    with pytest.raises(OptionError, match=r"an adapter becomes a \.gguf file"):
        converters.plan(plain, tmp_path / "a", base=base, to="gguf")
    with pytest.raises(OptionError, match="--base: is for adapters alone"):
        converters.plan(base, tmp_path / "a.gguf", base=base)
    with pytest.raises(CheckpointError, match=r"this is an adapter.*give the base, and --lora"):
        converters.plan(plain, tmp_path / "a", to="onnx", base=base)
    away = tmp_path / "away"
    shutil.copytree(plain, away)
    edit_json(away / "adapter_config.json", base_model_name_or_path="meta-llama/Llama-3.2-1B")
    with pytest.raises(OptionError, match=r"it names 'meta-llama/Llama-3.2-1B', which is not here; .*--base"):
        converters.plan(away, tmp_path / "a.gguf")


def test_an_adapter_for_another_base_and_one_with_nan(base: Path, plain: Path, tmp_path: Path) -> None:
    other = checkpoints.llama3(tmp_path / "Other", shape=checkpoints.Shape(hidden=256, heads=8))
    with pytest.raises(
        CheckpointError, match=r"has shape \[128, 4\], rank 4 and the base imply \[256, 4\].*another base"
    ):
        converters.plan(plain, tmp_path / "a.gguf", base=other)
    spoiled = tmp_path / "spoiled"
    shutil.copytree(plain, spoiled)
    tensors = load_file(spoiled / WEIGHTS)
    tensors[next(iter(tensors))][0] = np.nan
    save_file(tensors, spoiled / WEIGHTS)
    with pytest.raises(CheckpointError, match="weights are NaN or infinite; the training went wrong"):
        converters.convert(spoiled, tmp_path / "a.gguf", base=base)
    assert not (tmp_path / "a.gguf").exists()


def test_the_output_may_not_be_the_adapters_own_file(base: Path, plain: Path, tmp_path: Path) -> None:
    converters.convert(base, tmp_path / "base.gguf")
    with pytest.raises(OutputError, match="same"):
        converters.convert(plain, tmp_path / "base.gguf", base=tmp_path / "base.gguf", force=True)

"""The report's "N bytes to M": N is what is read of the source's files, whatever is written; progress counts it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import llama4
import meta_folders
import pytest
from adapters import SMALL, trained
from safetensors.numpy import load_file
from variants import edit_json

import converters
from edge_llama.files.gguf import read_header

TARGETS: dict[str, dict[str, Any]] = {
    "GGUF": {},
    "GGUF in parts": {"max_shard_bytes": 100_000},
    "safetensors": {"to": "safetensors"},
    "ONNX": {"to": "onnx", "quant": "int4", "block": 32},
    "ONNX with zero points": {"to": "onnx", "quant": "int8", "zero_points": True},
    "ONNX in floats": {"to": "onnx", "quant": "f32"},
    "portable": {"to": "onnx", "portable": True},
}


def bytes_of(folder: Path) -> int:
    """What the safetensors files of a folder hold."""
    return sum(array.nbytes for file in folder.glob("*.safetensors") for array in load_file(file).values())


def output_of(name: str, folder: Path) -> Path:
    return folder / ("out.gguf" if name.startswith("GGUF") else "out")


def converted(source: Path, output: Path, **options: Any) -> tuple[int, list[tuple[int, int]]]:
    """The bytes that the report names, and what progress was told."""
    seen: list[tuple[int, int]] = []
    plan = converters.convert(source, output, on_progress=lambda *at: seen.append(at), **options).plan
    return plan.layout.source_bytes, seen


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", TARGETS)
def test_every_target_counts_what_it_reads(name: str, tied: bool, tmp_path: Path) -> None:
    """A tied head is read twice and counted once; scales of rotary embedding are computed."""
    base = checkpoints.llama3(tmp_path / "base", shape=SMALL, dtype="F16", tied=tied)
    edit_json(base / "config.json", max_position_embeddings=512)  # tables of rotary embedding are as long
    counted, seen = converted(base, output_of(name, tmp_path), **TARGETS[name])
    assert counted == bytes_of(base)
    assert {total for _, total in seen} == {counted}
    assert seen[-1][0] == counted
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(seen))


@pytest.mark.parametrize("name", ["GGUF", "ONNX", "safetensors"])
def test_an_adapter_is_read_too(name: str, tmp_path: Path) -> None:
    """And not what it replaces: here the head, which is the base's embedding and is read for that."""
    base = checkpoints.llama3(tmp_path / "base", shape=SMALL, dtype="F16")
    adapter = trained(base, tmp_path / "adapter", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    counted, seen = converted(base, output_of(name, tmp_path), lora=adapter, **TARGETS[name])
    assert counted == bytes_of(base) + bytes_of(adapter)
    assert seen[-1] == (counted, counted)


def test_a_whole_tensor_of_an_adapter_stands_for_the_bases(tmp_path: Path) -> None:
    base = checkpoints.llama3(tmp_path / "base", shape=SMALL, dtype="F16", tied=False)
    adapter = trained(base, tmp_path / "adapter", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    counted, _ = converted(base, tmp_path / "out.gguf", lora=adapter)
    head = load_file(base / "model.safetensors")["lm_head.weight"].nbytes
    assert counted == bytes_of(base) + bytes_of(adapter) - head


def test_a_quantized_source_counts_as_it_is_stored(tmp_path: Path) -> None:
    base = checkpoints.llama3(tmp_path / "base", shape=SMALL, dtype="F16", tied=False)
    converters.convert(base, tmp_path / "q8_0.gguf", quant="q8_0")
    counted, _ = converted(tmp_path / "q8_0.gguf", tmp_path / "out.gguf", quant="f32")
    tensors = [info for info in read_header(tmp_path / "q8_0.gguf").tensors if info.name != "rope_freqs.weight"]
    assert counted == sum(info.nbytes for info in tensors) < 0.6 * bytes_of(base)


def test_each_tower_counts_its_own(tmp_path: Path) -> None:
    base = llama4.scout(tmp_path / "base", dtype="F16")
    tensors = load_file(base / "model.safetensors")
    text = sum(array.nbytes for name, array in tensors.items() if name.startswith("language_model."))
    assert converters.plan(base, tmp_path / "text.gguf", tower="text").layout.source_bytes == text
    assert converters.plan(base, tmp_path / "out", to="onnx").layout.source_bytes == bytes_of(base)
    for options in ({"vision_to": "gguf"}, {"vision_quant": "int4"}):
        vision = converters.plan(base, tmp_path / "vision", tower="vision", **options)
        assert vision.layout.source_bytes == bytes_of(base) - text


def test_metas_shards_count_once(tmp_path: Path) -> None:
    """Norms are whole in each of them."""
    one, two = (meta_folders.llama2(tmp_path / str(shards), dtype="F16", shards=shards) for shards in (1, 2))
    counted = {path: converters.plan(path, tmp_path / "out.gguf").layout.source_bytes for path in (one, two)}
    assert counted[one] == counted[two]

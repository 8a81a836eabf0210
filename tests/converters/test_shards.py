"""Safetensors in several files: as the reference names, fills and indexes them."""

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from ggufs import weights
from packed_folders import tensors_of
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import converters
from edge_llama import OutputError
from edge_llama.files import checksums

LIMIT = 200_000
INDEX = "model.safetensors.index.json"
QUANTS = pytest.mark.parametrize("quant", ["bf16", "f16", "f32", "w4a16"])


def written(source: Path, output: Path, **options: Any) -> Path:
    converters.convert(source, output, to="safetensors", **options)
    return output


def index_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / INDEX).read_text("utf-8"))
    return found


@QUANTS
def test_shards_hold_the_same_tensors_and_the_index_says_where(quant: str, llama3: Path, tmp_path: Path) -> None:
    whole = written(llama3, tmp_path / "whole", quant=quant)
    folder = written(llama3, tmp_path / "folder", quant=quant, max_shard_bytes=LIMIT)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert files == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 2
    places, expected, found = index_of(folder)["weight_map"], tensors_of(whole), tensors_of(folder)
    assert set(places.values()) == set(files)
    assert list(places) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        with safe_open(folder / places[name], framework="pt") as file:
            assert torch.equal(file.get_tensor(name), tensor), name
    assert index_of(folder)["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert checksums.verify(folder) == len(list(folder.iterdir())) - 1


@QUANTS
def test_they_are_filled_in_order_up_to_the_limit(quant: str, llama3: Path, tmp_path: Path) -> None:
    """What is larger has a file of its own, and a packed matrix's three arrays are never parted."""
    plan = converters.plan(llama3, tmp_path / "x", to="safetensors", quant=quant, max_shard_bytes=LIMIT)
    sizes = [sum(entry.nbytes for entry in part.entries) for part in plan.layout.parts]
    for part, size in zip(plan.layout.parts, sizes, strict=True):
        modules = {entry.tensor.name.rpartition(".")[0] for entry in part.entries}
        assert size <= LIMIT or len(modules) == 1
    assert sum(sizes[:2]) > LIMIT
    places: dict[str, set[str]] = {}
    for part in plan.layout.parts:
        for entry in part.entries:
            places.setdefault(entry.tensor.name.rpartition(".")[0], set()).add(part.name)
    assert all(len(names) == 1 for names in places.values())


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_numbers_begin_where_their_dtype_may(limit: int | None, llama4_scout: Path, tmp_path: Path) -> None:
    folder = written(llama4_scout, tmp_path / "out", quant="w4a16", max_shard_bytes=limit)
    sizes = {"I64": 8, "I32": 4, "BF16": 2}
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        del header["__metadata__"]
        assert length % 8 == 0
        assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in header.values())


def test_what_fits_in_one_is_one_without_an_index(llama3: Path, tmp_path: Path) -> None:
    whole = written(llama3, tmp_path / "whole")
    folder = written(llama3, tmp_path / "folder", max_shard_bytes=1 << 30)
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }
    assert not (folder / INDEX).exists()


def test_transformers_loads_them(llama3: Path, tmp_path: Path) -> None:
    found = []
    for name, limit in (("whole", None), ("folder", LIMIT)):
        folder = written(llama3, tmp_path / name, quant="f32", max_shard_bytes=limit)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            found.append(model(torch.tensor([[3, 17, 40, 5]])).logits)
    assert torch.equal(*found)


def test_they_are_a_source_again(llama3: Path, tmp_path: Path) -> None:
    folder = written(llama3, tmp_path / "folder", quant="f32", max_shard_bytes=LIMIT)
    converters.convert(llama3, tmp_path / "a.gguf", quant="q8_0")
    converters.convert(folder, tmp_path / "b.gguf", quant="q8_0")
    for name, rows in weights(tmp_path / "a.gguf").items():
        assert np.array_equal(weights(tmp_path / "b.gguf")[name], rows)


def test_another_number_of_files_takes_their_place(tmp_path: Path, llama3: Path) -> None:
    folder = written(llama3, tmp_path / "out", max_shard_bytes=LIMIT)
    with pytest.raises(OutputError, match="already exists"):
        written(llama3, folder)
    written(llama3, folder, force=True)
    assert [file.name for file in folder.glob("*.safetensors*")] == ["model.safetensors"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'notes\.txt'"):
        written(llama3, folder, force=True, max_shard_bytes=LIMIT)


def test_progress_counts_each_byte_once(tmp_path: Path) -> None:
    source = checkpoints.llama3(tmp_path / "source", dtype="BF16")
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"quant": "w4a16", "max_shard_bytes": LIMIT, "on_progress": lambda *at: seen.append(at)}
    written(source, tmp_path / "out", **options)
    read = sum(tensor.nbytes for tensor in tensors_of(source).values())
    assert seen[-1] == (read, read)

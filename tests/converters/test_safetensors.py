"""Safetensors headers: whatever is not well-formed is a typed error that names the file."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from ggufs import weights
from refusals import refusal
from safetensors.numpy import save_file

import converters
from converters.sources.hugging_face import open_folder
from converters.sources.safetensors import read_file
from edge_llama import CheckpointError


def build(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: list[int] | None = None, offsets: tuple[int, int] = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [2, 3], "data_offsets": list(offsets)}


DATA = bytes(24)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "header length past the end": (struct.pack("<Q", 10**9) + b"{}", "header of 1,000,000,000 bytes"),
    "header length that overflows": (struct.pack("<Q", 2**64 - 1) + b"{}", "cut short"),
    "header length zero": (struct.pack("<Q", 0), "header of 0 bytes"),
    "not UTF-8": (build(b'{"a\xff": 1}', b""), "not valid JSON"),
    "not JSON": (build(b"{{{{", b""), "not valid JSON"),
    "no object": (build(b"[1, 2]", b""), "no JSON object"),
    "deep nesting": (build(b"[" * 100_000, b""), "JSON"),
    "duplicate keys": (build(b'{"a": 1, "a": 2}', b""), "'a' twice"),
    "offsets that overlap": (build({"a": entry(), "b": entry(offsets=(12, 36))}, bytes(36)), "overlaps"),
    "offsets with a hole": (build({"a": entry(), "b": entry(offsets=(32, 56))}, bytes(56)), "hole"),
    "offsets that run backwards": (build({"a": entry(offsets=(24, 0))}, DATA), "can't take"),
    "offsets past the end": (build({"a": entry(offsets=(0, 24))}, bytes(20)), "cut short or damaged"),
    "bytes that nothing claims": (build({"a": entry()}, bytes(30)), "cut short or damaged"),
    "shape that disagrees with the bytes": (build({"a": entry(shape=[2, 4])}, DATA), "can't take"),
    "unknown dtype": (build({"a": entry(dtype="F8_E4M3", offsets=(0, 6))}, bytes(6)), "dtype F8_E4M3"),
    "dimensions that overflow": (build({"a": entry(shape=[2**40, 2**40])}, DATA), "can't take"),
    "a negative dimension": (build({"a": entry(shape=[-2, -3])}, DATA), "malformed"),
    "a missing field": (build({"a": {"dtype": "F32", "shape": [6]}}, DATA), "malformed"),
    "a field of a wrong type": (build({"a": entry() | {"shape": "2x3"}}, DATA), "malformed"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "an HTML page": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
}


def with_weights(folder: Path, checkpoint: Path, data: bytes) -> Path:
    """``checkpoint`` again, with ``data`` as the file of its weights."""
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(data)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_refused_and_nothing_is_left(name: str, llama3: Path, tmp_path: Path) -> None:
    data, expected = BAD[name]
    folder = with_weights(tmp_path / "checkpoint", llama3, data)
    with refusal(CheckpointError, expected, folder / "model.safetensors"):
        converters.convert(folder, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_header_over_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(200_000_000)
    with refusal(CheckpointError, "header of 100,000,001 bytes in 200,000,000, at most 100,000,000", path):
        read_file(path)


def test_rows_read_in_slices_are_what_was_saved(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {"a": rng.standard_normal((7, 5)).astype(np.float32), "b": rng.standard_normal(9).astype(np.float16)}
    save_file(arrays, tmp_path / "x.safetensors")
    tensors = read_file(tmp_path / "x.safetensors")
    assert np.array_equal(tensors["a"].read(2, 5).view(np.float32), arrays["a"][2:5])
    assert np.array_equal(tensors["b"].read(0, 1).view(np.float16)[0], arrays["b"])


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    save_file({"a": np.ones((1000, 100), np.float32)}, tmp_path / "x.safetensors")
    tensor = read_file(tmp_path / "x.safetensors")["a"]
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match="ended while being read"):
        tensor.read(500, 1000)


def sharded(tmp_path: Path, weight_map: Any) -> Path:
    (tmp_path / "config.json").write_text('{"vocab_size": 8}')
    save_file({"a": np.ones(4, np.float32)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


BAD_INDEX: dict[str, tuple[Any, str]] = {
    "a path out of the folder": ({"a": "../one.safetensors"}, "no file of this folder"),
    "an absolute path": ({"a": "/etc/passwd"}, "no file of this folder"),
    "a missing shard": ({"a": "one.safetensors", "b": "two.safetensors"}, "two.safetensors is missing"),
    "a tensor that is not in its shard": ({"a": "one.safetensors", "b": "one.safetensors"}, "'b' is missing"),
    "a tensor that the index forgot": ({"a2": "one.safetensors"}, "'a2' is missing"),
    "no weight map": (None, "weight_map is missing"),
    "an empty weight map": ({}, "weight_map is missing"),
}


@pytest.mark.parametrize("name", BAD_INDEX)
def test_a_bad_index_is_a_typed_error(name: str, tmp_path: Path) -> None:
    weight_map, expected = BAD_INDEX[name]
    with refusal(CheckpointError, expected, tmp_path):
        open_folder(sharded(tmp_path, weight_map))


@pytest.mark.parametrize("shards", [1, 3])
def test_the_snapshot_of_a_hugging_face_cache_is_a_checkpoint(shards: int, tmp_path: Path) -> None:
    """Its files are links to blobs that lie out of the folder, under names of their own."""
    plain = checkpoints.llama3(tmp_path / "tiny", shards=shards)
    cache = tmp_path / "models--someone--tiny"
    snapshot = cache / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(plain.iterdir()):
        shutil.copy(path, cache / "blobs" / f"{number:064}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064}")
    settings = {"chat_template": "none", "quant": "q8_0"}
    converters.convert(plain, tmp_path / "plain.gguf", **settings)
    converters.convert(snapshot, tmp_path / "cached.gguf", **settings)
    assert weights(tmp_path / "cached.gguf").keys() == weights(tmp_path / "plain.gguf").keys()
    for name, rows in weights(tmp_path / "plain.gguf").items():
        assert np.array_equal(weights(tmp_path / "cached.gguf")[name], rows)

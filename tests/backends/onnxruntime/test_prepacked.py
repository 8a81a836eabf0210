"""Packed weights in the cache folder: mapped instead of copied, made again when damaged, gone with their model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import onnx_llama
import pytest
from onnx_llama import edited, opened, text

from edge_llama.backends.onnxruntime import prepacked

EXACT = 1e-3


def test_packed_weights_are_kept_and_written_again_when_damaged(
    onnx_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    artifact = text(onnx_copy)
    tokens = [5, 6, 7]

    def read() -> Any:
        with opened(onnx_copy) as tower:
            tower.decode(tokens)
            return tower.logits()

    kept = prepacked.graph(artifact, "cpu")
    assert kept.is_relative_to(tmp_path / "cache")
    first = read()
    for damage in (
        lambda: os.truncate(kept.with_name("model.onnx.data"), 1000),
        lambda: kept.write_bytes(b"\0" * 100),
        lambda: kept.with_name("about.json").write_text("{"),
        kept.unlink,
    ):
        damage()
        assert np.array_equal(read(), first)
        assert prepacked._is_whole(kept.parent, json.loads(kept.with_name("about.json").read_text())["key"])
    monkeypatch.setenv(prepacked.VARIABLE, "0")
    assert prepacked.graph(artifact, "cpu") == artifact.path
    np.testing.assert_allclose(read(), first, atol=EXACT, rtol=0)


def test_without_a_folder_to_keep_them_the_model_itself_is_opened(
    onnx_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    assert prepacked.graph(text(onnx_copy), "cpu") == onnx_copy / "model.onnx"


def test_what_belongs_to_no_model_any_more_is_removed(
    onnx_copy: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    edited(onnx_copy / "tokenizer.json", lambda content: content.update(version="1.0 "))
    old = prepacked.graph(text(onnx_copy), "cpu")
    assert old.exists()
    shutil.rmtree(onnx_copy)
    assert prepacked.graph(text(onnx_folder), "cpu").exists()
    assert not old.exists()


def test_a_process_takes_no_memory_of_its_own_for_packed_weights(tmp_path: Path) -> None:
    """What the second load adds is far below the weights: they are mapped."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    shape = checkpoints.Shape(hidden=1024, ffn=4096, layers=2, heads=8, kv_heads=2)
    source = checkpoints.llama3(tmp_path / "source", shape=shape, dtype="F32")
    folder = onnx_llama.write(source, tmp_path / "onnx")
    weights = (folder / "model.onnx.data").stat().st_size
    script = """
import sys
from pathlib import Path
import onnxruntime, tokenizers
from edge_llama.backends.base import OneSequence
from edge_llama.backends.onnxruntime.text import OnnxTower
from edge_llama.files.onnx_text import read_onnx_text
def anonymous():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("RssAnon"))
before = anonymous()
tower = OnnxTower(read_onnx_text(Path(sys.argv[1])), n_ctx=64, threads=1)
OneSequence(tower).decode([1, 2, 3])
print(anonymous() - before)
"""
    command = [sys.executable, "-c", script, str(folder / "model.onnx")]
    environment = {**os.environ, "EDGE_LLAMA_CACHE": str(tmp_path / "cache")}
    first, second = (
        int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=environment).stdout)
        for _ in range(2)
    )
    assert weights > 100e6
    assert second < 40e6, first

"""Llama 4's experts pass one by one: real sizes are planned at once, and memory does not grow with their number."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sparse_llama4

import converters
from edge_llama.files.gguf import read_header

_CONVERT = "import sys, converters; converters.convert(sys.argv[1], sys.argv[2], quant='q8_0', threads=2)"


def test_all_48_layers_of_scouts_real_sizes_are_planned(tmp_path: Path) -> None:
    """The files are holes; what is read of them are their headers."""
    plan = converters.plan(sparse_llama4.text_tower(tmp_path / "scout", **sparse_llama4.SCOUT), tmp_path / "a.gguf")
    # 107.8 billion weights, and in each layer 16 experts that lie as llama.cpp wants them.
    assert plan.layout.source_bytes == 215_539_722_240
    shapes = {entry.tensor.name: entry.tensor.shape for entry in plan.layout.entries}
    assert shapes["blk.47.ffn_gate_exps.weight"] == shapes["blk.0.ffn_up_exps.weight"] == (16, 8192, 5120)
    assert shapes["blk.47.ffn_down_exps.weight"] == (16, 5120, 8192)


def peak(folder: Path, output: Path) -> int:
    """The most memory of its own (RssAnon) that a process converting ``folder`` had, in bytes."""
    child = subprocess.Popen([sys.executable, "-c", _CONVERT, str(folder), str(output)])
    most = 0
    while child.poll() is None:
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        most = max(most, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
        time.sleep(0.005)
    assert child.returncode == 0
    return most


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_experts(tmp_path: Path) -> None:
    """Sixteen of them take 400 MB more than one; what is in memory at once are a few stripes of 20 MB."""
    sizes: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 2048, "intermediate_size_mlp": 64}
    peaks = []
    for n_expert in (2, 18):
        folder = sparse_llama4.text_tower(
            tmp_path / str(n_expert), num_local_experts=n_expert, interleave_moe_layer_step=4, **sizes
        )
        peaks.append(peak(folder, tmp_path / f"{n_expert}.gguf"))
        info = next(
            t for t in read_header(tmp_path / f"{n_expert}.gguf").tensors if t.name == "blk.3.ffn_up_exps.weight"
        )
        assert info.shape == (n_expert, 2048, 2048)
    assert peaks[1] - peaks[0] < 50e6, peaks

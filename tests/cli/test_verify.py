"""``edge-llama verify``."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from edge_llama.files.gguf import read_header

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_an_intact_file_exits_with_0(cli: Cli, converted: Path) -> None:
    done = cli("verify", converted)
    assert (done.returncode, done.stdout) == (0, "")
    assert "intact, 272 tensors" in done.stderr
    assert json.loads(cli("verify", converted, "--json").stdout)["intact"] is True


def test_a_damaged_file_exits_with_2_and_names_the_tensor(cli: Cli, converted: Path, tmp_path: Path) -> None:
    data = bytearray(converted.read_bytes())
    data[-5000] ^= 4
    (tmp_path / "damaged.gguf").write_bytes(data)
    done = cli("verify", tmp_path / "damaged.gguf")
    assert done.returncode == 2
    assert "tensor 'blk.29.ffn_up.weight' is not as it was written" in done.stderr


def test_a_file_of_other_origin_exits_with_1(cli: Cli, packaged: Path) -> None:
    done = cli("verify", packaged)
    assert done.returncode == 1
    assert "carries no hashes" in done.stderr


def test_parts_are_verified_together(called: Cli, llama3: Path, tmp_path: Path) -> None:
    assert called("convert", llama3, tmp_path / "m.gguf", "--max-shard-size", "200K").returncode == 0
    parts = sorted(tmp_path.iterdir())
    assert called("verify", parts[0]).returncode == 0
    data = bytearray(parts[-1].read_bytes())
    data[-100] ^= 1
    parts[-1].write_bytes(data)
    done = called("verify", parts[0])
    assert done.returncode == 2
    assert parts[-1].name in done.stderr


def test_a_bundle_is_verified_with_all_its_files(called: Cli, bundle: Path, copy: Path) -> None:
    done = called("verify", bundle)
    assert (done.returncode, done.stdout) == (0, "")
    assert "tensors in 4 files" in done.stderr
    assert json.loads(called("verify", bundle / "vision/model.onnx", "--json").stdout)["files"] == 4
    for name in ("LICENSE", "text.gguf", "vision/model.onnx.data", "edge-llama.json"):
        raw = bytearray((copy / name).read_bytes())
        raw[-3] ^= 1
        (copy / name).write_bytes(raw)
        done = called("verify", copy)
        assert done.returncode == 2
        assert str(copy / name) in done.stderr
        assert done.stderr.count("\n") == 1
        raw[-3] ^= 1
        (copy / name).write_bytes(raw)
    assert called("verify", copy).returncode == 0


def test_a_vision_tower_and_a_pair_are_verified(called: Cli, llama4_scout: Path, tmp_path: Path) -> None:
    for tower, name in (("text", "model.gguf"), ("vision", "mmproj.gguf")):
        assert called("convert", llama4_scout, tmp_path / name, "--tower", tower).returncode == 0
    assert "intact, 58 tensors" in called("verify", tmp_path / "mmproj.gguf").stderr
    assert called("verify", tmp_path).returncode == 0
    raw = bytearray((tmp_path / "mmproj.gguf").read_bytes())
    raw[-100] ^= 1
    (tmp_path / "mmproj.gguf").write_bytes(raw)
    done = called("verify", tmp_path)
    assert done.returncode == 2
    last = read_header(tmp_path / "mmproj.gguf").tensors[-1].name
    assert f"tensor {last!r} is not as it was written" in done.stderr


def test_a_folder_that_was_written_for_transformers_is_verified(called: Cli, llama3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert called("convert", llama3, folder, "--to", "safetensors").returncode == 0
    done = called("verify", folder, "--json")
    assert (done.returncode, json.loads(done.stdout)["files"]) == (0, 5)
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(raw)
    done = called("verify", folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{weights}: is not as it was written" in done.stderr


def test_a_checkpoint_without_hashes_exits_with_1_and_a_damaged_one_with_2(
    called: Cli, llama3: Path, tmp_path: Path
) -> None:
    done = called("verify", llama3)
    assert done.returncode == 1
    assert "its structure is sound, but it carries no hashes" in done.stderr
    damaged = Path(shutil.copytree(llama3, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    done = called("verify", damaged)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr

"""``edge-llama verify``."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

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


def test_parts_are_verified_together(cli: Cli, llama3: Path, tmp_path: Path) -> None:
    assert cli("convert", llama3, tmp_path / "m.gguf", "--max-shard-size", "200K").returncode == 0
    parts = sorted(tmp_path.iterdir())
    assert cli("verify", parts[0]).returncode == 0
    data = bytearray(parts[-1].read_bytes())
    data[-100] ^= 1
    parts[-1].write_bytes(data)
    done = cli("verify", parts[0])
    assert done.returncode == 2
    assert parts[-1].name in done.stderr

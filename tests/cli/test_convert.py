"""``edge-llama convert``."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from terminals import Terminal

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_it_converts_and_says_what_it_did(cli: Cli, llama3: Path, tmp_path: Path) -> None:
    output = tmp_path / "out file.gguf"
    done = cli("convert", llama3, output, "--quant", "q4_k_m")
    assert (done.returncode, done.stdout) == (0, "")
    assert "their rows are no multiple of 256" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out file.gguf"]


def test_quiet_says_nothing(cli: Cli, llama3: Path, tmp_path: Path) -> None:
    done = cli("convert", llama3, tmp_path / "a.gguf", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_dry_run_prints_the_plan_and_writes_nothing(cli: Cli, llama3: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.gguf"
    done = cli("convert", llama3, output, "--dry-run")
    assert done.returncode == 0
    assert "blk.0.attn_q.weight" in done.stdout
    assert not list(tmp_path.iterdir())
    plan = json.loads(cli("convert", llama3, output, "--dry-run", "--json").stdout)
    report = json.loads(cli("convert", llama3, output, "--json").stdout)
    assert plan["output_bytes"] == report["output_bytes"] == output.stat().st_size
    assert sum(tensor["bytes"] for tensor in plan["tensors"]) <= plan["output_bytes"]


def test_quality_lost_twice_is_a_warning_on_stderr_once(cli: Cli, packaged: Path, tmp_path: Path) -> None:
    for more in ((), ("--dry-run",)):
        done = cli("convert", packaged, tmp_path / "a.gguf", "--quant", "q4_0", *more)
        assert done.returncode == 0
        assert done.stderr.count("warning: ") == 1
        assert "from q4_1 to q4_0" in done.stderr
    plan = json.loads(cli("convert", packaged, tmp_path / "a.gguf", "--dry-run", "--json").stdout)
    assert len(plan["warnings"]) == 1


def test_an_adapter_that_is_none_is_one_line_and_exit_code_2(cli: Cli, llama3: Path, tmp_path: Path) -> None:
    done = cli("convert", llama3, tmp_path / "a.gguf", "--lora", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "adapter_config.json: cannot be read" in done.stderr


def test_bad_requests_are_one_line_and_exit_code_2(cli: Cli, llama3: Path, tmp_path: Path) -> None:
    existing = tmp_path / "existing.gguf"
    existing.write_bytes(b"mine")
    for arguments, expected in [
        ((llama3, existing), "already exists"),
        ((llama3, tmp_path / "x"), "end the name in .gguf"),
        ((llama3, tmp_path / "x.gguf", "--quant", "q9"), "known: f32"),
        ((llama3, tmp_path / "x.gguf", "--to", "onnx"), "known: gguf"),
        ((tmp_path / "none", tmp_path / "x.gguf"), "no such file"),
        ((tmp_path, tmp_path / "x.gguf"), "config.json is missing"),
        ((existing, tmp_path / "x.gguf"), "not a GGUF file"),
    ]:
        done = cli("convert", *arguments)
        assert done.returncode == 2, arguments
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
    assert existing.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["existing.gguf"]


def test_a_terminal_sees_a_bar_with_bytes_and_rate(
    terminal: Callable[..., Terminal], smollm2: Path, tmp_path: Path
) -> None:
    screen = terminal("convert", smollm2, tmp_path / "a.gguf", "--quant", "q8_0")
    screen.see(r"a.gguf ━.* [0-9.]+/269.0 MB [0-9.]+ MB/s")
    assert screen.exit_code() == 0


def test_ctrl_c_leaves_nothing_and_exits_with_130(
    terminal: Callable[..., Terminal], smollm2: Path, tmp_path: Path
) -> None:
    screen = terminal("convert", smollm2, tmp_path / "a.gguf", "--quant", "q4_k_m")
    screen.see(r"[1-9][0-9.]*/269.0 MB")
    screen.interrupt()
    assert screen.exit_code() == 130
    assert not list(tmp_path.iterdir())

"""``edge-llama convert``."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import meta_folders
import pytest
from terminals import EDGE_LLAMA, Terminal

from quant.recipe import RECIPES

Cli = Callable[..., subprocess.CompletedProcess[str]]
PACKED = ("--to", "safetensors", "--quant", "w4a16")


def test_it_converts_and_says_what_it_did(cli: Cli, llama3: Path, tmp_path: Path) -> None:
    output = tmp_path / "out file.gguf"
    done = cli("convert", llama3, output, "--quant", "q4_k_m")
    assert (done.returncode, done.stdout) == (0, "")
    assert "their rows are no multiple of 256" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out file.gguf"]


def test_a_profile_says_what_bounded_the_speed(called: Cli, llama3: Path, tmp_path: Path) -> None:
    done = called("convert", llama3, tmp_path / "out.gguf", "--profile", "--quiet")
    assert re.fullmatch(
        r"profile: reading [\d.]+ s and computing [\d.]+ s on \d+ threads, "
        r"writing and hashing [\d.]+ s on one: (reading|computing|writing) bounds it\n",
        done.stderr,
    )
    again = called("convert", llama3, tmp_path / "again.gguf", "--json")
    assert set(json.loads(again.stdout)["profile"]) == {"read", "compute", "write"}


def test_kernels_of_either_kind_write_the_same_file(environment: dict[str, str], llama3: Path, tmp_path: Path) -> None:
    for kernels in ("ggml", "compiled"):
        command = [EDGE_LLAMA, "convert", llama3, tmp_path / f"{kernels}.gguf", "--quant", "q4_k_m"]
        subprocess.run(command, env=environment | {"EDGE_LLAMA_KERNELS": kernels}, check=True, capture_output=True)
    assert (tmp_path / "ggml.gguf").read_bytes() == (tmp_path / "compiled.gguf").read_bytes()


def test_unknown_kernels_are_one_line_and_exit_code_2(
    environment: dict[str, str], llama3: Path, tmp_path: Path
) -> None:
    command = [EDGE_LLAMA, "convert", llama3, tmp_path / "out.gguf"]
    wrong = environment | {"EDGE_LLAMA_KERNELS": "fast"}
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "EDGE_LLAMA_KERNELS is 'fast'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_quiet_says_nothing(called: Cli, llama3: Path, tmp_path: Path) -> None:
    done = called("convert", llama3, tmp_path / "a.gguf", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_dry_run_prints_the_plan_and_writes_nothing(called: Cli, llama3: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.gguf"
    done = called("convert", llama3, output, "--dry-run")
    assert done.returncode == 0
    assert "blk.0.attn_q.weight" in done.stdout
    assert not list(tmp_path.iterdir())
    plan = json.loads(called("convert", llama3, output, "--dry-run", "--json").stdout)
    report = json.loads(called("convert", llama3, output, "--json").stdout)
    assert plan["output_bytes"] == report["output_bytes"] == output.stat().st_size
    assert sum(tensor["bytes"] for tensor in plan["tensors"]) <= plan["output_bytes"]


def test_a_dry_run_shows_what_a_matrix_becomes(called: Cli, llama3: Path, tmp_path: Path) -> None:
    arguments = (llama3, tmp_path / "out", *PACKED, "--scale-dtype", "f16", "--max-shard-size", "200K")
    plan = json.loads(called("convert", *arguments, "--dry-run", "--json").stdout)
    layer = "model.layers.0.self_attn.q_proj.weight_"
    found = {each["name"].removeprefix(layer): each for each in plan["tensors"] if each["name"].startswith(layer)}
    assert {part: each["bytes"] for part, each in found.items()} == {"packed": 8192, "scale": 1024, "shape": 16}
    assert found["packed"]["to"] == "int4 with f16 scales: numbers"
    assert len({each["file"] for each in found.values()}) == 1 < len({each["file"] for each in plan["tensors"]})
    done = called("convert", *arguments)
    assert "; 29 tensors: 21 int4 with f16 scales, 8 f16" in done.stderr
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) == plan["output_bytes"]


def test_help_lists_every_recipe(called: Cli) -> None:
    words = called("convert", "--help").stdout.replace(".", " ").split()
    assert [word for word in words if word in RECIPES][: len(RECIPES)] == list(RECIPES)


def test_a_role_can_be_given_another_format(called: Cli, llama3: Path, tmp_path: Path) -> None:
    types = ["--tensor-type", "attn_v=q5_1", "--tensor-type", "token_embd=q4_k"]
    done = called("convert", llama3, tmp_path / "a.gguf", "--quant", "q8_0", *types, "--json")
    report = json.loads(done.stdout)
    assert report["tensor_types"] == {"attn_v": "q5_1", "token_embd": "q4_k"}
    done = called("convert", llama3, tmp_path / "b.gguf", "--quant", "q8_0", *types)
    assert "q8_0, attn_v=q5_1, token_embd=q4_k: " in done.stderr
    assert "1 tensors take q5_0 instead of q4_k: their rows are no multiple of 256" in done.stderr


def test_quality_lost_twice_is_a_warning_on_stderr_once(called: Cli, packaged: Path, tmp_path: Path) -> None:
    for more in ((), ("--dry-run",)):
        done = called("convert", packaged, tmp_path / "a.gguf", "--quant", "q4_0", *more)
        assert done.returncode == 0
        assert done.stderr.count("warning: ") == 1
        assert "from q4_1 to q4_0" in done.stderr
    plan = json.loads(called("convert", packaged, tmp_path / "a.gguf", "--dry-run", "--json").stdout)
    assert len(plan["warnings"]) == 1


def test_an_adapter_that_is_none_is_one_line_and_exit_code_2(cli: Cli, llama3: Path, tmp_path: Path) -> None:
    done = cli("convert", llama3, tmp_path / "a.gguf", "--lora", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "adapter_config.json is missing; give the folder" in done.stderr


def test_bad_requests_are_one_line_and_exit_code_2(called: Cli, llama3: Path, tmp_path: Path) -> None:
    existing = tmp_path / "existing.gguf"
    existing.write_bytes(b"mine")
    for arguments, expected in [
        ((llama3, existing), "already exists"),
        ((llama3, tmp_path / "x"), "end the name in .gguf"),
        ((llama3, tmp_path / "x.gguf", "--quant", "q9"), "known: f32"),
        ((llama3, tmp_path / "x.gguf", "--tensor-type", "attn_v"), "expected ROLE=FORMAT"),
        ((llama3, tmp_path / "x.gguf", "--tensor-type", "v=q8_0"), "known: token_embd, output"),
        ((llama3, tmp_path / "x.gguf", "--tensor-type", "attn_v=q9"), "known: f32"),
        ((llama3, tmp_path / "x.gguf", "--tensor-type", "output=q8_0"), "its head is token_embd"),
        ((llama3, tmp_path / "x.gguf", *("--tensor-type", "attn_v=q8_0") * 2), "give each role once"),
        ((llama3, tmp_path / "x", "--to", "safetensors", "--tensor-type", "attn_v=q8_0"), "not for safetensors"),
        ((llama3, tmp_path / "x.gguf", "--to", "onnx"), "give a folder"),
        ((llama3, tmp_path / "x.gguf", "--group", "64"), "add --to safetensors"),
        ((llama3, tmp_path / "x", *PACKED, "--group", "48"), "known: 32, 64, 128"),
        ((llama3, tmp_path / "x", *PACKED, "--group", "128"), "; --group 32"),
        ((llama3, tmp_path / "x", *PACKED, "--scale-dtype", "f32"), "known: bf16, f16"),
        ((tmp_path / "none", tmp_path / "x.gguf"), "no such file"),
        ((llama3.parent, tmp_path / "x.gguf"), "config.json is missing"),
        ((existing, tmp_path / "x.gguf"), "not a GGUF file"),
    ]:
        done = called("convert", *arguments)
        assert done.returncode == 2, arguments
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
    assert existing.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["existing.gguf"]


def test_it_tells_what_it_chose_where_the_source_says_nothing(called: Cli, tmp_path: Path) -> None:
    folder = meta_folders.llama3(tmp_path / "Llama-3.2-tiny-Instruct", shards=2)
    done = called("convert", folder, tmp_path / "a.gguf")
    assert (done.returncode, done.stdout) == (0, "")
    assert "rotary scaling: factor 32, as in Llama 3.2" in done.stderr
    assert "chat template: llama3.1, by the name 'Llama-3.2-tiny-Instruct'" in done.stderr
    asked = called("convert", folder, tmp_path / "b.gguf", "--chat-template", "none", "--json")
    assert json.loads(asked.stdout)["notes"]["chat template"] == "none, as asked"
    bad = called("convert", folder, tmp_path / "c.gguf", "--chat-template", "llama9")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)


def test_a_terminal_sees_a_bar_with_bytes_and_rate(
    terminal: Callable[..., Terminal], smollm2: Path, tmp_path: Path
) -> None:
    screen = terminal("convert", smollm2, tmp_path / "a.gguf", "--quant", "q8_0")
    screen.see(r"a.gguf ━.* [0-9.]+/269.0 MB [0-9.]+ MB/s")
    assert screen.exit_code() == 0


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(
    terminal: Callable[..., Terminal], cli: Cli, smollm2: Path, converted: Path, tmp_path: Path
) -> None:
    screen = terminal("convert", smollm2, tmp_path / "a.gguf")
    screen.see(r"1[0-9.]{4}/269.0 MB")
    screen.interrupt()
    assert screen.exit_code() == 130
    assert "the same command goes on from here" in screen.text()
    assert [path.name for path in tmp_path.iterdir()] == [".a.gguf.partial"]
    done = cli("convert", smollm2, tmp_path / "a.gguf")
    assert "bytes were there from an earlier run" in done.stderr
    assert (tmp_path / "a.gguf").read_bytes() == converted.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigterm_is_as_gentle(environment: dict[str, str], smollm2: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [EDGE_LLAMA, "convert", smollm2, tmp_path / "a.gguf"], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / ".a.gguf.partial" / "journal").exists():
        assert child.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    child.terminate()
    _, told = child.communicate(timeout=60)
    assert child.returncode == 143
    assert told.count("\n") == 1
    assert ".a.gguf.partial" in told
    assert not (tmp_path / "a.gguf").exists()


def test_two_towers_become_a_bundle(called: Cli, llama4_scout: Path, tmp_path: Path) -> None:
    refused = called("convert", llama4_scout, tmp_path / "scout.gguf")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "add --tower text or --tower vision, or give a folder for both" in refused.stderr
    plan = json.loads(called("convert", llama4_scout, tmp_path / "scout", "--dry-run", "--json").stdout)
    assert {tensor["file"] for tensor in plan["tensors"]} == {"text.gguf", "vision/model.onnx.data"}
    shown = called("convert", llama4_scout, tmp_path / "scout", "--dry-run").stdout
    assert "blk.0.attn_q.weight" in shown
    assert "vision/model.onnx.data" in shown
    assert not list(tmp_path.iterdir())
    done = called("convert", llama4_scout, tmp_path / "scout", "--quant", "q8_0", "--vision-quant", "f32")
    assert done.returncode == 0
    assert "q8_0, vision f32: " in done.stderr
    report = json.loads(called("convert", llama4_scout, tmp_path / "scout", "--force", "--json").stdout)
    assert (report["quant"], report["vision_quant"]) == ("q4_k_m", "f16")
    assert report["output_bytes"] == sum(path.stat().st_size for path in (tmp_path / "scout").rglob("*.*"))

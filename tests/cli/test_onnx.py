"""Every verb that opens a model does so with a folder for ONNX Runtime."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import converters

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def built_in(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in 4 bits for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("onnx") / "smollm2"
    converters.convert(smollm2, folder, to="onnx", quant="int4")
    return folder


def test_run_answers_and_says_how(cli: Cli, built_in: Path) -> None:
    done = cli("run", built_in, "What is the capital of Japan?", "--temperature", "0", "-v")
    assert done.returncode == 0
    assert "Tokyo" in done.stdout
    assert "KV f32, batch 512 (the default); threads" in done.stderr
    assert "CPU (the default)" in done.stderr


def test_chat_reads_nothing_twice(called: Cli, built_in: Path) -> None:
    lines = "What is the capital of Japan?\nAnd of Italy?\n"
    done = called("chat", built_in, "--temperature", "0", "--max-tokens", "20", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert "Tokyo" in done.stdout
    cached = [int(count) for count in re.findall(r"\((\d+) cached", done.stderr)]
    assert len(cached) == 1
    assert cached[0] > 40


def test_inspect_and_verify_know_the_folder(called: Cli, built_in: Path) -> None:
    shown = json.loads(called("inspect", built_in, "--json").stdout)
    assert shown["towers"]["text"]["engine"] == "onnxruntime"
    assert shown["metadata"]["model.decoder.num_hidden_layers"] == 30
    assert {tensor["tower"] for tensor in shown["tensors"]} == {"text"}
    table = called("inspect", built_in).stdout
    assert "text tower (llama), ONNX" in table
    assert "model.decoder.head_size" in table
    done = called("verify", built_in)
    assert done.returncode == 0
    assert "in 6 files" in done.stderr


def test_bench_measures_it(called: Cli, built_in: Path) -> None:
    done = json.loads(called("bench", built_in, "-p", 16, "-n", 4, "-d", 0, "-r", 1, "--json").stdout)
    assert (done["type_k"], done["flash_attn"], done["n_gpu_layers"]) == ("f32", None, 0)
    assert [result["n_prompt"] or result["n_gen"] for result in done["results"]] == [16, 4]


def test_what_a_graph_decides_is_no_option(called: Cli, built_in: Path) -> None:
    for option in (("--kv", "f16"), ("--flash-attn", "on"), ("--device", "gpu")):
        done = called("run", built_in, "hi", *option)
        assert (done.returncode, done.stdout) == (2, "")
        assert "ONNX Runtime" in done.stderr

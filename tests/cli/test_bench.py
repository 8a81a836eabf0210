"""``edge-llama bench``."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import Terminal

Cli = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("-p", 16, "-n", 4, "-r", 2, "--threads", 1)


def test_the_table_goes_to_stdout_and_nothing_else(cli: Cli) -> None:
    done = cli("bench", *SHORT, "-d", 0, "-d", 40)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("threads 1", "pp16 ", "tg4 ", "pp16 @ d40", "tg4 @ d40", "±"):
        assert text in done.stdout


def test_json_has_llama_benchs_names(cli: Cli, converted: Path) -> None:
    options = ("-d", 0, "--kv", "f32", "--flash-attn", "on", "--batch", 64, "--json")
    data = json.loads(cli("bench", converted, *SHORT, *options).stdout)
    assert (data["n_threads"], data["type_k"], data["flash_attn"], data["n_ubatch"]) == (1, "f32", True, 64)
    assert data["model_n_params"] == 134_515_008
    assert [(result["n_prompt"], result["n_gen"], len(result["samples_ts"])) for result in data["results"]] == [
        (16, 0, 2),
        (0, 4, 2),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-p", 0, "-n", 0), "nothing to measure"),
        (("-r", 0), "repetitions is 0"),
        (("-d", -1), "n_depth is -1"),
        (("-p", 99_999), "n_ctx is"),
        (("--threads", -1), "threads is -1"),
        (("--kv", "q5_0"), "known: f16, f32, q8_0, q4_0"),
        (("--device", "npu"), "take one of: auto, gpu, cpu"),
        (("--device", "tpu"), "known: auto, gpu, npu, cpu"),
        (("--cpu-moe",), "has no experts"),
        (("--split-mode", "diagonal"), "known: layer, row, tensor"),
        (("--tensor-split", "a,b"), "expected a proportion for each device"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(called: Cli, arguments: tuple[object, ...], said: str) -> None:
    done = called("bench", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_a_run(terminal: Callable[..., Terminal]) -> None:
    running = terminal("bench", "-p", 4000, "-r", 100, "--threads", 1)
    running.see("pp4000, run 1")
    running.interrupt()
    assert running.exit_code() == 130


@pytest.mark.parametrize("verb", ["bench", "devices"])
def test_help_has_an_example(cli: Cli, verb: str) -> None:
    assert f"Example: edge-llama {verb}" in cli(verb, "--help").stdout


def test_verbose_tells_the_settings_and_why(cli: Cli) -> None:
    done = cli("run", "Hello", "--max-tokens", 1, "-v", "--threads", 1)
    said = done.stderr.splitlines()[0]
    for text in ("flash attention o", "KV f", "measured", "ms a token written", "threads 1 (as asked)", "CPU ("):
        assert text in said
    assert said == cli("run", "Hello", "--max-tokens", 1, "-v", "--threads", 1).stderr.splitlines()[0]  # remembered


def test_options_fix_the_settings(cli: Cli) -> None:
    fixed = ("--kv", "f32", "--flash-attn", "off", "--batch", 64)
    done = cli("run", "Hello", "--max-tokens", 1, "-v", *fixed)
    assert "flash attention off, KV f32, batch 64 (as asked)" in done.stderr
    refused = cli("run", "Hello", "--kv", "q8_0", "--flash-attn", "off")
    assert refused.returncode == 2
    assert "needs flash attention" in refused.stderr

"""``edge-llama compile``, and running what it made."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from npu import needs
from static_text import in_integers

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def small(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_integers(small_talk, tmp_path_factory.mktemp("small"))


@needs("qnn")
def test_a_model_is_compiled_and_run(cli: Cli, small: Path, tmp_path: Path) -> None:
    model = shutil.copytree(small, tmp_path / "model")
    done = cli("compile", model, "--device", "npu:qnn")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"{model}/compiled/npu-qnn: text for npu:qnn, " in done.stderr
    assert " bytes, by onnxruntime-qnn " in done.stderr
    said = cli("run", model, "What is the capital of Japan?", "--device", "npu:qnn", "-v", "--temperature", "0")
    assert said.stdout == "The capital of Japan is Tokyo.\n", said.stderr
    assert "prompts: all 1 nodes on QNNExecutionProvider" in said.stderr
    assert cli("verify", model / "compiled" / "npu-qnn").returncode == 0
    assert "npu-qnn" in cli("inspect", model / "compiled" / "npu-qnn").stdout
    told = cli("compile", model, "--device", "npu:qnn", "--soc", "SM8550", "--json")
    found = json.loads(told.stdout)
    assert (found["soc"], found["towers"]) == ("SM8550", ["text"])
    assert Path(found["output"]).name == "npu-qnn-sm8550"


@needs("qnn")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "cpu"), "device cpu: nothing is compiled for it"),
        (("--device", "npu:qnn", "--soc", "A17"), "--soc A17: unknown; known: SM8350"),
        (("--device", "npu:qnn", "--share"), "--share: graphs with weights in common are for phones"),
        (
            ("--device", "npu:qnn", "--provider-option", "turbo=1"),
            "provider option turbo: device npu:qnn takes no such",
        ),
    ],
)
def test_what_can_not_be_done_is_one_line(called: Cli, small: Path, options: tuple[str, ...], says: str) -> None:
    done = called("compile", small, *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1

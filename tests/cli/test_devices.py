"""``edge-llama devices``."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from terminals import EDGE_LLAMA

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_it_tells_what_is_here_and_what_would_be_used(cli: Cli) -> None:
    done = cli("devices")
    assert (done.returncode, done.stderr) == (0, "")
    for text in (
        "llama.cpp 0.3.",
        "works here",
        "ONNX Runtime 1.",
        "CPUExecutionProvider",
        "GB available",
        "used ",
        "kernels  compiled for this machine",
        "its kernels use ",
        "device   cpu (CPU): ",
        "GGUF files: text in every format, and vision (mmproj)",
        "device   cpu (CPUExecutionProvider): CPU; ONNX models: text and vision",
    ):
        assert text in done.stdout


def test_json_holds_the_same(cli: Cli) -> None:
    data = json.loads(cli("devices", "--json", "--check").stdout)
    assert {engine["name"] for engine in data["engines"]} == {"llama.cpp", "ONNX Runtime"}
    assert data["cpu"]["threads"] >= data["cpu"]["free_threads"] >= 1
    assert data["memory"]["total"] > data["memory"]["available"] > 0
    assert data["engines"][0]["checked"]
    assert [device["option"] for device in data["engines"][0]["devices"]].count("cpu") == 1
    assert "cpu" in [device["option"] for device in data["engines"][1]["devices"]]
    assert data["kernels"].startswith("compiled for this machine")


def test_a_broken_engine_is_explained_by_devices_and_refused_by_run(
    environment: dict[str, str], tmp_path: Path
) -> None:
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, types\nllama_model_default_params = types.SimpleNamespace\n"
        "llama_model_load_from_file = lambda *_: os.abort()\n"
    )
    path = f"{tmp_path}:{environment.get('PYTHONPATH', '')}"
    for verb, code in ((["devices"], 1), (["run", "Hello"], 1)):
        done = subprocess.run(
            [EDGE_LLAMA, *verb],
            env={**environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code
        said = done.stdout + done.stderr
        assert "llama.cpp does not work here: a test decode died of signal 6" in said
        assert "build llama-cpp-python again" in said
        assert "Traceback" not in said

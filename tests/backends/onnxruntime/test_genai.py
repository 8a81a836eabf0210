"""Our ONNX folders in onnxruntime-genai, an independent client: its own environment, nothing of edge-llama in it."""

import json
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import families
import llama4
import pytest
from onnx_graphs import TextGraph
from transformers import AutoTokenizer

from converters import convert
from edge_llama.files.artifact import packaged_path

CLIENT = """
import importlib.util, json, sys
import onnxruntime_genai as genai
assert importlib.util.find_spec("edge_llama") is None
job = json.loads(sys.argv[1])
model = genai.Model(job["folder"])
params = genai.GeneratorParams(model)
params.set_search_options(max_length=len(job["ids"]) + job["count"], do_sample=False, repetition_penalty=1.0)
generator = genai.Generator(model, params)
generator.append_tokens(job["ids"])
generated = []
while not generator.is_done():
    generator.generate_next_token()
    generated.append(int(generator.get_next_tokens()[0]))
tokenizer = genai.Tokenizer(model)
print(json.dumps({"generated": generated, "ids": [int(token) for token in tokenizer.encode(job["text"])]}))
"""
TEXT = "Hello there, the capital of Japan is Tokyo.\n\nNo. 123"
FOLDERS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "llama 2": (checkpoints.llama2, {"quant": "f32"}),
    "llama 3": (checkpoints.llama3, {"quant": "int8"}),
    "llama 3 portable": (checkpoints.llama3, {"quant": "int4", "portable": True}),
    "llama 4": (llama4.scout, {"quant": "int4", "zero_points": True}),
    "qwen2": (families.qwen2, {"quant": "int8"}),
    "qwen3": (families.qwen3, {"quant": "int4", "portable": True}),
    "smollm3": (families.smollm3, {}),
    "mistral, a window": (lambda folder: families.mistral(folder, sliding_window=6), {}),
    "gemma3": (families.gemma3, {}),
    "smollm2": (lambda _: packaged_path() or Path(), {}),
}


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Path:
    """An interpreter with onnxruntime-genai alone; kept with pytest's cache."""
    assert request.config.cache
    folder = request.config.cache.mkdir("genai")
    program = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([program, "-m", "pip", "install", "--quiet", "onnxruntime-genai==0.18.0"], check=True)
        (folder / "installed").touch()
    return program


@pytest.mark.parametrize("name", FOLDERS)
def test_it_loads_the_folder_and_answers_the_same(name: str, python: Path, tmp_path: Path) -> None:
    make, options = FOLDERS[name]
    convert(make(tmp_path / "source"), tmp_path / "onnx", to="onnx", **options)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "onnx")
    ids = tokenizer(TEXT)["input_ids"]
    found = ask(python, tmp_path / "onnx", ids, 12)
    expected = TextGraph(tmp_path / "onnx").greedy(ids, 12)
    assert found["generated"] == expected[: len(found["generated"])]
    assert len(found["generated"]) == 12 or expected[len(found["generated"]) - 1] in ends(tmp_path / "onnx")
    assert found["ids"] == tokenizer(TEXT, add_special_tokens=False)["input_ids"]  # it adds none


def ask(python: Path, folder: Path, ids: Sequence[int], count: int) -> dict[str, Any]:
    job = json.dumps({"folder": str(folder), "ids": ids, "count": count, "text": TEXT})
    done = subprocess.run([python, "-I", "-c", CLIENT, job], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def ends(folder: Path) -> list[int]:
    given = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]["eos_token_id"]
    return given if isinstance(given, list) else [given]

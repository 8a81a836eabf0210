"""An output matrix of its own is kept by every target, whatever config.json says of tied embeddings."""

from pathlib import Path
from typing import Any

import checkpoints
import families
import numpy as np
import pytest
from engines import last_logits
from onnx_graphs import TextGraph
from safetensors.numpy import load_file
from variants import edit_json

import converters

IDS = list(range(20, 50))


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose lm_head differs from its embedding, though it is called tied."""
    at = tmp_path_factory.mktemp("head") / "checkpoint"
    folder = checkpoints.llama2(at) if request.param == "llama" else families.qwen3(at, tie_word_embeddings=False)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    return families.prompt_logits(families.reference(folder), IDS)


def test_gguf_has_it(folder: Path, expected: Any, tmp_path: Path) -> None:
    plan = converters.convert(folder, tmp_path / "x.gguf", quant="f32").plan
    assert np.abs(last_logits(tmp_path / "x.gguf", IDS) - expected).max() < 1e-3
    assert "lm_head.weight is kept" in plan.checkpoint.notes["output matrix"]


@pytest.mark.parametrize("portable", [False, True])
def test_onnx_has_it(folder: Path, expected: Any, tmp_path: Path, *, portable: bool) -> None:
    converters.convert(folder, tmp_path / "onnx", to="onnx", quant="f32", portable=portable)
    assert np.abs(TextGraph(tmp_path / "onnx").feed(IDS) - expected).max() < 1e-3


def test_a_folder_has_it(folder: Path, expected: Any, tmp_path: Path) -> None:
    converters.convert(folder, tmp_path / "out", to="safetensors", quant="f32")
    assert "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert np.abs(families.prompt_logits(families.reference(tmp_path / "out"), IDS) - expected).max() < 1e-5


def test_without_one_they_are_tied_and_nothing_is_told(tmp_path: Path) -> None:
    folder = checkpoints.smollm(tmp_path / "checkpoint")
    plan = converters.plan(folder, tmp_path / "x.gguf")
    assert "output matrix" not in plan.checkpoint.notes
    assert not any(entry.tensor.name == "output.weight" for entry in plan.layout.entries)

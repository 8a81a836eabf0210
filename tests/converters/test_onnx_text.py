"""ONNX text towers against transformers in float32: what they compute, not how."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import llama4
import numpy as np
import onnx
import pytest
import torch
from near_ties import is_decided
from numpy.typing import NDArray
from onnx_graphs import TextGraph
from transformers import AutoModelForCausalLM, Llama4ForCausalLM

from converters import convert

TOLERANCE = 1e-3
IDS = np.random.default_rng(8).integers(3, 250, 48).tolist()
Make = Callable[[Path], Path]
DENSE: dict[str, Make] = {
    "llama 2": checkpoints.llama2,
    "llama 3": checkpoints.llama3,
    "smollm2": checkpoints.smollm,
}
SPARSE: dict[str, Make] = {
    "scout": llama4.text_only,
    "maverick": lambda folder: llama4.text_only(folder, **llama4.SMALL_MAVERICK),
    # What GGUF refuses: short chunks, another temperature, other layers without positions.
    "odd": lambda folder: llama4.text_only(folder, **llama4.ODD),
    "two experts": lambda folder: llama4.text_only(folder, num_experts_per_tok=2),
}


@pytest.fixture(scope="module", params=["microsoft", "portable"])
def portable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "portable")


@pytest.fixture(scope="module", params=[*DENSE, *SPARSE])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, *, portable: bool
) -> tuple[Path, Any]:
    """A folder converted in f32, and transformers' model of the same checkpoint."""
    folder = tmp_path_factory.mktemp("float")
    source = (DENSE | SPARSE)[request.param](folder / "source")
    convert(source, folder / "onnx", to="onnx", quant="f32", portable=portable)
    kind = AutoModelForCausalLM if request.param in DENSE else Llama4ForCausalLM
    return folder / "onnx", kind.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()


def reference(model: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()


def test_logits_equal_transformers(pair: tuple[Path, Any]) -> None:
    folder, model = pair
    assert np.abs(TextGraph(folder).feed(IDS) - reference(model, IDS)).max() < TOLERANCE


def test_a_prompt_in_chunks_or_one_by_one_gives_the_same(pair: tuple[Path, Any]) -> None:
    folder, _ = pair
    whole = TextGraph(folder).feed(IDS)
    chunks = TextGraph(folder)
    for start in range(0, len(IDS), 7):
        in_chunks = chunks.feed(IDS[start : start + 7])
    single = TextGraph(folder)
    for token in IDS:
        one_by_one = single.feed([token])
    assert np.abs(in_chunks - whole).max() < TOLERANCE
    assert np.abs(one_by_one - whole).max() < TOLERANCE


def test_greedy_answers_equal_transformers_on_fifty_prompts(pair: tuple[Path, Any], rng: np.random.Generator) -> None:
    folder, model = pair
    graph = TextGraph(folder)
    compared = 0
    while compared < 50:
        prompt = rng.integers(3, 250, int(rng.integers(2, 40))).tolist()
        expected = list(prompt)
        while len(expected) < len(prompt) + 6 and is_decided(model, expected):
            expected.append(int(reference(model, expected).argmax()))
        answer = expected[len(prompt) :]
        if answer:
            assert graph.greedy(prompt, len(answer)) == answer
            graph.forget()
        compared += len(answer) == 6


def test_the_file_is_valid_and_its_shapes_are_known(pair: tuple[Path, Any]) -> None:
    folder, _ = pair
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "model.onnx", load_external_data=False))
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    outputs = {name for node in model.graph.node for name in node.output if name}
    assert outputs - known == set()

"""Other families than Llama compute what transformers does in float32: as ONNX, as GGUF, quantized, and in a chat."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import families
import numpy as np
import onnx
import pytest
from engines import Session, on_engine
from numpy.typing import NDArray
from onnx_graphs import TextGraph, with_weights, without_rounded_activations
from refusals import refusal

import edge_llama
from converters import convert, plan
from edge_llama import CheckpointError
from edge_llama.backends.base import TextTower

TOLERANCE = 1e-3
"""Of logits that spread over three units; measured: 3e-5."""
GELU_TOLERANCE = 1e-2
"""Where ggml computes Gemma's GELU, by a table of half precision (``ggml_vec_gelu_f32``). Measured: 3e-3.

With such a GELU in transformers' model 3e-4, until a rounding goes the other way.
"""
IDS = np.random.default_rng(8).integers(3, 250, 48).tolist()
Make = Callable[[Path], Path]
MAKES: dict[str, Make] = {
    "qwen2": families.qwen2,
    "qwen3": families.qwen3,
    "smollm3": families.smollm3,
    "mistral": families.mistral,
    "gemma3": families.gemma3,
    "gemma3 with vision": families.gemma3_with_vision,
}
ONNX_ONLY: dict[str, Make] = {
    "qwen2, a window from the second layer on": partial(
        families.qwen2, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3, a head of its own, biases": partial(families.qwen3, tie_word_embeddings=False, attention_bias=True),
    "smollm3, other layers, biases": partial(
        families.smollm3,
        no_rope_layers=[0, 1, 1, 0, 1],
        use_sliding_window=True,
        sliding_window=6,
        attention_bias=True,
        mlp_bias=True,
    ),
    "mistral, a window": partial(families.mistral, sliding_window=6),
    "gemma3, other scales": partial(
        families.gemma3, query_pre_attn_scalar=50, final_logit_softcapping=5.0, sliding_window_pattern=2
    ),
}
"""What llama.cpp's graphs of these families can't compute."""
TYPES = {"qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3", "mistral": "mistral", "gemma3": "gemma3_text"}
"""What onnxruntime-genai 0.18 calls them."""


@dataclass(frozen=True)
class Case:
    """A checkpoint, transformers' model of it, and the graph that is written of it."""

    name: str
    source: Path
    model: Any
    onnx: Path

    def float_graph(self, *, portable: bool = False) -> Path:
        """Its ONNX folder in f32."""
        folder = self.onnx.with_name("portable" if portable else "onnx")
        if not folder.exists():
            convert(self.source, folder, to="onnx", quant="f32", portable=portable)
        return folder


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    source = (MAKES | ONNX_ONLY | {"mixtral": families.mixtral})[request.param](folder / "source")
    return Case(request.param, source, families.reference(source), folder / "onnx")


def of(*names: str) -> Any:
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


@of(*MAKES, *ONNX_ONLY)
@pytest.mark.parametrize("portable", [False, True], ids=["microsoft", "portable"])
def test_onnx_equals_transformers(case: Case, *, portable: bool) -> None:
    """A prompt at once and in pieces; then token by token, the tokens of transformers' own greedy loop."""
    folder = case.float_graph(portable=portable)
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    expected = families.prompt_logits(case.model, IDS)
    pieces = TextGraph(folder)
    for start in range(0, len(IDS), 7):
        in_pieces = pieces.feed(IDS[start : start + 7])
    assert np.abs(in_pieces - expected).max() < TOLERANCE
    graph = TextGraph(folder)
    found = graph.feed(IDS)
    assert np.abs(found - expected).max() < TOLERANCE
    for token, logits in zip(*families.answered(case.model, IDS, 8), strict=True):
        assert np.abs(found - logits).max() < TOLERANCE
        assert int(found.argmax()) == token
        found = graph.feed([token])


@of(*MAKES, "mixtral")
def test_gguf_equals_transformers(case: Case, tmp_path: Path) -> None:
    """By llama.cpp, with an f32 cache and no flash attention: logits after a prompt, and after each greedy token."""
    convert(case.source, tmp_path / "model.gguf", quant="f32")

    def work(session: Session, tower: TextTower) -> list[NDArray[np.float32]]:
        session.prefill(IDS)
        rows = [session.logits()]
        for _ in range(7):
            session.append(int(rows[-1].argmax()))
            rows.append(session.logits())
        return rows

    with edge_llama.open(tmp_path / "model.gguf", n_ctx=128, kv_format="f32", flash_attention=False) as opened:
        found = np.stack(on_engine(opened, work))
    tokens, expected = families.answered(case.model, IDS, 8)
    assert found.argmax(axis=1).tolist() == tokens
    assert np.abs(found - expected).max() < (GELU_TOLERANCE if "gemma" in case.name else TOLERANCE)


@of("qwen2", "smollm3", "gemma3")
def test_gguf_gives_the_same_onnx(case: Case, tmp_path: Path) -> None:
    """Norms that GGUF stores otherwise, rows of queries and keys in another order, and two ropes come back."""
    convert(case.source, tmp_path / "model.gguf", quant="f32")
    convert(tmp_path / "model.gguf", tmp_path / "from gguf", to="onnx", quant="f32")
    found, expected = (TextGraph(folder).feed(IDS) for folder in (tmp_path / "from gguf", case.float_graph()))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


OPTIONS: dict[str, dict[str, Any]] = {
    "int4": {"quant": "int4"},
    "int8": {"quant": "int8", "zero_points": True},
    "portable int4": {"quant": "int4", "portable": True},
    "portable int8": {"quant": "int8", "portable": True},
}


@of("qwen2", "qwen3", "gemma3")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_quantized_logits_are_those_of_the_dequantized_weights(
    case: Case, options: dict[str, Any], tmp_path: Path
) -> None:
    """With activations in float32: max |difference| <= 1e-3 of the largest logit. As it is: nearly always the same."""
    convert(case.source, tmp_path / "quantized", to="onnx", **options)
    weights = with_weights(case.float_graph(), tmp_path / "quantized")
    expected = TextGraph(case.onnx, weights).feed(IDS)
    found = TextGraph(tmp_path / "quantized", without_rounded_activations(tmp_path / "quantized")).feed(IDS)
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    rounded = TextGraph(tmp_path / "quantized").feed(IDS)
    assert np.corrcoef(rounded, expected)[0, 1] > 0.99


@of("qwen3", "mistral, a window", "gemma3")
def test_the_runtime_answers_goes_on_and_goes_back(case: Case) -> None:
    """A cache that is cut within a window that has moved on gives the same logits as one that never went further."""
    folder = case.float_graph()
    kind = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]["type"]
    assert kind == TYPES[case.name.partition(",")[0]]
    _goes_back(folder, case.model, TOLERANCE)


@of("gemma3")
def test_gguf_with_windows_goes_back(case: Case, tmp_path: Path) -> None:
    convert(case.source, tmp_path / "model.gguf", quant="f32")
    _goes_back(tmp_path / "model.gguf", case.model, GELU_TOLERANCE, kv_format="f32")


def _goes_back(path: Path, model: Any, tolerance: float, **options: Any) -> None:
    prompts = IDS, [*IDS[:20], *reversed(IDS[20:])], IDS

    def work(session: Session, tower: TextTower) -> list[NDArray[np.float32]]:
        rows = []
        for prompt in prompts:
            session.prefill(prompt)
            rows.append(session.logits())
        return rows

    with edge_llama.open(path, n_ctx=128, threads=1, **options) as opened:
        assert opened.generate("Hello", temperature=0, max_tokens=4).result().tokens
        rows = on_engine(opened, work)
    for row, prompt in zip(rows, prompts, strict=True):
        assert np.abs(row - families.prompt_logits(model, prompt)).max() < tolerance


def test_mixtral_is_refused_for_onnx(tmp_path: Path) -> None:
    source = families.mixtral(tmp_path / "source")
    with refusal(CheckpointError, "MixtralForCausalLM can't be written as ONNX", source, "--to gguf"):
        plan(source, tmp_path / "out", to="onnx")
    assert not (tmp_path / "out").exists()

"""Quantized ONNX text towers against the float graph of the very weights that they hold."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import llama4
import numpy as np
import onnx
import pytest
from onnx_graphs import TextGraph, dequantize, kl, with_all_logits, with_weights, without_rounded_activations

import edge_llama
from converters import convert, plan
from edge_llama.errors import CheckpointError, OptionError
from edge_llama.files.artifact import packaged_path
from edge_llama.files.formats import F32, FORMATS
from quant import nbits
from quant.kernels import recode

PARAGRAPH = (
    "The lighthouse stood on a rock two miles from the harbour. Its keeper, an old man called Tom, lit the lamp every "
    "evening and cleaned the glass every morning. In winter nobody could reach him for weeks, so he read the same "
    "three books again and wrote letters that waited for the boat. One day in March a young seal came to the steps, "
    "and because it was hurt he fed it with fish until it could swim again. After that it came back each spring. "
    "When the light was made electric the council wrote that nobody was needed on the rock any more, and sent a boat "
    "for the old man and his few things. He gave the brass lamp to the school, where children may still turn its lens, "
    "and moved into a small house above the quay. Every morning he walked down to the water with a bucket. People who "
    "asked what he was waiting for were told that friends are not always punctual, and that the tide would bring news."
)
IDS = np.random.default_rng(9).integers(3, 250, 32).tolist()
WIDE = checkpoints.Shape(hidden=128, ffn=384, heads=4, kv_heads=2)
SOURCES: dict[str, Callable[[Path], Path]] = {
    "llama 3": lambda folder: checkpoints.llama3(folder, shape=WIDE),
    "tied": lambda folder: checkpoints.smollm(folder, shape=WIDE),
    "scout": llama4.text_only,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "int4": {"quant": "int4"},
    "int4 blocks of 64": {"quant": "int4", "block": 64},
    "int4 zero points": {"quant": "int4", "block": 128, "zero_points": True},
    "int8": {"quant": "int8"},
    "int8 zero points": {"quant": "int8", "zero_points": True},
    "portable int4": {"quant": "int4", "portable": True},
    "portable int8": {"quant": "int8", "block": 64, "portable": True},
    "a role in 8 bits": {"quant": "int4", "tensor_types": {"attn_v": "int8", "ffn_down": "f16"}},
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SOURCES[request.param](tmp_path_factory.mktemp("source") / "model")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_logits_are_those_of_the_dequantized_weights(source: Path, options: dict[str, Any], tmp_path: Path) -> None:
    """With activations in float32: max |difference| <= 1e-3 of the largest logit.

    QMoE rounds them for experts of 8 bits whatever it is told: 3e-2.
    """
    rounds = "num_local_experts" in (source / "config.json").read_text() and options["quant"] == "int8"
    convert(source, tmp_path / "quantized", to="onnx", **options)
    convert(source, tmp_path / "float", to="onnx", quant="f32")
    found = TextGraph(tmp_path / "quantized", without_rounded_activations(tmp_path / "quantized")).feed(IDS)
    expected = TextGraph(tmp_path / "float", with_weights(tmp_path / "float", tmp_path / "quantized")).feed(IDS)
    assert np.abs(found - expected).max() <= (3e-2 if rounds else 1e-3) * np.abs(expected).max()


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q8_0"])
def test_ggml_blocks_keep_their_values(name: str) -> None:
    """Each is exactly what ggml dequantizes; an offset of Q4_1 is the exact sum of two float16."""
    rows = np.random.default_rng(4).standard_normal((5, 96), np.float32)
    source = FORMATS[name]
    raw = recode(rows.view(np.uint8), F32, source)
    grid = nbits.exact_grid(source)
    assert grid
    parts = {part: recode(raw, source, grid.array(part)) for part in grid.parts}
    scales = parts["scales"].view(np.float32)
    found = dequantize(parts["numbers"], scales, grid)
    expected = np.float64(recode(raw, source, F32).view(np.float32))
    if grid.has_offsets:
        offsets = parts["offsets"].view(np.float32)
        found = (np.float64(found).reshape(5, -1, 32) + offsets[..., None]).reshape(5, -1)
        heads = np.float64(raw.reshape(-1, 20)[:, :4].copy().view(np.float16))
        assert np.array_equal(offsets.reshape(-1), heads[:, 1] + 8 * heads[:, 0])
        assert np.abs(found - expected).max() <= np.spacing(np.float32(np.abs(expected).max()))
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_last_layers_and_the_head_round_no_activations(options: dict[str, Any], tmp_path: Path) -> None:
    """A model of one layer, which is the last, just as it is written: the likeliest token, its logit within 1e-3.

    With 8 bits, and with standard operators, activations are two terms of 8 bits there, with 4 bits floats.
    """
    source = checkpoints.llama3(tmp_path / "source", shape=replace(WIDE, layers=1))
    convert(source, tmp_path / "quantized", to="onnx", **options)
    convert(source, tmp_path / "float", to="onnx", quant="f32")
    found = TextGraph(tmp_path / "quantized").feed(IDS)
    expected = TextGraph(tmp_path / "float", with_weights(tmp_path / "float", tmp_path / "quantized")).feed(IDS)
    best = expected.argmax()
    assert found.argmax() == best
    assert abs(found[best] - expected[best]) <= 1e-3 * np.abs(expected).max()
    exact = 1e-3 if options.get("portable") else 1e-2  # else others that are likely are exact, the rest is not
    assert np.abs(found - expected).max() <= exact * np.abs(expected).max()


@pytest.fixture(scope="module")
def floats(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's float graph."""
    folder = tmp_path_factory.mktemp("floats") / "float"
    convert(packaged, folder, to="onnx", quant="f32")
    return folder


@pytest.mark.parametrize("options", [{}, {"quant": "int8"}, {"portable": True}], ids=str)
def test_the_built_in_model_answers_as_its_floats(
    options: dict[str, Any], packaged: Path, floats: Path, tmp_path: Path
) -> None:
    """SmolLM2 as its package has it, Q4_1, activations in 8 bits: KL <= 0.02, nearly always the same token.

    Two of a hundred may differ, more of these few: `benchmarks/onnx_folders.py answers` counts over thousands.
    """
    convert(packaged, tmp_path / "small", to="onnx", **options)
    plain = onnx.load(floats / "model.onnx", load_external_data=False)
    whole = TextGraph(floats, with_all_logits(with_weights(floats, tmp_path / "small") if options else plain))
    small, ids = TextGraph(tmp_path / "small"), tokens(PARAGRAPH)[:120]
    pairs = [(small.feed([token]), expected) for token, expected in zip(ids, whole.feed_all(ids), strict=True)]
    divergence = np.mean([kl(expected, found) for found, expected in pairs])
    agreement = np.mean([found.argmax() == expected.argmax() for found, expected in pairs])
    print(f"KL {divergence:.4f}, top-1 {agreement:.1%}")
    assert divergence <= 0.02
    assert agreement >= 0.96


def tokens(text: str) -> list[int]:
    with edge_llama.open(packaged_path()) as model:
        return model.tokenizer.encode(text)


def test_a_role_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    """Else the option would be without effect, and nobody would know."""
    source = checkpoints.smollm(tmp_path / "source", shape=WIDE)
    with pytest.raises(OptionError, match="output=int4: the model has no such tensor"):
        plan(source, tmp_path / "out", to="onnx", tensor_types={"output": "int4"})


def test_an_end_token_that_is_none_is_refused(tmp_path: Path) -> None:
    """Else the folder could not be opened."""
    source = checkpoints.smollm(tmp_path / "source", shape=WIDE)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 9999999]}', "utf-8")
    with pytest.raises(CheckpointError, match="eos_token_id has 9999999"):
        plan(source, tmp_path / "out", to="onnx")


def test_the_plan_says_what_is_exact(packaged: Path, tmp_path: Path) -> None:
    layout = plan(packaged, tmp_path / "out", to="onnx").layout
    matrices_ = [entry for entry in layout.entries if entry.is_first and entry.format.is_quantized]
    assert matrices_
    assert all(entry.is_exact for entry in matrices_)
    assert layout.warnings == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quant": "q4_k_m", "to": "onnx"}, ["q4_k_m", "int4, int8, f16, f32"]),
        ({"quant": "int4", "to": "gguf"}, ["int4", "q4_k_m"]),
        ({"block": 48, "to": "onnx"}, ["48", "32, 64, 128"]),
        ({"quant": "f16", "zero_points": True, "to": "onnx"}, ["f16", "int4"]),
        ({"block": 64, "to": "gguf"}, ["--block", "ONNX"]),
        ({"max_shard_bytes": 1000, "to": "onnx"}, ["--max-shard-size", "a16w8"]),
        ({"tensor_types": {"attn_v": "q8_0"}, "to": "onnx"}, ["attn_v=q8_0", "int8"]),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(source: Path, tmp_path: Path, options: Any, words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        plan(source, tmp_path / "out", **options)
    assert all(word in str(caught.value) for word in words)

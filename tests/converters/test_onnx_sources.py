"""Any source becomes the same ONNX folder: Hugging Face's, Meta's, GGUF."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import llama4
import meta_folders
import numpy as np
import pytest
from onnx_graphs import TextGraph, without_rounded_activations
from transformers import AutoTokenizer

from converters import convert, plan
from edge_llama.files.gguf import read_header
from edge_llama.files.manifest import verify

IDS = np.random.default_rng(2).integers(3, 250, 24).tolist()
META: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path]]] = {
    "llama 2": (meta_folders.llama2, lambda folder: checkpoints.llama2(folder, shape=checkpoints.Shape(kv_heads=4))),
    "llama 3.2": (meta_folders.llama3, lambda folder: checkpoints.llama3(folder, padding=246, dtype="F32")),
    "llama 4": (
        lambda folder: llama4.meta(folder, llama4.text_only(folder.with_name("for meta")), fused=True),
        llama4.text_only,
    ),
}


@pytest.mark.parametrize("name", META)
@pytest.mark.parametrize("quant", ["f32", "int4"])
def test_metas_folder_gives_the_same_weights(name: str, quant: str, tmp_path: Path) -> None:
    from_meta, from_hf = META[name]
    for kind, make in (("meta", from_meta), ("hf", from_hf)):
        convert(make(tmp_path / f"{kind} source"), tmp_path / kind, to="onnx", quant=quant)
    data = [(tmp_path / kind / "model.onnx.data").read_bytes() for kind in ("meta", "hf")]
    assert data[0] == data[1]
    text = "What is in 10 small boxes? Ünïcode, too."
    ids = [AutoTokenizer.from_pretrained(tmp_path / kind)(text)["input_ids"] for kind in ("meta", "hf")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("make", [checkpoints.llama2, checkpoints.llama3, llama4.text_only], ids=["2", "3", "4"])
@pytest.mark.parametrize(("gguf", "quant"), [("f32", "f32"), ("q8_0", "int8"), ("q4_0", "int4")])
def test_gguf_gives_the_same_logits(make: Callable[[Path], Path], gguf: str, quant: str, tmp_path: Path) -> None:
    """From GGUF's blocks the very numbers that the checkpoint itself gives: matrices and experts; 1e-6 otherwise."""
    source = make(tmp_path / "source")
    types = {"token_embd": "q8_0"} if quant == "int4" else {}
    if quant == "int4" and not is_tied(source):
        types["output"] = "q8_0"
    convert(source, tmp_path / "model.gguf", quant=gguf, tensor_types=types)
    convert(tmp_path / "model.gguf", tmp_path / "from gguf", to="onnx", quant=quant)
    convert(source, tmp_path / "direct", to="onnx", quant=quant)
    layout = plan(tmp_path / "model.gguf", tmp_path / "other", to="onnx", quant=quant).layout
    assert layout.warnings == ()
    found, expected = (TextGraph(tmp_path / name).feed(IDS) for name in ("from gguf", "direct"))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_experts_with_offsets_keep_their_numbers(tmp_path: Path) -> None:
    """Q4_1: the operator for all experts knows no offsets, so each stands by itself. Beside the file's own floats."""
    types = dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "q4_1")
    convert(llama4.text_only(tmp_path / "source"), tmp_path / "model.gguf", quant="q8_0", tensor_types=types)
    convert(tmp_path / "model.gguf", tmp_path / "float", to="onnx", quant="f32")
    types = dict.fromkeys(types, "int4")
    convert(tmp_path / "model.gguf", tmp_path / "int4", to="onnx", quant="int8", tensor_types=types)
    expected = TextGraph(tmp_path / "float").feed(IDS)
    found = TextGraph(tmp_path / "int4", without_rounded_activations(tmp_path / "int4")).feed(IDS)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def is_tied(source: Path) -> bool:
    config = json.loads((source / "config.json").read_text("utf-8"))
    return bool(config.get("tie_word_embeddings"))


def test_every_bit_is_covered_by_the_manifest(tmp_path: Path) -> None:
    convert(checkpoints.llama3(tmp_path / "source"), tmp_path / "onnx", to="onnx")
    listed = verify(tmp_path / "onnx").files
    assert {path.name for path in (tmp_path / "onnx").iterdir()} - {"edge-llama.json"} == set(listed)


def test_scaling_that_only_a_gguf_tensor_tells_is_kept(tmp_path: Path) -> None:
    """Long ago converted files hold factors that no config can say."""
    source = checkpoints.llama3(tmp_path / "source")
    convert(source, tmp_path / "model.gguf", quant="f32")
    raw = bytearray((tmp_path / "model.gguf").read_bytes())
    header = read_header(tmp_path / "model.gguf")
    tensor = next(tensor for tensor in header.tensors if tensor.name == "rope_freqs.weight")
    factors = np.linspace(1, 3.7, tensor.shape[0], dtype=np.float32)
    raw[tensor.offset : tensor.offset + tensor.nbytes] = factors.tobytes()
    (tmp_path / "odd.gguf").write_bytes(raw)
    convert(tmp_path / "odd.gguf", tmp_path / "odd", to="onnx", quant="f32")
    cosines = np.fromfile(tmp_path / "odd" / "model.onnx.data", np.float32, 2 * len(factors)).reshape(2, -1)
    theta = header.get("llama.rope.freq_base", float, 0.0)
    expected = np.cos(theta ** -(np.arange(len(factors)) / len(factors)) / factors)
    assert np.abs(cosines[1] - expected).max() < 1e-6


@pytest.mark.parametrize("options", [{}, {"zero_points": True, "block": 64}, {"portable": True}], ids=str)
def test_scales_that_found_no_room_are_computed_again(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait in memory while a matrix's numbers are written, as far as there is some for them."""
    source = checkpoints.llama3(tmp_path / "source")
    convert(source, tmp_path / "kept", to="onnx", **options)
    monkeypatch.setattr("converters.tensors.pending_scales._ROOM", 5000)
    convert(source, tmp_path / "made again", to="onnx", **options)
    kept, again = ((tmp_path / name / "model.onnx.data").read_bytes() for name in ("kept", "made again"))
    assert kept == again


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_stopped_conversion_is_resumed_with_the_same_bytes(share: float, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    source = llama4.scout(tmp_path / "source")
    convert(source, tmp_path / "whole", to="onnx")
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "stopped", to="onnx", on_progress=stop)
    assert convert(source, tmp_path / "stopped", to="onnx").resumed_bytes > 0
    for name in ("model.onnx.data", "vision/model.onnx.data", "edge-llama.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    verify(tmp_path / "stopped")

"""Both engines of the vision tower: transformers' embeddings, stops, and files that can't be used."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from engines import open_vision
from llama4_reference import Reference
from numpy.typing import NDArray
from refusals import refusal

import converters
import edge_llama
from edge_llama import Image, Message
from edge_llama.backends import crash_probe
from edge_llama.backends.base import AbortedError, VisionTower
from edge_llama.backends.llama_cpp import vision
from edge_llama.backends.llama_cpp.vision import levels
from edge_llama.backends.onnxruntime import providers
from edge_llama.backends.towers import read_vision
from edge_llama.errors import ArtifactError, EngineError, OptionError
from edge_llama.files.artifact import VisionArtifact

EXACT, LLAMA_CPP = 1e-3, 0.01
"""Largest difference: of ONNX in f32, and of llama.cpp as a share of the largest value (it computes GELU by tanh)."""


@pytest.fixture(scope="module")
def towers(llama4_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    converters.convert(llama4_scout, folder / "mmproj.gguf", tower="vision", vision_quant="f32")
    for quant in ("f32", "f16"):
        converters.convert(llama4_scout, folder / quant, tower="vision", vision_quant=quant)
    return {"mmproj": folder / "mmproj.gguf", "f32": folder / "f32", "f16": folder / "f16"}


@pytest.fixture(scope="module")
def reference(llama4_scout: Path) -> Reference:
    return Reference(llama4_scout)


@pytest.fixture
def tower(towers: dict[str, Path]) -> Iterator[VisionTower]:
    with closing(open_vision(read_vision(towers["f32"]), threads=2)) as opened:
        yield opened


def pixels(count: int, seed: int = 0) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).integers(0, 256, (count, 3, 56, 56))
    return ((found / 255 - 0.5) / 0.5).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 17])
def test_onnx_in_f32_is_transformers(count: int, tower: VisionTower, reference: Reference) -> None:
    expected = reference.image_features(pixels(count))
    np.testing.assert_allclose(tower.encode(pixels(count)), expected, atol=EXACT, rtol=0)
    by_columns = expected.reshape(count, 2, 2, -1).swapaxes(1, 2).reshape(expected.shape)
    assert np.abs(by_columns - expected).max() > 100 * EXACT, "a transposed grid would show"


def test_onnx_in_f16_differs_by_rounding_alone(towers: dict[str, Path], reference: Reference) -> None:
    with closing(open_vision(read_vision(towers["f16"]), threads=2)) as tower:
        expected = reference.image_features(pixels(3))
        assert np.abs(tower.encode(pixels(3)) - expected).max() <= 5e-3 * np.abs(expected).max()


def test_llama_cpps_encoder_is_transformers_but_for_its_gelu(towers: dict[str, Path], reference: Reference) -> None:
    expected = reference.image_features(pixels(3))
    with closing(open_vision(read_vision(towers["mmproj"]), threads=2)) as tower:
        found = tower.encode(pixels(3))
    assert np.abs(found - expected).max() <= LLAMA_CPP * np.abs(expected).max()
    by_columns = found.reshape(3, 2, 2, -1).swapaxes(1, 2).reshape(found.shape)
    assert np.abs(by_columns - expected).max() > 0.1 * np.abs(expected).max(), "a transposed grid would show"


def test_the_order_of_the_installed_encoder_is_found_out_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path))
    first = vision._transposes()
    monkeypatch.setattr(crash_probe, "run", None)  # not asked again
    assert vision._transposes() == first


def test_a_tile_goes_back_to_its_levels_exactly() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    for mean, std in (((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))):
        tile = ((every / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)
        assert (levels(tile, mean, std) == every).all()


def test_a_chat_gets_the_same_images_from_either_engine(
    llama4_digits: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    from llama4_training import dialogues  # noqa: PLC0415 - torch

    converters.convert(llama4_digits, tmp_path / "bundle", quant="f32")
    converters.convert(llama4_digits, tmp_path / "bundle", quant="f32", vision_to="gguf", force=True)
    turn = dialogues("across", 1, np.random.default_rng(5), held_out=True, side=(56, 56))[0].turns[0]
    question = [Message("user", [*map(Image.open, turn.pictures), turn.question])]
    with edge_llama.open(tmp_path / "bundle", kv_format="f32", flash_attention=False, n_ctx=512) as model:
        assert model.vision
        assert model.vision.engine == "llama.cpp"
        assert model.answer(question, temperature=0, max_tokens=16).result().text == turn.answer


@pytest.mark.parametrize("engine", ["mmproj", "f32"])
def test_an_abort_from_another_thread_stops_it_and_it_works_again(engine: str, towers: dict[str, Path]) -> None:
    tower = open_vision(read_vision(towers[engine]), threads=2)
    many = pixels(17).repeat(400, 0)
    threading.Timer(0.2, tower.abort).start()
    began = time.perf_counter()
    with pytest.raises(AbortedError):
        tower.encode(many)
    assert time.perf_counter() - began < 5  # a promise of 250 ms, on a machine that may be busy
    with pytest.raises(AbortedError):
        tower.encode(pixels(1))
    tower.resume()
    assert tower.encode(pixels(1)).shape == (1, 4, 64)
    tower.close()


def test_llama_cpps_encoder_stops_in_the_midst_of_a_tile(
    towers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_vision(read_vision(towers["mmproj"]), threads=1)) as tower:
        expected = tower.encode(pixels(1))
        library = vision._library()
        encode = library.mtmd_encode_chunk

        def stopped_within(*arguments: object) -> int:
            tower.abort()
            try:
                return int(encode(*arguments))
            finally:
                tower.resume()

        monkeypatch.setattr(library, "mtmd_encode_chunk", stopped_within)
        with pytest.raises(AbortedError):
            tower.encode(pixels(1))
        monkeypatch.undo()
        assert (tower.encode(pixels(1)) == expected).all()


def test_the_graph_is_sound_and_reads_well(towers: dict[str, Path]) -> None:
    path = towers["f16"] / "vision" / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    names = {node.name for node in model.graph.node}
    assert {"vision.layers.2.attention.q", "vision.layers.0.mlp.up", "adapter.fc1", "image_features"} <= {
        name.removesuffix(".product") for name in names
    }
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    known = {info.name for info in (*inferred.graph.value_info, *inferred.graph.output)}
    assert {output for node in model.graph.node for output in node.output} <= known


def _damaged(towers: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(towers["f32"], tmp_path / "damaged"))


def _foreign(folder: Path, change: Callable[[onnx.ModelProto], object]) -> VisionArtifact:
    """The bundle in ``folder`` as another program would write it: no seal, and a graph that was changed."""
    path = folder / "vision" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "edge-llama.json").read_text())
    del manifest["seal"]
    manifest["files"]["vision/model.onnx"]["bytes"] = path.stat().st_size
    (folder / "edge-llama.json").write_text(json.dumps(manifest))
    return read_vision(folder)


def test_a_graph_that_was_damaged_since_never_reaches_the_engine(towers: dict[str, Path], tmp_path: Path) -> None:
    folder = _damaged(towers, tmp_path)
    artifact = read_vision(folder)
    graph = folder / "vision" / "model.onnx"
    whole = graph.read_bytes()
    for damaged in (b"\x08\x0anonsense", whole[:-1], whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:]):
        graph.write_bytes(damaged)
        with refusal(ArtifactError, "model.onnx"):
            open_vision(artifact, threads=1)


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("fresh_cache")
def test_a_foreign_graph_is_tried_out_once(
    towers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Reference
) -> None:
    artifact = _foreign(_damaged(towers, tmp_path), lambda model: setattr(model, "producer_name", "another"))
    open_vision(artifact, threads=1).close()
    monkeypatch.setattr(crash_probe, "run", None)  # not asked again
    with closing(open_vision(artifact, threads=1)) as tower:
        np.testing.assert_allclose(tower.encode(pixels(1)), reference.image_features(pixels(1)), atol=EXACT, rtol=0)


@pytest.mark.usefixtures("fresh_cache")
def test_a_graph_that_onnx_runtime_dies_of_ends_a_child_alone(towers: dict[str, Path], tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        halves = ["half", "other_half"]
        model.graph.node.append(onnx.helper.make_node("Split", ["vision.norm_post"], halves, axis=-1, num_outputs=1))

    artifact = _foreign(_damaged(towers, tmp_path), change)
    with refusal(ArtifactError, "ONNX Runtime"):  # one that was repaired would refuse it itself
        open_vision(artifact, threads=1)


def _outside(model: onnx.ModelProto) -> None:
    initializer = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in initializer.external_data if entry.key == "location").value = "../outside.data"


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model: setattr(model.graph.node[5], "op_type", "Nonsense"), "Nonsense"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "opset"),
        (lambda model: setattr(model.graph.node[5], "domain", "com.example"), "com.example"),
        (_outside, "outside.data"),
    ],
    ids=["operator", "opset", "domain", "outside"],
)
def test_a_foreign_graph_that_cannot_run_is_an_error(
    change: Callable[[onnx.ModelProto], object], told: str, towers: dict[str, Path], tmp_path: Path
) -> None:
    with refusal(ArtifactError, told):
        open_vision(_foreign(_damaged(towers, tmp_path), change), threads=1)


@pytest.mark.usefixtures("fresh_cache")
def test_a_graph_that_makes_nothing_of_a_tile_is_an_error(towers: dict[str, Path], tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        """All tiles are cut away at the end, which no declared shape shows."""
        last = next(node for node in model.graph.node if "image_features" in node.output)
        last.output[:] = ["whole"]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "cut0"))
        model.graph.node.append(onnx.helper.make_node("Slice", ["whole", "cut0", "cut0", "cut0"], ["image_features"]))

    artifact = _foreign(_damaged(towers, tmp_path), change)
    with (
        closing(open_vision(artifact, threads=1)) as tower,
        refusal(ArtifactError, "it makes .* of 1 tiles"),
    ):
        tower.encode(pixels(1))


def test_a_graph_of_another_shape_than_its_bundle_says_is_an_error(towers: dict[str, Path], tmp_path: Path) -> None:
    from dataclasses import replace  # noqa: PLC0415

    artifact = read_vision(towers["f32"])
    for spec in (replace(artifact.spec, n_embd=128), replace(artifact.spec, tile=84)):
        with refusal(ArtifactError, "expected float"):
            open_vision(replace(artifact, spec=spec), threads=1)


def test_a_device_that_is_not_there_is_an_error_and_no_fallback(
    towers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = read_vision(towers["f32"])
    with refusal(OptionError, "device toaster", "coreml"):
        open_vision(artifact, threads=1, device="toaster")
    with refusal(OptionError, "no CUDAExecutionProvider.* pip install onnxruntime-gpu"):
        open_vision(artifact, threads=1, device="cuda")
    monkeypatch.setattr(providers, "find_spec", lambda _: None)
    with refusal(OptionError, "no QNN.*pip install onnxruntime-qnn"):
        open_vision(artifact, threads=1, device="qnn")


@pytest.mark.parametrize("engine", ["mmproj", "f32"])
def test_closing_twice_is_nothing_special_and_a_closed_tower_says_so(engine: str, towers: dict[str, Path]) -> None:
    opened = open_vision(read_vision(towers[engine]), threads=1)
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="is closed"):
        opened.encode(pixels(1))


@pytest.mark.parametrize("engine", ["mmproj", "f32"])
def test_closing_from_another_thread_stops_what_runs(engine: str, towers: dict[str, Path]) -> None:
    opened = open_vision(read_vision(towers[engine]), threads=1)
    threading.Timer(0.1, opened.close).start()
    with pytest.raises((AbortedError, EngineError)):
        opened.encode(pixels(17).repeat(400, 0))
    with pytest.raises(EngineError, match="is closed"):
        opened.encode(pixels(1))

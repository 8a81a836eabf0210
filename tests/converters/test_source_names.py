"""What is taken for a source, whatever it is called, and what else is said to give instead."""

import shutil
from pathlib import Path

import pytest
from refusals import refusal

import converters
import edge_llama
from converters.sources import open_checkpoint
from edge_llama import CheckpointError

BLOB = "sha256-" + "ab" * 32


@pytest.fixture(scope="module")
def gguf(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("named") / "model.gguf"
    converters.convert(llama3, path, quant="f16")
    return path


@pytest.mark.parametrize("name", ["MODEL.GGUF", "Model.GgUf", BLOB, "ab" * 32, "model.bin", "weights.gguf.part"])
def test_a_gguf_file_is_a_source_by_its_magic_whatever_its_name(name: str, gguf: Path, tmp_path: Path) -> None:
    shutil.copy(gguf, tmp_path / name)
    converters.convert(tmp_path / name, tmp_path / "out.gguf", quant="q8_0")
    converters.convert(gguf, tmp_path / "same.gguf", quant="q8_0")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()


@pytest.mark.parametrize("name", ["MODEL.GGUF", BLOB])
def test_it_also_runs(name: str, gguf: Path, tmp_path: Path) -> None:
    shutil.copy(gguf, tmp_path / name)
    with edge_llama.open(tmp_path / name, n_ctx=64) as model:
        assert model.generate("Hello", max_tokens=2, temperature=0).result().tokens


def test_an_output_in_capitals_is_a_gguf_file(llama3: Path, gguf: Path, tmp_path: Path) -> None:
    converters.convert(llama3, tmp_path / "OUT.GGUF", quant="f16")
    assert (tmp_path / "OUT.GGUF").read_bytes() == gguf.read_bytes()
    converters.convert(llama3, tmp_path / "PARTS.GGUF", quant="f16", max_shard_bytes=300_000)
    assert list(tmp_path.glob("PARTS-00001-of-*.gguf"))


@pytest.mark.parametrize("name", ["model.gguf", "MODEL.GGUF"])
def test_a_folder_with_one_gguf_file_means_that_file(name: str, gguf: Path, tmp_path: Path) -> None:
    """As repositories of such files are downloaded: a config.json may lie beside them, weights of another kind not."""
    shutil.copy(gguf, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert open_checkpoint(tmp_path).files == (tmp_path / name,)
    assert edge_llama.open(tmp_path, n_ctx=64).close() is None
    shutil.copy(gguf, tmp_path / "other.gguf")
    with refusal(CheckpointError, r"expected one text model, found .*other\.gguf", tmp_path):
        open_checkpoint(tmp_path)


def test_a_bundles_text_tower_is_a_source_and_the_vision_tower_is_told(bundle: Path, tmp_path: Path) -> None:
    plan = converters.plan(bundle, tmp_path / "out.gguf", quant="q8_0")
    assert plan.layout.entries
    assert any("vision/model.onnx is left out" in warning for warning in plan.warnings)
    assert bundle / "edge-llama.json" in plan.files


def test_what_was_converted_to_graphs_is_refused_by_name(llama3: Path, onnx_folder: Path, tmp_path: Path) -> None:
    converters.convert(llama3, tmp_path / "onnx", to="onnx", quant="f32")
    with refusal(CheckpointError, r"text tower is for onnxruntime \(.*\.onnx\)", tmp_path / "onnx"):
        open_checkpoint(tmp_path / "onnx")
    with refusal(CheckpointError, "this is an ONNX model", onnx_folder):
        open_checkpoint(onnx_folder)


def test_a_vision_tower_alone_is_refused_by_name(llama4_scout: Path, tmp_path: Path) -> None:
    converters.convert(llama4_scout, tmp_path / "vision", tower="vision")
    with refusal(CheckpointError, "a vision tower alone"):
        open_checkpoint(tmp_path / "vision")


def test_a_part_of_a_checkpoint_is_told_from_the_whole(llama3: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        with refusal(CheckpointError, "not a checkpoint; give its folder", llama3):
            open_checkpoint(llama3 / name)
    (tmp_path / "adapter_config.json").write_text("{}")
    with refusal(CheckpointError, "this is an adapter.*give the base, and --lora", tmp_path):
        open_checkpoint(tmp_path)
    with refusal(CheckpointError, "no such file or folder"):
        open_checkpoint(tmp_path / "nothing")

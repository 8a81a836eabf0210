"""ONNX files read without ONNX: what ``onnx`` says of them, and typed errors for whatever is malformed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import onnx
import pytest
from refusals import refusal

from edge_llama.backends.towers import read_bundle, read_vision
from edge_llama.errors import ArtifactError
from edge_llama.files.formats import FORMATS
from edge_llama.files.manifest import NAME
from edge_llama.files.onnx_graph_file import ValueType, read_onnx

Model = onnx.ModelProto
FORMAT_OF = {onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.FLOAT16: "f16"}


def model_of(path: Path) -> Model:
    return onnx.load(str(path), load_external_data=False)


def outside(model: Model) -> list[onnx.TensorProto]:
    """The initializers whose data is in another file."""
    return [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]


def place(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def test_it_reads_what_onnx_reads(bundle: Path) -> None:
    path = bundle / "vision/model.onnx"
    read, model = read_onnx(path), model_of(path)
    assert read.inputs == tuple(entry.name for entry in model.graph.input)
    assert read.outputs == tuple(entry.name for entry in model.graph.output)
    assert [*read.data] == [bundle / "vision/model.onnx.data"]
    assert len(read.tensors) > 20
    for ours, theirs in zip(read.tensors, outside(model), strict=True):
        assert (ours.name, ours.shape) == (theirs.name, tuple(theirs.dims) or (1,))
        assert ours.format is FORMATS[FORMAT_OF[theirs.data_type]]
        assert (str(ours.offset), str(ours.nbytes)) == (place(theirs)["offset"], place(theirs)["length"])
    for value in (*model.graph.input, *model.graph.output):
        told = value.type.tensor_type
        sizes = tuple(size.dim_value or None for size in told.shape.dim)
        assert read.types[value.name] == ValueType(FORMATS[FORMAT_OF[told.elem_type]], sizes)


def placed(**entries: str) -> Callable[[Model], None]:
    """Say something else of where the first outer tensor's data lies."""

    def change(model: Model) -> None:
        tensor = outside(model)[0]
        kept = place(tensor) | entries
        del tensor.external_data[:]
        for key, value in kept.items():
            tensor.external_data.add(key=key, value=value)

    return change


def everywhere(location: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for tensor in outside(model):
            next(entry for entry in tensor.external_data if entry.key == "location").value = location

    return change


def shaped(*shape: int) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        outside(model)[0].dims[:] = shape

    return change


BAD: dict[str, tuple[Callable[[Model], None], str]] = {
    "weights above": (everywhere("../model.onnx.data"), "expected a file beside it"),
    "weights anywhere": (everywhere("/etc/hostname"), "expected a file beside it"),
    "weights on Windows": (everywhere("C:\\model.onnx.data"), "expected a file beside it"),
    "weights nowhere": (everywhere(""), "expected a file beside it"),
    "the folder itself": (everywhere(".."), "expected a file beside it"),
    "weights in two files": (placed(location="other"), "its weights are missing"),
    "weights that are missing": (everywhere("other"), "its weights are missing"),
    "an offset past the end": (placed(offset="99999999"), "ends at byte"),
    "a negative offset": (placed(offset="-1"), "'-1' is no place in a file"),
    "an offset that is no number": (placed(offset="0x10"), "is no place in a file"),
    "an offset without end": (placed(offset="9" * 30), "is no place in a file"),
    "another length": (placed(length="4"), "has 4 bytes, its shape needs"),
    "another shape": (shaped(3, 5), "its shape needs 30"),
    "an empty shape": (shaped(0, 5), "impossible shape"),
    "a negative shape": (shaped(-1, -5), "impossible shape"),
    "an overflowing shape": (shaped(1 << 40, 1 << 40), "impossible shape"),
    "an unknown type": (lambda model: setattr(outside(model)[0], "data_type", 99), "unknown type 99"),
    "another input": (lambda model: setattr(model.graph.input[0], "name", "pixels"), "from 'pixels' to"),
    "another output": (lambda model: setattr(model.graph.output[0], "name", "y"), "to 'y', expected"),
    "two inputs": (lambda model: model.graph.input.add(name="b") and None, "from 'pixel_values, b' to"),
    "no graph": (lambda model: model.ClearField("graph"), "it holds no graph"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_tower_can_be_is_a_typed_error(name: str, copy: Path) -> None:
    spoil, expected = BAD[name]
    path = copy / "vision/model.onnx"
    model = model_of(path)
    spoil(model)
    path.write_bytes(model.SerializeToString())
    content = json.loads((copy / NAME).read_text("utf-8"))
    content["files"]["vision/model.onnx"]["bytes"] = path.stat().st_size
    (copy / NAME).write_text(json.dumps(content), "utf-8")
    with refusal(ArtifactError, expected, path):
        read_bundle(copy)


def test_cut_or_damaged_anywhere_it_is_read_or_refused(bundle: Path, tmp_path: Path, seed: int) -> None:
    """Never another exception, whatever the bytes."""
    rng = Random(seed)
    whole = (bundle / "vision/model.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    shutil.copy(bundle / "vision/model.onnx.data", tmp_path)
    refused = 0
    for _ in range(300):
        raw = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randrange(4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw)
        try:
            read_onnx(path)
        except ArtifactError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("raw", [b"", b"\x00", b"GGUF" + bytes(100), b"<html>", bytes(1000), b"\xff" * 100])
def test_what_is_no_onnx_file_is_a_typed_error(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(raw)
    with refusal(ArtifactError, "ONNX|damaged|cut short", tmp_path / "a.onnx"):
        read_onnx(tmp_path / "a.onnx")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.onnx").open("wb") as file:
        file.truncate(1 << 33)
    with refusal(ArtifactError, "is larger than", tmp_path / "a.onnx"):
        read_onnx(tmp_path / "a.onnx")


def test_weights_cut_short_are_refused_with_the_bundle(copy: Path) -> None:
    data = copy / "vision/model.onnx.data"
    data.write_bytes(data.read_bytes()[:-64])
    with refusal(ArtifactError, r"'vision/model.onnx.data' has [\d,]+ bytes instead of", copy):
        read_bundle(copy)


def test_an_onnx_file_without_its_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle / "vision", tmp_path / "vision")
    with refusal(ArtifactError, "edge-llama.json, which says", tmp_path / "vision/model.onnx"):
        read_vision(tmp_path / "vision/model.onnx")

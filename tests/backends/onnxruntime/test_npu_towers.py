"""Llama 4's vision tower in integers: what rounding costs, and that NPU engines run all of it, and nothing else does.

The engines are OpenVINO on the CPU and Qualcomm's HTP in its emulator.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llama4
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from engines import open_vision
from llama4_answers import EXACT, ours, questions
from llama4_reference import Reference
from npu import PACKAGES, digits, in_integers, needs
from numpy.typing import NDArray
from refusals import refusal

import converters
import edge_llama
from edge_llama.backends.base import Placement
from edge_llama.backends.onnxruntime.providers import resolve
from edge_llama.backends.onnxruntime.session import open_session
from edge_llama.backends.towers import read_vision
from edge_llama.errors import ArtifactError, CheckpointError, OptionError
from edge_llama.files.onnx_vision import VISION_INPUT
from edge_llama.files.vision_spec import VisionSpec
from quant.calibration import measured
from quant.ranges import Ranges, read_ranges

DIGITS = Path(__file__).resolve().parents[3] / "docs" / "digits.png"
INTEGERS = 0.02
"""Largest difference from float, as a share of the largest value, of the trained tower; 0.5 % was measured."""
ACTIVATIONS = 3e-3
"""What activations of 16 bits cost alone, of a tower whose weights are what the integers say; 0.06 % was measured."""
ENGINES = {"openvino": 0.012, "qnn": 0.01}
"""Largest difference of an engine from ONNX Runtime's CPU on the same graph, likewise.

0.06 % was measured (0.7 where values leave their ranges), and 0.2 %.
"""


def encoded(tower: Path, pixels: NDArray[np.float32], device: str = "cpu") -> NDArray[np.float32]:
    with closing(open_vision(read_vision(tower), threads=2, device=device)) as opened:
        return opened.encode(pixels)


@pytest.fixture(scope="module")
def folder(llama4_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained tower in f32 and a16w8; its ranges are of digits that it has learned from."""
    spec = VisionSpec(tile=56, max_tiles=16, tokens_per_tile=4, n_embd=64)
    return in_integers(llama4_digits, tmp_path_factory.mktemp("npu"), digits(spec, held_out=False, seed=1, count=40))


@pytest.fixture(scope="module")
def seen(folder: Path) -> NDArray[np.float32]:
    """Digits that it has not learned from."""
    return digits(read_vision(folder / "f32").spec, held_out=True, seed=2, count=6)


def test_ranges_are_what_transformers_computes(folder: Path, llama4_scout: Path, tmp_path: Path) -> None:
    """Of a random tower over noise: inside its layers, and at its end."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, 56, 56)).astype(np.float32)
    found = read_ranges(in_integers(llama4_scout, tmp_path, pixels) / "ranges.json")
    reference = Reference(llama4_scout)
    vision, expected = reference.model.vision_model, {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: expected.setdefault(name, output)

    for name, module in (
        ("vision.norm_pre", vision.layernorm_pre),
        ("vision.layers.0.attention.q", vision.model.layers[0].self_attn.q_proj),
        ("vision.layers.2.mlp.up", vision.model.layers[2].mlp.fc1),
        ("vision.layers.1.norm2", vision.model.layers[1].post_attention_layernorm),
    ):
        module.register_forward_hook(watch(name))
    expected["image_features"] = torch.from_numpy(reference.image_features(pixels))
    expected["pixel_values"] = torch.from_numpy(pixels)
    assert len(expected) == 6
    for name, values in expected.items():
        np.testing.assert_allclose(found.values[name], (values.min(), values.max()), atol=1e-4, err_msg=name)
    assert found.count == 3
    half = tmp_path / "f16"
    converters.convert(llama4_scout, half, tower="vision")
    of_half = measured(read_vision(half).path, [{VISION_INPUT: pixels[:1]}], threads=2)
    assert of_half.tower == found.tower != read_ranges(folder / "ranges.json").tower
    assert of_half.values.keys() == found.values.keys()


def test_integers_are_near_float(folder: Path, seen: NDArray[np.float32]) -> None:
    """Of that little is the activations' part."""
    expected, found = encoded(folder / "f32", seen), encoded(folder / "a16w8", seen)
    largest = np.abs(expected).max()
    assert 1e-4 * largest < np.abs(found - expected).max() <= INTEGERS * largest
    rounded = with_rounded_weights(folder, seen)
    assert np.abs(found - rounded).max() <= ACTIVATIONS * largest
    assert np.abs(rounded - expected).max() > np.abs(found - rounded).max()


def with_rounded_weights(folder: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The float graph with weights as the integers stand for: no less exact than half a step of each channel."""
    graph, integers = (onnx.load(folder / form / "vision/model.onnx") for form in ("f32", "a16w8"))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in integers.graph.initializer}
    count = 0
    for tensor in graph.graph.initializer:
        if f"{tensor.name}.quantized" not in stored:
            continue
        scale = stored[f"{tensor.name}.scale"]
        numbers = stored[f"{tensor.name}.quantized"].astype(np.float64)
        exact = onnx.numpy_helper.to_array(tensor)
        if scale.size > 1:
            scale = scale.reshape(-1, 1, 1, 1) if numbers.ndim == 4 else scale
        else:
            numbers -= stored[f"{tensor.name}.zero"]
        values = (numbers * scale).astype(np.float32).reshape(exact.shape)
        assert (np.abs(values - exact) <= 0.501 * scale).all(), tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        count += 1
    assert count > 40
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {VISION_INPUT: pixels})
    return features


def test_the_graph_is_standard_of_fixed_shapes_and_of_integers_alone(folder: Path) -> None:
    path = folder / "a16w8" / "vision" / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    assert all(size > 0 for shape in shapes.values() for size in shape)
    assert max(map(len, shapes.values())) == 4
    makers = {name: node for node in graph.node for name in node.output}
    integers = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        for name in node.input:
            if node.op_type != "DequantizeLinear" and name not in integers:
                assert makers[name].op_type == "DequantizeLinear", (node.name, name)
    assert {"vision.layers.1.attention.q", "vision.shuffled", "adapter.fc2.gelu"} < makers.keys()
    assert read_vision(folder / "a16w8").format == "a16w8"


@pytest.mark.parametrize("device", [pytest.param(device, marks=needs(device)) for device in ENGINES])
def test_an_npus_engine_runs_every_node_and_agrees(device: str, folder: Path, seen: NDArray[np.float32]) -> None:
    expected = encoded(folder / "a16w8", seen)
    found = encoded(folder / "a16w8", seen, device)
    assert np.abs(found - expected).max() <= ENGINES[device] * np.abs(expected).max()
    path = read_vision(folder / "a16w8").path
    there = Placement(0, "", device, is_strict=True)
    _, nodes = open_session(path, path, there, onnxruntime.SessionOptions())
    assert nodes
    assert nodes.provider == resolve(device).onnx.provider
    assert nodes.left == ()
    assert nodes.taken >= len(onnx.load(path).graph.node)


@needs("openvino")
def test_openvino_computes_a_float_tower_in_float(folder: Path, seen: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(encoded(folder / "f32", seen, "openvino"), encoded(folder / "f32", seen), atol=1e-3)


@needs("qnn")
def test_a_float_tower_is_not_run_by_an_npu_and_nothing_else_takes_it(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"QNNExecutionProvider takes 1 of its \d+ nodes, .*convert it for this one"):
        open_vision(read_vision(folder / "f32"), threads=1, device="qnn")


def test_it_answers_as_in_float(llama4_digits: Path, folder: Path, tmp_path: Path) -> None:
    """The text tower in f32 beside it; in 200 pictures none was answered otherwise."""
    converters.convert(llama4_digits, tmp_path / "text.gguf", quant="f32", tower="text")
    asked, said = questions(60), {}
    for form in ("f32", "a16w8"):
        with edge_llama.open(tmp_path / "text.gguf", vision=folder / form, n_ctx=2048, **EXACT) as model:
            assert model.vision
            said[form] = [ours(model, question) for question in asked]
    assert np.mean([a == b for a, b in zip(said["f32"], said["a16w8"], strict=True)]) >= 0.98


def _without(content: dict[str, Any]) -> None:
    del content["values"]["vision.layers.1.norm2"]


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(key, value)


def _value(ends: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["values"].__setitem__("vision.norm_pre", ends)


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a value is missing": (_without, "'vision.layers.1.norm2' is missing"),
    "not finite": (_value([float("-inf"), 1.0]), "'vision.norm_pre' is .-inf, 1.0., expected two finite numbers"),
    "NaN": (_value([0.0, float("nan")]), "'vision.norm_pre' is .0.0, nan."),
    "upside down": (_value([1.0, -1.0]), "the lower first"),
    "too large": (_value([0, 10**400]), "'vision.norm_pre' is"),
    "three numbers": (_value([1, 2, 3]), "'vision.norm_pre' is .1, 2, 3."),
    "true": (_value([False, True]), "'vision.norm_pre' is"),
    "of another tower": (_set("tower", "0" * 64), "of another vision tower than"),
    "a newer file": (_set("schema", "edge-llama ranges 2"), "is no 'edge-llama ranges 1' and no .* file"),
    "no values": (_set("values", []), "tower, tiles or values"),
}


@pytest.mark.parametrize("what", BAD)
def test_ranges_that_do_not_fit_are_refused(what: str, folder: Path, llama4_digits: Path, tmp_path: Path) -> None:
    change, told = BAD[what]
    content = json.loads((folder / "ranges.json").read_text())
    change(content)
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(content))
    with refusal(OptionError, told, path):
        converters.convert(llama4_digits, tmp_path / "out", tower="vision", vision_quant="a16w8", calibration=[path])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_ranges_that_are_no_json_are_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_bytes(text)
    with refusal(OptionError, "not valid JSON|is no 'edge-llama ranges 1' and no", tmp_path):
        read_ranges(tmp_path / "ranges.json")


def test_ranges_survive_their_file(tmp_path: Path) -> None:
    ranges = Ranges("ab" * 32, 7, {"x": (-1.5, float(np.float32(0.1))), "zeros": (0.0, 0.0)})
    (tmp_path / "ranges.json").write_bytes(ranges.encode())
    assert read_ranges(tmp_path / "ranges.json") == ranges


def test_codes_hold_both_ends_and_zero() -> None:
    for low, high in ((-1.5, 3.0), (0.0, 2.0), (1.0, 2.0), (-2.0, -1.0), (0.0, 0.0), (-1e-40, 1e-40)):
        code = Ranges("", 1, {"x": (low, high)}).code("x")
        values = np.array([low, 0.0, high])
        found = (code.numbers(values).astype(np.float64) - code.zero_point) * code.scale
        np.testing.assert_allclose(found, values, atol=code.scale / 2)
        assert found[1] == 0.0
        assert code.scale <= max(abs(low), abs(high)) / 32767 * 1.0001 or max(abs(low), abs(high)) < 1e-30


def test_a_tower_that_computes_nan_is_not_measured(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "f32", tmp_path / "f32")
    path = tmp_path / "f32/vision/model.onnx"
    bad = np.full((1, 3, 56, 56), np.nan, np.float32)
    with refusal(ArtifactError, "'pixel_values' is NaN or infinite", path):
        measured(path, [{VISION_INPUT: bad}], threads=1)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, folder: Path) -> None:
    """Whichever of them: they are found where they are read."""
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    source = llama4.scout(tmp_path / "source", num_hidden_layers=1)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, 56, 56)).astype(np.float32)
    ranges = in_integers(source, tmp_path / "made", pixels) / "ranges.json"
    (path,) = source.glob("*.safetensors")
    whole = load_file(path)
    for name in ("model.layers.1.mlp.fc1.weight", "model.layers.1.mlp.fc2.bias", "patch_embedding.linear.weight"):
        weights = {key: value.copy() for key, value in whole.items()}
        weights[f"vision_model.{name}"].reshape(-1)[-1] = np.nan
        save_file(weights, path)
        with refusal(CheckpointError, "weights are NaN or infinite"):
            converters.convert(source, tmp_path / "out", tower="vision", vision_quant="a16w8", calibration=[ranges])
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def seeing(folder: Path, llama4_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as a bundle: text in q8_0, vision in integers."""
    bundle = tmp_path_factory.mktemp("seeing") / "digits"
    converters.convert(llama4_digits, bundle, quant="q8_0", vision_quant="a16w8", calibration=[folder / "ranges.json"])
    return bundle


@pytest.mark.parametrize("device", ["npu:qnn", "qnn", "openvino", "openvino:cpu"])
def test_images_are_encoded_on_the_device_that_was_asked_for(device: str, seeing: Path) -> None:
    needed = "qnn" if "qnn" in device else "openvino"
    if find_spec(PACKAGES[needed]) is None:
        pytest.skip(f"{PACKAGES[needed]} is not installed")
    with edge_llama.open(seeing, vision_device=device) as model:
        assert model.vision_placement is not None
        assert str(model.vision_placement) == f"{'npu:qnn' if needed == 'qnn' else 'openvino:cpu'} (as asked)"
        assert model.placement.device == "cpu"
        answer = model.chat(temperature=0).send("Which digits are these?", images=[DIGITS]).result()
    assert answer.text == "left 5, right 4"
    assert answer.timings.tiles


@needs("qnn")
def test_so_does_the_command_line_in_every_verb(seeing: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "EDGE_LLAMA_HISTORY": str(tmp_path / "history")}

    def edge_llama_(*arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("edge-llama")), *map(str, arguments)]
        return subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)

    asked = ("Which digits are these?", "--image", DIGITS, "--temperature", "0", "-v")
    done = edge_llama_("run", seeing, *asked, "--vision-device", "npu:qnn")
    assert done.stdout == "left 5, right 4\n", done.stderr
    assert "vision: npu:qnn (as asked)" in done.stderr
    chat = ("chat", seeing, "--temperature", "0", "-v")
    done = edge_llama_(*chat, "--vision-device", "qnn", text="Which digits are these?\n")
    assert "vision: npu:qnn (as asked)" in done.stderr
    done = edge_llama_(*chat, "--continue", text="Which is on the left?\n")
    assert "vision: npu:qnn (as asked)" in done.stderr  # as it was saved
    assert "read again" not in done.stderr


def test_a_device_that_cannot_be_is_refused(seeing: Path, packaged: Path) -> None:
    with pytest.raises(OptionError, match=r"device toaster: unknown; known: auto, gpu, npu, cpu"):
        edge_llama.open(seeing, vision_device="toaster")
    with pytest.raises(OptionError, match=r"vision_device is 'npu:qnn', but the model has no vision tower"):
        edge_llama.open(packaged, vision_device="npu:qnn")

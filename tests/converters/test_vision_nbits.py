"""Llama 4's vision tower with weights of 4 bits (MatMulNBits) and 8 (MatMulInteger), beside floats of these weights."""

from pathlib import Path
from typing import Any

import llama4
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import converters
from edge_llama.backends.towers import read_vision
from edge_llama.files.onnx_vision import VISION_INPUT

FLOAT_ACTIVATIONS = 1e-3
"""Largest difference at accuracy_level 0, as a share of the largest value; none was measured."""
INT8_ACTIVATIONS = 0.08
"""At accuracy_level 4, as we write it, of random weights, which exaggerate; 1.3 to 2.8 % was measured."""
WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "projector_input_dim": 96,
    "projector_output_dim": 96,
    "vision_output_dim": 96,
}
_MICROSOFT = "com.microsoft"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama4.scout(tmp_path_factory.mktemp("wide") / "source", vision=WIDE, num_hidden_layers=1)


def converted(source: Path, folder: Path, quant: str) -> onnx.ModelProto:
    converters.convert(source, folder / quant, tower="vision", vision_quant=quant)
    path = folder / quant / "vision/model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)


def run(model: onnx.ModelProto, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (features,) = session.run(["image_features"], {VISION_INPUT: pixels})
    return features


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "MatMulNBits"]


def arrays(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def dequantized(numbers: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs, inputs), by what ONNX Runtime's documentation says of the operator: (outputs, blocks, bytes)."""
    numbers = np.stack([numbers & 15, numbers >> 4], axis=-1).reshape(*numbers.shape[:2], -1)
    values = (numbers.astype(np.float32) - 8) * scales.reshape(*numbers.shape[:2], 1)
    return values.reshape(len(numbers), -1)


def test_it_computes_the_float_graph_of_its_weights(source: Path, rng: np.random.Generator, tmp_path: Path) -> None:
    model, exact = converted(source, tmp_path, "int4"), converted(source, tmp_path, "f32")
    stored, weights = arrays(model), {tensor.name: tensor for tensor in exact.graph.initializer}
    assert len(products(model)) == 3 * 6 + 3
    for node in products(model):
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["bits"], attributes["block_size"], attributes["accuracy_level"]) == (4, 32, 4)
        weight = weights[node.input[1]]
        values = dequantized(stored[node.input[1]], stored[node.input[2]]).T
        before = onnx.numpy_helper.to_array(weight)
        step = np.repeat(np.abs(stored[node.input[2]]).reshape(len(values.T), -1), 32, axis=1).T
        assert (np.abs(values - before) <= 1.01 * step).all(), node.name
        weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
    round_patches(exact)
    pixels = rng.uniform(-1, 1, (3, 3, 56, 56)).astype(np.float32)
    expected = run(exact, pixels)
    largest = np.abs(expected).max()
    assert np.abs(run(model, pixels) - expected).max() <= INT8_ACTIVATIONS * largest
    for node in products(model):
        next(attribute for attribute in node.attribute if attribute.name == "accuracy_level").i = 0
    assert np.abs(run(model, pixels) - expected).max() <= FLOAT_ACTIVATIONS * largest


def round_patches(exact: onnx.ModelProto) -> None:
    """They are convolved: in f16."""
    patches = next(tensor for tensor in exact.graph.initializer if tensor.name == "vision.patch_embedding.weight")
    half = onnx.numpy_helper.to_array(patches).astype(np.float16).astype(np.float32)
    patches.CopyFrom(onnx.numpy_helper.from_array(half, patches.name))


def test_in_8_bits_it_is_near_the_float_graph_of_its_weights(
    source: Path, rng: np.random.Generator, tmp_path: Path
) -> None:
    """Values are rounded by one range for all of a run; weights by one for each output."""
    model, exact = converted(source, tmp_path, "int8"), converted(source, tmp_path, "f32")
    stored, weights = arrays(model), {tensor.name: tensor for tensor in exact.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(nodes) == 3 * 6 + 3
    for node in nodes:
        name = node.input[1]
        scales = stored[name.replace(".weight", ".scales")]
        values = stored[name].astype(np.float32) * scales
        assert (np.abs(values - onnx.numpy_helper.to_array(weights[name])) <= 0.501 * scales).all(), name
        weights[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    round_patches(exact)
    pixels = rng.uniform(-1, 1, (3, 3, 56, 56)).astype(np.float32)
    expected, found = run(exact, pixels), run(model, pixels)
    share = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{share:.1%} of the largest value")
    assert share <= INT8_ACTIVATIONS
    assert {opset.domain for opset in model.opset_import} == {""}


def test_its_shapes_are_known_and_its_names_read_well(source: Path, tmp_path: Path) -> None:
    model = onnx.shape_inference.infer_shapes(converted(source, tmp_path, "int4"), strict_mode=True, data_prop=True)
    assert {opset.domain for opset in model.opset_import} == {"", _MICROSOFT}
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.output)
    }
    assert shapes["vision.layers.2.attention.q"] == ["tiles", 17, 64]
    assert shapes["image_features"] == ["tiles", 4, 64]
    assert {node.name for node in products(model)} > {"vision.layers.0.mlp.up.product", "adapter.fc1", "projector"}
    assert read_vision(tmp_path / "int4").format == "int4"


def test_portable_it_is_standard_and_computes_the_same(source: Path, rng: np.random.Generator, tmp_path: Path) -> None:
    """Without activations in 8 bits, to which ONNX Runtime's CPU would fuse it."""
    options = {"to": "onnx", "quant": "f32", "vision_quant": "int4"}
    converters.convert(source, tmp_path / "portable", **options, portable=True)
    path = tmp_path / "portable/vision/model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert [opset.domain for opset in model.opset_import] == [""]
    mine = converted(source, tmp_path, "int4")
    for node in products(mine):
        next(attribute for attribute in node.attribute if attribute.name == "accuracy_level").i = 0
    pixels = rng.uniform(-1, 1, (2, 3, 56, 56)).astype(np.float32)
    expected, found = run(mine, pixels), run(model, pixels)
    assert np.abs(found - expected).max() <= FLOAT_ACTIVATIONS * np.abs(expected).max()


def test_rows_that_are_no_whole_blocks_stay_f16(llama4_scout: Path, rng: np.random.Generator, tmp_path: Path) -> None:
    """A width of 48 with blocks of 32: only the second of the MLP's matrices, and the adapter's, are whole blocks."""
    model = converted(llama4_scout, tmp_path, "int4")
    names = {node.name for node in products(model)}
    assert names == {*(f"vision.layers.{layer}.mlp.down.product" for layer in range(3)), "adapter.fc1"}
    exact = run(converted(llama4_scout, tmp_path, "f32"), pixels := rng.uniform(-1, 1, (2, 3, 56, 56)).astype("f4"))
    assert np.abs(run(model, pixels) - exact).max() <= 0.3 * np.abs(exact).max()  # 0.14: 4 bits of random weights

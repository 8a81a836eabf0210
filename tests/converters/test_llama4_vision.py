"""Llama 4's vision tower as ONNX and as mmproj: transformers' embeddings, llama.cpp's names and bytes.

That an mmproj equals what llama.cpp's converter writes needs its source: benchmarks/converter_parity.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import llama4
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from llama4_reference import Reference
from llama_models.llama4.vision.encoder import VisionEncoder
from numpy.typing import NDArray
from refusals import refusal
from safetensors.numpy import load_file, save_file

import converters
from edge_llama.backends.towers import read_vision
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import read_header

TOLERANCE = 1e-4
"""Of float32: the sums are added in another order. Embeddings go to about 6."""
HALF_TOLERANCE = 0.05
"""Of weights rounded to f16."""
SHAPES: dict[str, dict[str, Any]] = {
    "a tile of 4 x 4 patches": {},
    "a tile of 2 x 2 patches, one head": {"image_size": 28, "num_attention_heads": 1},
    "a tile of 6 x 6 patches, nine shuffled into one, heads of four": {
        "image_size": 36,
        "patch_size": 6,
        "pixel_shuffle_ratio": 1 / 3,
        "intermediate_size": 432,
        "num_attention_heads": 12,
        "projector_input_dim": 40,
        "projector_output_dim": 40,
        "vision_output_dim": 40,
    },
    "a tile of 8 x 8 patches, other rotation": {
        "image_size": 64,
        "patch_size": 8,
        "rope_theta": 500.0,
        "num_hidden_layers": 5,
    },
}


def encoded(tower: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """By ONNX Runtime."""
    session = onnxruntime.InferenceSession(tower / "vision/model.onnx")
    (features,) = session.run(["image_features"], {"pixel_values": pixels})
    return features


def noise(rng: np.random.Generator, tiles: int, side: int) -> NDArray[np.float32]:
    return rng.uniform(-1, 1, (tiles, 3, side, side)).astype(np.float32)


def transposed(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The embeddings of each tile with columns before rows, as llama.cpp gives them."""
    tiles, tokens, width = features.shape
    side = round(tokens**0.5)
    return features.reshape(tiles, side, side, width).swapaxes(1, 2).reshape(features.shape)


def converted(source: Path, output: Path, quant: str = "f32") -> Path:
    converters.convert(source, output, tower="vision", to="onnx", vision_quant=quant)
    return output


@pytest.fixture(scope="module")
def tower(llama4_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(llama4_scout, tmp_path_factory.mktemp("onnx") / "f32")


@pytest.mark.parametrize("shape", SHAPES)
def test_embeddings_equal_transformers(shape: str, rng: np.random.Generator, tmp_path: Path) -> None:
    """And those of a transposed grid of tokens don't."""
    source = llama4.scout(tmp_path / "source", seed=int(rng.integers(1000)), vision=SHAPES[shape], num_hidden_layers=1)
    tower, half = converted(source, tmp_path / "f32"), converted(source, tmp_path / "f16", "f16")
    reference = Reference(source)
    for tiles in (1, 17):
        pixels = noise(rng, tiles, SHAPES[shape].get("image_size", 56))
        expected = reference.image_features(pixels)
        features = encoded(tower, pixels)
        assert features.shape == expected.shape
        assert np.abs(features - expected).max() < TOLERANCE
        assert TOLERANCE < np.abs(encoded(half, pixels) - expected).max() < HALF_TOLERANCE
        if features.shape[1] > 1:
            assert np.abs(transposed(features) - expected).max() > 10 * HALF_TOLERANCE


def test_any_number_of_tiles_gives_what_each_gives_alone(tower: Path, rng: np.random.Generator) -> None:
    pixels = noise(rng, 17, 56)
    together = encoded(tower, pixels)
    for tiles in range(1, 17):
        assert np.abs(encoded(tower, pixels[:tiles]) - together[:tiles]).max() < TOLERANCE
    assert encoded(tower, pixels[:0]).shape == (0, 4, 64)


@pytest.mark.parametrize("name", ["positional_embedding_vlm", "model.layers.1.post_attention_layernorm.weight"])
def test_every_part_counts(
    name: str, llama4_scout: Path, tower: Path, rng: np.random.Generator, tmp_path: Path
) -> None:
    """Rows, or numbers, of one tensor the other way round: the test above would see it."""
    source = changed(llama4_scout, tmp_path / "source", f"vision_model.{name}", lambda tensor: tensor[::-1].copy())
    pixels = noise(rng, 1, 56)
    found = encoded(converted(source, tmp_path / "out"), pixels)
    assert np.abs(found - encoded(tower, pixels)).max() > 100 * TOLERANCE
    assert np.abs(found - Reference(source).image_features(pixels)).max() < TOLERANCE


def changed(source: Path, copy: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any] | None]) -> Path:
    """A copy of ``source`` with another tensor ``name``, or without it."""
    shutil.copytree(source, copy)
    (path,) = copy.glob("*.safetensors")
    weights = load_file(path)
    new = change(weights.pop(name, np.zeros(0)))
    save_file(weights if new is None else weights | {name: new}, path)
    return copy


@pytest.mark.parametrize("quant", ["f32", "f16"])
def test_the_graph_is_standard_complete_and_readable(llama4_scout: Path, tmp_path: Path, quant: str) -> None:
    path = converted(llama4_scout, tmp_path / "out", quant) / "vision/model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    assert sizes(inferred.input[0]) == ["tiles", 3, 56, 56]
    assert sizes(inferred.output[0]) == ["tiles", 4, 64]
    known = {value.name: sizes(value) for value in (*inferred.value_info, *inferred.output)}
    outputs = [name for node in inferred.node for name in node.output]
    assert all(isinstance(size, int) for name in outputs for size in known[name][1:])
    assert {"vision.layers.2.attention.q", "vision.layers.0.mlp.up", "adapter.fc2", "vision.shuffled"} < set(outputs)


def sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_weights_lie_beside_the_graph_each_aligned(dtype: str, tmp_path: Path) -> None:
    """Matrices turned over but for the patches', in the format asked for; what is added stays float32."""
    source = llama4.scout(tmp_path / "source", dtype=dtype, num_hidden_layers=1)
    folder = converted(source, tmp_path / "out", "f16") / "vision"
    stored = onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
    outside = {tensor.name: tensor for tensor in stored if tensor.external_data}
    assert all(
        int(entry.value) % 64 == 0 for t in outside.values() for entry in t.external_data if entry.key == "offset"
    )
    assert (folder / "model.onnx").stat().st_size < 100_000
    whole = onnx.load(folder / "model.onnx").graph.initializer
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in whole}
    reference = Reference(source).model.state_dict()
    for name, theirs, is_matrix in (
        ("vision.layers.1.mlp.down.weight", "vision_model.model.layers.1.mlp.fc2.weight", True),
        ("vision.layers.1.mlp.down.bias", "vision_model.model.layers.1.mlp.fc2.bias", False),
        ("vision.patch_embedding.weight", "vision_model.patch_embedding.linear.weight", True),
        ("vision.positions.embedding", "vision_model.positional_embedding_vlm", False),
        ("projector.weight", "multi_modal_projector.linear_1.weight", True),
    ):
        expected = reference[f"model.{theirs}" if f"model.{theirs}" in reference else theirs].numpy()
        if is_matrix:
            expected = (expected.reshape(-1, 3, 14, 14) if "patch" in name else expected.T).astype(np.float16)
        assert found[name].dtype == expected.dtype, name
        assert np.array_equal(found[name], expected), name


@pytest.mark.parametrize(("dtype", "quant"), [("BF16", "f32"), ("F32", "f16"), ("F32", "bf16"), ("BF16", "q8_0")])
def test_an_mmproj_has_the_names_shapes_and_bytes_of_gguf_py(dtype: str, quant: str, tmp_path: Path) -> None:
    """But for the second norm, which llama.cpp's graph reads under another name than its table gives."""
    wide = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    source = llama4.scout(tmp_path / "source", dtype=dtype, vision=wide, num_hidden_layers=1)
    converters.convert(source, tmp_path / "mmproj.gguf", tower="vision", vision_quant=quant)
    assert read_vision(tmp_path / "mmproj.gguf").format == quant
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "mmproj.gguf").tensors}
    named = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 3)
    weights = {name: tensor.float().numpy() for name, tensor in Reference(source).model.state_dict().items()}
    count = 0
    for name, weight in weights.items():
        short = name.removeprefix("model.").replace("embedding_vlm", "embedding_vlm.weight")
        if not short.startswith(("vision_model.", "multi_modal_projector.")):
            continue
        count += 1
        theirs = "mm.model.fc.weight" if "linear_1" in short else named.get_name(short, (".weight", ".bias"))
        tensor = found[str(theirs).replace("attn_post_norm", "ln2")]
        kind = stored_as(quant, short, weight.shape)
        assert tensor.tensor_type == kind, name
        assert tensor.data.tobytes() == gguf.quantize(weight, kind).tobytes(), name
        assert list(tensor.shape) == list(reversed(weight.shape)), name
    assert count == len(found) == 58


def stored_as(quant: str, name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    """By the rules of llama.cpp's converter."""
    kinds = gguf.GGMLQuantizationType
    if len(shape) == 1 or "positional" in name or ("patch" in name and quant != "f16"):
        return kinds.F32
    return kinds.F16 if quant == "q8_0" and shape[-1] % 32 else kinds[quant.upper()]


def test_an_mmproj_says_how_the_tower_is_built(tmp_path: Path) -> None:
    vision = SHAPES["a tile of 6 x 6 patches, nine shuffled into one, heads of four"]
    source = llama4.scout(tmp_path / "source", vision=vision, num_hidden_layers=1)
    converters.convert(source, tmp_path / "mmproj.gguf", tower="vision")
    header = read_header(tmp_path / "mmproj.gguf")
    assert header.get("clip.vision.projector.scale_factor", int, 0) == 3
    assert header.get("clip.vision.feed_forward_length", int, 0) == 432
    assert header.get("clip.projector_type", str, "") == "llama4"


def test_another_rotation_is_for_onnx_alone(tmp_path: Path) -> None:
    vision = {"rope_theta": 500.0}
    source = llama4.scout(tmp_path / "source", vision=vision, num_hidden_layers=1)
    with refusal(CheckpointError, "rope_theta is 500, llama.cpp computes with 10,?000; write .* as ONNX", source):
        converters.convert(source, tmp_path / "mmproj.gguf", tower="vision")


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metas_older_positions_are_resampled_as_its_code_does(
    dtype: torch.dtype, llama4_scout: Path, rng: np.random.Generator, tmp_path: Path
) -> None:
    """In a folder of two shards, of which each has them whole. Tolerance 1e-6 of numbers up to about 4."""
    old = torch.from_numpy(rng.standard_normal((17, 48))).to(dtype)
    folder = llama4.meta(tmp_path / "meta", llama4_scout, fused=False, shards=2)
    prefix = "vision_embeddings.vision_encoder.positional_embedding"
    for path in folder.glob("*.pth"):
        shard = torch.load(path)
        del shard[f"{prefix}_vlm"]
        torch.save(shard | {prefix: old}, path)
    found = converters.plan(folder, tmp_path / "out").checkpoint.tensors["vision_model.positional_embedding_vlm"]
    expected = {"positional_embedding": old}
    metas_encoder(side=56, width=48).load_hook(expected, "", {})
    rows = found.read(0, 17).view(np.float32)
    assert np.abs(rows - expected["positional_embedding_vlm"].numpy()).max() < 1e-6
    assert np.array_equal(np.concatenate([found.read(0, 5), found.read(5, 17)]).view(np.float32), rows)
    torch.save(shard | {prefix: old[1:].clone()}, path)
    with refusal(CheckpointError, "positional_embedding_vlm' has ", folder):
        converters.plan(folder, tmp_path / "out")


def metas_encoder(side: int, width: int) -> Any:
    """Its vision encoder without layers, as one process alone has it."""
    with (
        mock.patch("fairscale.nn.model_parallel.initialize.get_model_parallel_world_size", return_value=1),
        mock.patch("fairscale.nn.model_parallel.layers.get_model_parallel_world_size", return_value=1),
        mock.patch("fairscale.nn.model_parallel.layers.get_model_parallel_rank", return_value=0),
    ):
        return VisionEncoder((side, side), (14, 14), dim=width, layers=0, heads=3, mlp_ratio=4.0)


BAD_FIELDS: dict[str, tuple[Any, str]] = {
    "hidden_act": ("gelu_pytorch_tanh", "hidden_act is 'gelu_pytorch_tanh', expected 'gelu'"),
    "num_attention_heads": (7, "num_attention_heads is 7, which makes no heads of four of 48"),
    "image_size": (50, "image_size is 50, no multiple of 28"),
    "patch_size": (0, "patch_size is 0, expected a positive integer"),
    "intermediate_size": (96, "intermediate_size is 96, expected 192"),
    "pixel_shuffle_ratio": (0.3, "pixel_shuffle_ratio is 0.3, expected 1 / a whole number"),
    "vision_output_dim": (64, "vision_output_dim is 64, expected 80"),
    "num_hidden_layers": (4, "'vision_model.model.layers.3.input_layernorm.weight' is missing"),
    "hidden_size": ("48", "hidden_size is '48', expected a positive integer"),
    "vision_feature_layer": (-2, "vision_feature_layer is -2, expected -1"),
}


@pytest.mark.parametrize("key", BAD_FIELDS)
@pytest.mark.parametrize("to", ["onnx", "gguf"])
def test_fields_that_do_not_fit_are_refused(key: str, to: str, llama4_scout: Path, tmp_path: Path) -> None:
    value, expected = BAD_FIELDS[key]
    source = tmp_path / "source"
    shutil.copytree(llama4_scout, source)
    config = json.loads((source / "config.json").read_text())
    config["vision_config"][key] = value
    (source / "config.json").write_text(json.dumps(config))
    with refusal(CheckpointError, expected, source):
        converters.convert(source, tmp_path / "out", tower="vision", to=to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


BAD_TENSORS: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[Any] | None], str]] = {
    "missing": ("vision_model.class_embedding", lambda _: None, "'vision_model.class_embedding' is missing"),
    "of another shape": ("vision_model.positional_embedding_vlm", lambda tensor: tensor[1:].copy(), r"\[16, 48\]"),
    "one too many": (
        "vision_model.extra.weight",
        lambda _: np.ones(3, np.float32),
        "'vision_model.extra.weight' is not",
    ),
    "a bias of the projector": (
        "multi_modal_projector.linear_1.bias",
        lambda _: np.ones(64, np.float32),
        "'multi_modal_projector.linear_1.bias' is not",
    ),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
@pytest.mark.parametrize("to", ["onnx", "gguf"])
def test_tensors_that_do_not_fit_are_refused(what: str, to: str, llama4_scout: Path, tmp_path: Path) -> None:
    name, change, expected = BAD_TENSORS[what]
    source = changed(llama4_scout, tmp_path / "source", name, change)
    with refusal(CheckpointError, expected, source):
        converters.convert(source, tmp_path / "out", tower="vision", to=to)

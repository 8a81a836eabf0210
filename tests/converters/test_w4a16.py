"""W4A16 for serving engines: compressed-tensors and transformers read the very weights that the numbers say."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import families
import llama4
import meta_folders
import numpy as np
import pytest
import torch
from adapters import LINEAR, trained
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from packed_folders import config_of, dequantized, exact, layers_of, tensors_of, write_plain
from refusals import refusal
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.quantizers.base import SequentialLlama4TextExperts

import converters
from converters.sources import open_checkpoint
from converters.targets.safetensors import SAFETENSORS
from edge_llama import CheckpointError, OptionError
from edge_llama.files import checksums
from edge_llama.files.formats import FORMATS
from quant.nbits import ArrayFormat

IDS = torch.tensor([[3, 17, 40, 5, 99, 7, 250, 11, 64, 2, 31, 8]])
SCOUT = {"hidden_size": 64, "intermediate_size": 96}
SOURCES: dict[str, Callable[[Path], Path]] = {
    "llama 2": checkpoints.llama2,
    "llama 3": checkpoints.llama3,
    "llama 4, Scout": llama4.scout,
    "llama 4, Maverick": lambda folder: llama4.maverick(folder, num_local_experts=4, use_qk_norm=True),
    "llama 4, text": llama4.text_only,
    **families.FAMILIES,
}
KEPT = {"llama 4, Scout": 4, "llama 4, Maverick": 4, "llama 4, text": 4}
"""Layers of attention that stay as they are, in each layer."""


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, SOURCES[request.param](tmp_path_factory.mktemp("source") / "checkpoint")


def packed(source: Path, output: Path, **options: Any) -> Path:
    converters.convert(source, output, **{"to": "safetensors", "quant": "w4a16", **options})
    return output


@pytest.fixture(scope="module", params=["bf16", "f16"])
def folder(
    source: tuple[str, Path], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    name, checkpoint = source
    if name.startswith("gemma3") and request.param == "f16":
        pytest.skip("its activations overflow float16: it is refused")
    return name, packed(checkpoint, tmp_path_factory.mktemp("packed") / "out", scale_dtype=request.param)


def scheme_of(folder: Path) -> tuple[str, QuantizationScheme]:
    """compressed-tensors' own reading of what config.json says."""
    config = QuantizationConfig.model_validate(config_of(folder)["quantization_config"])
    (scheme,) = config.config_groups.values()
    assert isinstance(scheme, QuantizationScheme)
    return config.format, scheme


def test_compressed_tensors_gives_the_very_weights(folder: tuple[str, Path]) -> None:
    """And packs them as they were packed."""
    form, scheme = scheme_of(folder[1])
    compressor = BaseCompressor.get_value_from_registry(form)
    layers = list(layers_of(tensors_of(folder[1])))
    for name, layer in layers:
        weight = compressor.decompress(dict(layer), scheme)["weight"]
        expected = exact(layer)
        assert weight.dtype == layer["weight_scale"].dtype
        assert torch.equal(weight, expected.to(weight.dtype)), name
        again = compressor.compress({"weight": expected, "weight_scale": layer["weight_scale"].float()}, scheme)
        assert torch.equal(again["weight_packed"], layer["weight_packed"]), name
        assert again["weight_shape"].tolist() == layer["weight_shape"].tolist()
    assert layers


def test_every_linear_layer_is_packed_and_nothing_else(source: tuple[str, Path], tmp_path: Path) -> None:
    name, checkpoint = source
    out = packed(checkpoint, tmp_path / "out")
    layers = {layer for layer, _ in layers_of(tensors_of(out))}
    assert all(layer.rpartition(".")[2] in (*LINEAR, "w1", "w2", "w3") for layer in layers)
    others = {each for each in dequantized(out) if each.removesuffix(".weight") not in layers}
    left = [each for each in others if each.endswith("_proj.weight") and "vision" not in each]
    assert all("self_attn" in each for each in left), left
    text = config_of(checkpoint).get("text_config", config_of(checkpoint))
    assert len(left) == KEPT.get(name, 0) * text["num_hidden_layers"]


def loaded(folder: Path) -> Any:
    """transformers' model in the dtype that config.json says, with nothing missing and nothing left over."""
    is_pair = (folder / "preprocessor_config.json").is_file() or "vision_config" in config_of(folder)
    auto = AutoModelForImageTextToText if is_pair else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not {name for name in info["missing_keys"] if "lm_head" not in name}
    assert not info["mismatched_keys"]
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def with_linears(folder: Path) -> Any:
    """A Llama 4 whose experts are the reference's linear layers, with the weights that the numbers say."""
    config = AutoConfig.from_pretrained(folder)
    dtype, text = config.dtype, config.get_text_config()
    del config.quantization_config
    auto = AutoModelForImageTextToText if "vision_config" in config_of(folder) else AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype)
    for module in list(model.modules()):
        if type(module).__name__ == "Llama4TextMoe":
            module.experts = SequentialLlama4TextExperts(text).to(dtype)
    model.load_state_dict(dequantized(folder))
    return model.eval()


def test_transformers_computes_what_the_plain_weights_give(folder: tuple[str, Path], tmp_path: Path) -> None:
    name, out = folder
    found = logits(loaded(out))
    expected = with_linears(out) if name.startswith("llama 4") else loaded(write_plain(out, tmp_path / "plain"))
    assert torch.equal(found, logits(expected))


def test_rounding_is_nearer_than_the_observers(source: tuple[str, Path], tmp_path: Path) -> None:
    """Beside compressed-tensors' own minimum and maximum of each group, on the same weights."""
    name, checkpoint = source
    out = packed(checkpoint, tmp_path / "out", scale_dtype="bf16")
    _, scheme = scheme_of(out)
    weights = _linears(checkpoint)
    for layer, parts in layers_of(tensors_of(out)):
        weight = weights[layer]
        groups = weight.unflatten(1, (-1, scheme.weights.group_size))
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
        scale = scale.to(torch.bfloat16).float()
        theirs = fake_quantize(weight, scale, zero, scheme.weights)
        ours = exact(parts)
        assert (ours - weight).square().sum() < (theirs - weight).square().sum(), (name, layer)


def _linears(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's linear layers in float32, experts' apart."""
    found: dict[str, torch.Tensor] = {}
    for name, stored in tensors_of(checkpoint).items():
        tensor = stored.float()
        if name.endswith("experts.gate_up_proj"):
            for kind, half in zip(("gate_proj", "up_proj"), tensor.chunk(2, -1), strict=True):
                found |= {f"{name.rpartition('.')[0]}.{at}.{kind}": expert.T for at, expert in enumerate(half)}
        elif name.endswith("experts.down_proj"):
            found |= {f"{name.rpartition('.')[0]}.{at}.down_proj": expert.T for at, expert in enumerate(tensor)}
        else:
            found[name.removesuffix(".weight")] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def test_what_config_json_says(llama3: Path, tmp_path: Path) -> None:
    out = packed(llama3, tmp_path / "out", group=32, scale_dtype="f16")
    config = config_of(out)
    assert config["dtype"] == config["torch_dtype"] == "float16"
    told = config["quantization_config"]
    assert (told["quant_method"], told["format"], told["quantization_status"]) == (
        *("compressed-tensors", "pack-quantized", "compressed"),
    )
    (group,) = told["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["input_activations"] is None
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    assert weights.items() <= group["weights"].items()
    tensors = tensors_of(out)
    layer = "model.layers.0.mlp.down_proj."
    assert (tensors[f"{layer}weight_packed"].dtype, tensors[f"{layer}weight_packed"].shape) == (torch.int32, (128, 44))
    assert (tensors[f"{layer}weight_scale"].dtype, tensors[f"{layer}weight_scale"].shape) == (torch.float16, (128, 11))
    assert tensors[f"{layer}weight_shape"].tolist() == [128, 352]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int32, torch.int64, torch.float16}
    assert checksums.verify(out) == len(list(out.iterdir())) - 1


def test_all_else_goes_along(llama4_scout: Path, tmp_path: Path) -> None:
    out = packed(llama4_scout, tmp_path / "out")
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (out / name).read_bytes() == (llama4_scout / name).read_bytes()
    templates = [AutoTokenizer.from_pretrained(folder).chat_template for folder in (llama4_scout, out)]
    assert templates[0] == templates[1]
    assert {"generation_config.json", "tokenizer.json", checksums.NAME} <= {file.name for file in out.iterdir()}
    source, found = (tensors_of(folder) for folder in (llama4_scout, out))
    assert {name for name in found if name.startswith(("vision_model", "multi_modal"))}
    for name in ("vision_model.model.layers.0.self_attn.q_proj.weight", "language_model.lm_head.weight"):
        assert torch.equal(found[name], source[name].to(torch.bfloat16))


def test_the_group_is_the_largest_that_divides_all_rows(tmp_path: Path) -> None:
    sizes = {"hidden": 256, "heads": 4, "kv_heads": 2, "layers": 1}
    for ffn, group in ((512, 128), (192, 64), (96, 32)):
        source = checkpoints.llama3(tmp_path / f"{ffn}", shape=checkpoints.Shape(ffn=ffn, **sizes))
        assert group_of(converters.plan(source, tmp_path / "out", to="safetensors", quant="w4a16")) == (group, "bf16")


def group_of(plan: converters.Plan) -> tuple[int, str]:
    grids = {entry.format.grid for entry in plan.layout.entries if isinstance(entry.format, ArrayFormat)}
    (grid,) = grids
    return grid.block, grid.scales.name


def test_scales_are_in_the_dtype_of_the_source(tmp_path: Path) -> None:
    for dtype, expected in (("F16", "f16"), ("BF16", "bf16"), ("F32", "bf16")):
        source = checkpoints.llama2(tmp_path / dtype, dtype=dtype)
        assert group_of(converters.plan(source, tmp_path / "out", to="safetensors", quant="w4a16"))[1] == expected


@pytest.fixture(scope="module")
def q4_0(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("q4_0") / "model.gguf"
    converters.convert(llama3, path, quant="q4_0")
    return path


def test_q4_0_goes_over_without_loss(q4_0: Path, tmp_path: Path) -> None:
    """In float32 the packed numbers are what the file says; some of its scales are negative."""
    out, plain = packed(q4_0, tmp_path / "out"), tmp_path / "plain"
    converters.convert(q4_0, plain, to="safetensors", quant="f32")
    plan = converters.plan(q4_0, tmp_path / "again", to="safetensors", quant="w4a16")
    assert group_of(plan) == (32, "f16")
    assert not plan.warnings
    weights, layers = load_file(plain / "model.safetensors"), list(layers_of(tensors_of(out)))
    assert len(layers) == 21
    for name, layer in layers:
        assert torch.equal(exact(layer), weights[f"{name}.weight"]), name
    assert any((layer["weight_scale"] < 0).any() for _, layer in layers)


def test_q4_0_experts_go_over_without_loss(tmp_path: Path) -> None:
    source = llama4.text_only(tmp_path / "source", hidden_size=64, intermediate_size=96)
    converters.convert(source, tmp_path / "q4_0.gguf", quant="q4_0")
    plan = converters.plan(tmp_path / "q4_0.gguf", tmp_path / "out", to="safetensors", quant="w4a16")
    matrices = [entry for entry in plan.layout.entries if isinstance(entry.format, ArrayFormat) and entry.is_first]
    assert any(".experts.3.down_proj." in entry.tensor.name for entry in matrices)
    exactly = sum(entry.is_exact for entry in matrices)
    assert exactly == sum(entry.tensor.format is FORMATS["q4_0"] for entry in matrices) > len(matrices) / 2


@pytest.mark.parametrize("options", [{"group": 64}, {"scale_dtype": "bf16"}])
def test_q4_0_by_another_scheme_is_told(options: dict[str, Any], tmp_path: Path, q4_0: Path) -> None:
    source = checkpoints.llama3(tmp_path / "source", shape=checkpoints.Shape(hidden=128, ffn=256), dtype="F32")
    converters.convert(source, tmp_path / "q4_0.gguf", quant="q4_0")
    plan = converters.plan(tmp_path / "q4_0.gguf", tmp_path / "out", to="safetensors", quant="w4a16", **options)
    (warning,) = plan.warnings
    assert "21 of " in warning
    assert "quantized a second time (21 from q4_0 to int4" in warning


def test_metas_folders_give_what_hugging_faces_give(tmp_path: Path) -> None:
    shape = checkpoints.Shape(kv_heads=4)
    ours = packed(checkpoints.llama2(tmp_path / "hf", shape=shape), tmp_path / "a")
    theirs = packed(meta_folders.llama2(tmp_path / "meta", shape=shape, shards=2), tmp_path / "b")
    same(ours, theirs)


def test_metas_llama_4_too(tmp_path: Path) -> None:
    source = llama4.scout(tmp_path / "hf", hidden_size=64, intermediate_size=96, intermediate_size_mlp=192)
    meta = llama4.meta(tmp_path / "meta", source, fused=True, shards=2)
    same(packed(source, tmp_path / "a"), packed(meta, tmp_path / "b"))


def test_an_adapter_is_merged_first(tmp_path: Path) -> None:
    base = checkpoints.llama3(tmp_path / "base", dtype="F32")
    adapter = trained(base, tmp_path / "adapter", r=4, target_modules=LINEAR)
    converters.convert(base, tmp_path / "merged", to="safetensors", quant="f32", lora=adapter)
    same(packed(base, tmp_path / "a", lora=adapter), packed(tmp_path / "merged", tmp_path / "b"))


def same(one: Path, other: Path) -> None:
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_threads_change_nothing(llama3: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        packed(llama3, tmp_path / f"{threads}", threads=threads)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("1", "3"))
    assert one == other


def test_killed_conversions_resume_to_identical_bytes(llama4_scout: Path, tmp_path: Path, seed: int) -> None:
    options = {"to": "safetensors", "quant": "w4a16", "max_shard_bytes": 100_000}
    script = Path(__file__).with_name("crashes.py")
    command = [sys.executable, script, llama4_scout, tmp_path, 6, seed, "", json.dumps(options)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical"] == found["rounds"]


def test_sizes_are_those_of_the_files(llama3: Path, tmp_path: Path) -> None:
    plan = converters.plan(llama3, tmp_path / "out", to="safetensors", quant="w4a16")
    out = packed(llama3, tmp_path / "out")
    assert plan.layout.output_bytes == sum(file.stat().st_size for file in out.iterdir())


ODD = checkpoints.Shape(hidden=48, ffn=80, layers=1, heads=2, kv_heads=1)
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a group that there is not": ({"group": 48}, "--group 48: unknown", "known: 32, 64, 128"),
    "a group that does not divide": (
        {"group": 64},
        "--group 64: tensor 'model.layers.0.mlp.down_proj.weight' has 352 columns, no multiple of 64",
        "--group 32",
    ),
    "a dtype that there is not": ({"scale_dtype": "f32"}, "--scale-dtype f32: unknown", "known: bf16, f16"),
    "a group of another format": (
        {"quant": "bf16", "group": 64},
        "--group: is for --quant w4a16 alone",
        "leave it out",
    ),
    "a dtype of another format": (
        *({"quant": "f16", "scale_dtype": "f16"}, "--scale-dtype: is for --quant w4a16 alone", "leave it out"),
    ),
    "a role's format": ({"tensor_types": {"attn_v": "q8_0"}}, "--tensor-type attn_v=q8_0: not for", "leave it out"),
    "ONNX's block": ({"block": 64}, "--block: is for ONNX alone", "leave it out"),
    "a group for ONNX": ({"to": "onnx", "quant": "int4", "group": 64}, "--group: is for --to safetensors alone", "add"),
    "the format for ONNX": ({"to": "onnx"}, "--quant w4a16: not for onnx", "known: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(name: str, llama3: Path, tmp_path: Path) -> None:
    options, expected, remedy = REFUSED[name]
    with refusal(OptionError, expected, remedy):
        packed(llama3, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_options_are_refused_for_gguf(llama3: Path, tmp_path: Path) -> None:
    for options in ({"group": 64}, {"scale_dtype": "f16"}):
        with refusal(OptionError, "is for --to safetensors alone", "add --to safetensors"):
            converters.plan(llama3, tmp_path / "x.gguf", **options)


def test_rows_that_no_group_divides_are_refused_and_not_offered(tmp_path: Path) -> None:
    source = checkpoints.llama2(tmp_path / "source", shape=ODD)
    with refusal(OptionError, "--quant w4a16: tensor .* columns, no multiple of 32", "--quant bf16"):
        converters.plan(source, tmp_path / "out", to="safetensors", quant="w4a16")
    assert list(SAFETENSORS.sizes(open_checkpoint(source))) == ["f32", "f16", "bf16"]


def test_float16_is_refused_for_what_overflows_it(tmp_path: Path) -> None:
    source = families.gemma3(tmp_path / "source")
    with refusal(OptionError, "the activations of Gemma 3 overflow float16", "--scale-dtype bf16"):
        converters.plan(source, tmp_path / "out", to="safetensors", quant="w4a16", scale_dtype="f16")
    plan = converters.plan(source, tmp_path / "out", to="safetensors", quant="w4a16")
    assert group_of(plan)[1] == "bf16"


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    source = checkpoints.llama2(tmp_path / "source")
    spoil(source / "model.safetensors", "model.layers.1.mlp.up_proj.weight", np.float32(np.nan))
    with refusal(CheckpointError, r"'model\.layers\.1\.mlp\.up_proj\.weight_packed': 1 weights are NaN"):
        packed(source, tmp_path / "out")
    spoil(source / "model.safetensors", "model.layers.1.mlp.up_proj.weight", np.float32(1e6))
    with refusal(CheckpointError, "a weight of 1e\\+06 is too large"):
        packed(source, tmp_path / "out", scale_dtype="f16")
    packed(source, tmp_path / "out", scale_dtype="bf16")


def spoil(path: Path, name: str, value: np.float32) -> None:
    """Put ``value`` in the place of a tensor's first number, float32."""
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin = 8 + length + json.loads(raw[8 : 8 + length])[name]["data_offsets"][0]
    raw[begin : begin + 4] = value.tobytes()
    path.write_bytes(raw)


def test_such_a_folder_is_no_source(llama3: Path, tmp_path: Path) -> None:
    out = packed(llama3, tmp_path / "out")
    with refusal(CheckpointError, "quantized by compressed-tensors, as 'pack-quantized'", out):
        converters.plan(out, tmp_path / "again.gguf")

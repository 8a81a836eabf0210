"""Meta's own quantized releases: what is written is what their published code computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import meta_folders
import numpy as np
import pytest
import torch
from refusals import refusal
from scipy.linalg import hadamard
from transformers import LlamaForCausalLM

import converters
from converters.sources import open_checkpoint
from edge_llama import CheckpointError

SPINQUANT = {"scheme": "int4_weight_int8_dynamic_activation", "group_size": 32, "spinquant": True}
QLORA, LORA = {"group_size": 32}, {"rank": 4, "scale": 2.0}
W1, W2 = "layers.0.feed_forward.w1", "layers.2.feed_forward.w2"


def opened(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "consolidated.00.pth")


def formula(tensors: dict[str, torch.Tensor], stem: str) -> np.ndarray:
    """A matrix as llama-models and torchao dequantize it, in numpy."""
    numbers, scales = tensors[f"{stem}.weight"].numpy(), tensors[f"{stem}.scales"].numpy()
    grouped = numbers.reshape(len(numbers), scales.reshape(len(numbers), -1).shape[1], -1).astype(np.float32)
    return (grouped * scales.reshape(len(numbers), -1, 1)).reshape(numbers.shape)


@pytest.fixture(scope="module")
def spinquant(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The release, and the folder for transformers that it becomes."""
    source = meta_folders.llama3_int4(tmp_path_factory.mktemp("spin") / "Llama-3.2-1B-Instruct-SpinQuant", SPINQUANT)
    converters.convert(source, source.with_name("folder"), to="safetensors", quant="f32")
    return source, source.with_name("folder")


def test_integers_are_multiplied_by_their_groups_scales(spinquant: tuple[Path, Path]) -> None:
    source, folder = spinquant
    tensors, model = stored(source), opened(folder).model
    np.testing.assert_array_equal(model.layers[0].mlp.gate_proj.weight.detach().numpy(), formula(tensors, W1))
    np.testing.assert_array_equal(model.embed_tokens.weight.detach().numpy(), formula(tensors, "tok_embeddings"))
    rotated = formula(tensors, W2) @ hadamard(512).astype(np.float32) / np.sqrt(np.float32(512))
    np.testing.assert_allclose(model.layers[2].mlp.down_proj.weight.detach().numpy(), rotated, atol=2e-6)


def test_the_hadamard_transform_that_is_computed_online_is_in_w2(spinquant: tuple[Path, Path]) -> None:
    """The logits are those of w2 as it is stored, behind a transform of its inputs as executorch has it."""
    source, folder = spinquant
    model, tensors, ids = opened(folder), stored(source), torch.arange(5, 25)[None]
    with torch.no_grad():
        folded = model(ids).logits
        transform = torch.from_numpy(hadamard(512).astype(np.float32) / np.sqrt(np.float32(512)))
        for number, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight.copy_(torch.from_numpy(formula(tensors, f"layers.{number}.feed_forward.w2")))
            layer.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: (inputs[0] @ transform,))
        online = model(ids).logits
    assert online.std() > 1
    torch.testing.assert_close(folded, online, atol=2e-4, rtol=0)


def test_the_adapter_inside_a_qlora_release_is_merged(tmp_path: Path) -> None:
    source = meta_folders.llama3_int4(tmp_path / "Llama-3.2-1B-Instruct-QLORA", QLORA, LORA)
    converters.convert(source, tmp_path / "folder", to="safetensors", quant="f32")
    tensors, model = stored(source), opened(tmp_path / "folder").model
    for stem, matrix in ((W1, model.layers[0].mlp.gate_proj), (W2, model.layers[2].mlp.down_proj)):
        a, b = (tensors[f"{stem}.adaptor.{side}.weight"].float().numpy() for side in "AB")
        merged = formula(tensors, stem) + 2.0 * b @ a
        np.testing.assert_allclose(matrix.weight.detach().numpy(), merged, atol=1e-6)


def test_what_was_done_is_told_and_the_rotary_factor_is_llama_3_2s(spinquant: tuple[Path, Path]) -> None:
    source, _ = spinquant
    checkpoint = open_checkpoint(source)
    assert "SpinQuant release, dequantized, its Hadamard transform folded" in checkpoint.notes["quantization"]
    assert checkpoint.config["rope_scaling"]["factor"] == 32.0
    assert "Llama 3.2" in checkpoint.notes["rotary scaling"]
    assert any("rounded to 4 bits already" in warning for warning in checkpoint.warnings)


def test_a_release_that_does_not_say_so_is_spinquant_by_its_name(spinquant: tuple[Path, Path], tmp_path: Path) -> None:
    """Meta's own list of models gives these releases a ``group_size`` and nothing else."""
    for name in ("Llama-3.2-1B-Instruct-SpinQuant_INT4_EO8/original", "Llama3.2-1B-Instruct:int4-spinquant-eo8"):
        folder = meta_folders.llama3_int4(tmp_path / name, {"group_size": 32})
        checkpoint = open_checkpoint(folder)
        assert "SpinQuant by the folder's name" in checkpoint.notes["quantization"]
        same = open_checkpoint(spinquant[0]).tensors["model.layers.1.mlp.down_proj.weight"].read(0, 3)
        np.testing.assert_array_equal(checkpoint.tensors["model.layers.1.mlp.down_proj.weight"].read(0, 3), same)


def test_zeros_and_scales_as_vectors_are_read_and_groups_are_the_tensors(tmp_path: Path) -> None:
    """A group's size is what the scales say; params.json saying otherwise is told."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["output.scales"] = tensors["output.scales"][:, 0].clone()
        tensors[f"{W1}.zeros"] = torch.full_like(tensors[f"{W1}.scales"], 2)

    source = meta_folders.llama3_int4(tmp_path / "meta", {"group_size": 256, "spinquant": False}, group=64, edit=edit)
    checkpoint = open_checkpoint(source)
    assert checkpoint.notes["group size"] == "64 weights by the scales themselves, params.json says 256"
    tensor, tensors = checkpoint.tensors["model.layers.0.mlp.gate_proj.weight"], stored(source)
    scales = np.repeat(tensors[f"{W1}.scales"].numpy(), 64, axis=1)
    expected = (tensors[f"{W1}.weight"].numpy() - np.float32(2)) * scales
    np.testing.assert_array_equal(tensor.read(0, tensor.rows).view(np.float32), expected)
    head = checkpoint.tensors["lm_head.weight"]
    np.testing.assert_array_equal(head.read(3, 9).view(np.float32), formula(tensors, "output")[3:9])


def removed(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: change(tensors[name]).clone()})


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any] | None, Callable[[dict[str, torch.Tensor]], object], str]] = {
    "another scheme": ({**SPINQUANT, "scheme": "fp8"}, None, lambda _: None, "quantization_args.scheme is 'fp8'"),
    "a scheme of a wrong type": ({**SPINQUANT, "scheme": 4}, None, lambda _: None, "scheme is 4, expected a text"),
    "no group size": ({"spinquant": True}, None, lambda _: None, "quantization_args.group_size is missing"),
    "spinquant of a wrong type": ({**SPINQUANT, "spinquant": "yes"}, None, lambda _: None, "spinquant is 'yes'"),
    "spinquant not said": ({"group_size": 32}, None, lambda _: None, "spinquant is missing: nothing says"),
    "no rank": (QLORA, {"rank": 0, "scale": 1.0}, lambda _: None, "lora_args.rank is 0"),
    "a scale of a wrong type": (QLORA, {"rank": 4, "scale": "2"}, lambda _: None, "lora_args.scale is '2'"),
    "another rank": (QLORA, LORA, put(f"{W1}.adaptor.A.weight", lambda t: t[:2]), r"A.weight' has shape \[2, 128\]"),
    "half an adapter": (QLORA, LORA, removed(f"{W1}.adaptor.B.weight"), f"{W1}.weight' has no adapter"),
    "scales missing": (SPINQUANT, None, removed(f"{W1}.scales"), f"{W1}.weight' is int8 and has no scales"),
    "scales left over": (SPINQUANT, None, removed(f"{W1}.weight"), f"{W1}.scales' belongs to '{W1}.weight'"),
    "scales that fit no group": (SPINQUANT, None, put(f"{W1}.scales", lambda t: t[:, :3]), "fits no groups of"),
    "scales of other rows": (SPINQUANT, None, put(f"{W1}.scales", lambda t: t[:-1]), "fits no groups of"),
    "scales of integers": (SPINQUANT, None, put(f"{W1}.scales", lambda t: t.to(torch.int8)), "expected floats"),
    "NaN in the embedding's scales": (
        SPINQUANT,
        None,
        lambda t: [t[f"{n}.scales"].fill_(np.nan) for n in ("output", "tok_embeddings")],
        "tensor 'tok_embeddings.scales': .* NaN",
    ),
    "a shard of several": (
        SPINQUANT,
        None,
        lambda t: [
            put(f"layers.0.feed_forward.w2.{p}", lambda t: t[:, : t.shape[1] // 2])(t) for p in ("weight", "scales")
        ],
        "quantized releases in several shards",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_such_a_release_is_refused_by_name(case: str, tmp_path: Path) -> None:
    quantization, lora, edit, match = REFUSED[case]
    folder = meta_folders.llama3_int4(tmp_path / "meta", quantization, lora, edit=edit)
    with refusal(CheckpointError, match, folder if "tensor '" not in match else ""):
        converters.convert(folder, tmp_path / "out.gguf", quant="q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]

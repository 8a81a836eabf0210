"""What a checkpoint is and would become, from its headers: ``edge-llama inspect FOLDER``."""

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import families
import meta_folders
import numpy as np
import pytest
import torch
from refusals import refusal
from rich.console import Console

import converters
import edge_llama
from converters.inspection import inspect_checkpoint
from edge_llama import ArtifactError, CheckpointError
from edge_llama.cli.checkpoints import as_json, read, show


def described(folder: Path) -> dict[str, Any]:
    """Through JSON, as programs get it."""
    found: dict[str, Any] = json.loads(json.dumps(as_json(read(folder)), allow_nan=False))
    return found


def shown(folder: Path) -> str:
    console = Console(width=200, highlight=False, markup=False)
    with console.capture() as captured:
        show(read(folder), console)
    return captured.get()


@pytest.fixture
def copied(llama3: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama3, tmp_path / "copied"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_its_sizes_and_kinds_are_those_of_its_files(llama3: Path) -> None:
    data = described(llama3)
    config = {"layers": 3, "width": 128, "KV heads": 2, "tied head": True}
    assert config.items() <= data["config"].items()
    stored = data["dtypes"]["F32"]
    assert stored["weights"] == data["weights"] == data["weight_bytes"] // 4
    assert "byte-level BPE (llama-bpe)" in data["tokenizer"]
    assert list(data["chat_templates"]) == ["default"]
    assert data["refused"] == {}


def test_each_size_is_what_a_conversion_writes(llama3: Path, tmp_path: Path) -> None:
    offers = described(llama3)["output_bytes"]
    assert list(offers) == ["gguf", "onnx", "safetensors"]
    for quant, nbytes in offers["gguf"].items():
        plan = converters.plan(llama3, tmp_path / "text.gguf", quant=quant)
        assert plan.layout.output_bytes == nbytes, quant
    for quant, nbytes in offers["safetensors"].items():
        plan = converters.plan(llama3, tmp_path / "folder", to="safetensors", quant=quant)
        assert plan.layout.output_bytes == nbytes, quant
    for quant, nbytes in offers["onnx"].items():
        layout = converters.plan(llama3, tmp_path / "folder", to="onnx", quant=quant).layout
        assert layout.output_bytes == nbytes + len(layout.small_files["edge-llama.json"]), quant


def test_two_towers_are_described_apart(llama4_scout: Path, tmp_path: Path) -> None:
    data = described(llama4_scout)
    assert {*data["output_bytes"], *data["refused"]} == {
        *("text, gguf", "text, onnx", "vision, onnx", "vision, gguf", "safetensors"),
    }
    plan = converters.plan(llama4_scout, tmp_path / "mmproj.gguf", tower="vision", vision_quant="q8_0")
    assert data["output_bytes"]["vision, gguf"]["q8_0"] == plan.layout.output_bytes
    assert "a16w8" not in data["output_bytes"]["vision, onnx"]


def test_what_no_target_takes_is_described_with_the_reason(copied: Path) -> None:
    edit(copied / "config.json", architectures=["MambaForCausalLM"])
    data = described(copied)
    assert (data["family"], data["output_bytes"], data["problem"]) == ("MambaForCausalLM", {}, None)
    assert "'MambaForCausalLM'" in data["refused"]["gguf"]["message"]
    assert "LlamaForCausalLM" in data["refused"]["gguf"]["remedy"]
    assert "gguf: refused: " in shown(copied)


def test_what_one_target_refuses_the_others_still_take(tmp_path: Path) -> None:
    data = described(families.mixtral(tmp_path / "mixtral"))
    assert (data["family"], list(data["refused"])) == ("MixtralForCausalLM", ["onnx"])
    assert "can't be written as ONNX" in data["refused"]["onnx"]["message"]
    assert {"gguf", "safetensors"} == data["output_bytes"].keys()


def test_a_template_that_is_no_jinja_is_told(copied: Path) -> None:
    edit(copied / "tokenizer_config.json", chat_template="{% if")
    assert "is no valid Jinja" in described(copied)["problem"]["message"]


def test_what_cannot_be_opened_is_described_as_far_as_it_tells(llama3: Path, copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{}")
    data = described(copied)
    assert data["weights"] == described(llama3)["weights"]
    assert data["config"]["width"] == 128
    assert "tokenizer.json" in data["problem"]["message"]
    assert "can't be converted: " in shown(copied)
    edit(copied / "config.json", hidden_size=[[1]], num_hidden_layers=float("nan"))
    assert described(copied)["config"]["width"] == "[[1]]"
    (copied / "model.safetensors").write_bytes(b"")
    assert described(copied)["weights"] == 0


def test_what_the_tokenizers_proof_refuses_is_told(llama3: Path) -> None:
    """By an engine that makes other tokens: it is asked about what goes to GGUF alone."""
    offers = inspect_checkpoint(llama3).offers(lambda _gguf, texts, _turns: ([[0] for _ in texts], None))
    refused = {offer.target: str(offer.refused) for offer in offers if offer.refused}
    assert list(refused) == ["gguf"]
    assert "[0]" in refused["gguf"]


def test_quantized_weights_show_in_the_dtypes(copied: Path) -> None:
    path = copied / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    rows = header["model.embed_tokens.weight"]
    rows["dtype"], rows["shape"] = "F8_E4M3", [rows["shape"][0], 4 * rows["shape"][1]]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    data = described(copied)
    assert data["dtypes"]["F8_E4M3"]["tensors"] == 1
    assert "F8_E4M3" in data["problem"]["message"]


def test_weights_of_torch_are_counted_though_they_are_no_source(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(3, 5, dtype=torch.bfloat16)}, copied / "pytorch_model.bin")
    (copied / "training_args.bin").write_bytes(b"no weights")
    data = described(copied)
    assert data["dtypes"] == {"BF16": {"tensors": 1, "weights": 15, "bytes": 30}}
    assert "no *.safetensors file" in data["problem"]["message"]


def test_a_folder_without_a_config_is_refused_as_a_conversion_does(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    with refusal(CheckpointError, "params.json is missing", tmp_path):
        read(tmp_path)
    (copied / "config.json").unlink()
    with refusal(CheckpointError, "config.json is missing", copied):
        read(copied)


def test_a_meta_folder_is_described_in_the_same_words(tmp_path: Path) -> None:
    folder = meta_folders.llama3(tmp_path / "Llama-3.2-tiny-Instruct", dtype="BF16")
    data = described(folder)
    assert (data["kind"], data["family"], list(data["dtypes"])) == ("checkpoint", "LlamaForCausalLM", ["BF16"])
    assert data["config"]["layers"] == 3
    assert data["weight_bytes"] == 2 * data["weights"]
    (folder / "tokenizer.model").unlink()
    data = described(folder)
    assert (data["config"]["layers"], data["config"]["heads"]) == (3, 4)
    assert "tokenizer.model is missing" in data["problem"]["message"]


def test_an_adapter_says_what_it_is(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights = {"base_model.model.x.lora_A.weight": np.zeros((8, 4), np.float32)}
    checkpoints.write_safetensors(tmp_path / "adapter_model.safetensors", weights, "F32")
    data = described(tmp_path)
    assert (data["kind"], data["config"]["rank"], data["config"]["targets"]) == ("adapter", 8, ["q_proj"])
    assert (data["weight_bytes"], data["config"]["rsLoRA"]) == (128, True)
    assert f"--lora {tmp_path}" in shown(tmp_path)
    with refusal(ArtifactError, "this is an adapter; convert it first", tmp_path):
        edge_llama.open(tmp_path)


def test_a_folder_whose_config_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with refusal(CheckpointError, r"config\.json: expected a JSON object"):
        read(tmp_path)

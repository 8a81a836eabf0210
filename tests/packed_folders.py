"""Folders that compressed-tensors packed, read without it: what their numbers mean, by the formula alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PACKED = "weight_packed"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all files."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def layers_of(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Each quantized layer's name, and what there is of it under the names that its module has."""
    for name in sorted(tensors):
        if name.endswith(PACKED):
            layer = name.removesuffix(f".{PACKED}")
            parts = (PACKED, "weight_scale", "weight_shape")
            yield layer, {part: tensors[f"{layer}.{part}"] for part in parts}


def exact(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a layer's numbers and scales say, in float32: (outputs, inputs)."""
    rows, columns = layer["weight_shape"].tolist()
    octets = layer[PACKED].contiguous().view(torch.uint8)
    numbers = torch.stack((octets & 15, octets >> 4), dim=-1).reshape(rows, columns).float() - 8
    scales = layer["weight_scale"].float()
    return numbers * scales.repeat_interleave(columns // scales.shape[1], dim=1)


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """All weights under a plain checkpoint's names, in the dtype of the scales, in which engines compute them."""
    tensors = tensors_of(folder)
    quantized = {f"{name}.weight": exact(layer).to(layer["weight_scale"].dtype) for name, layer in layers_of(tensors)}
    return quantized | {
        name: tensor for name, tensor in tensors.items() if not name.rpartition(".")[2].startswith("weight_")
    }


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


def write_plain(folder: Path, output: Path, dtype: torch.dtype | None = None) -> Path:
    """The checkpoint of :func:`dequantized`: ``folder`` as it would be if it had never been packed."""
    output.mkdir()
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja", ".model") and "index" not in file.name:
            (output / file.name).write_bytes(file.read_bytes())
    config = {key: value for key, value in config_of(folder).items() if key != "quantization_config"}
    (output / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in dequantized(folder).items()}
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    return output

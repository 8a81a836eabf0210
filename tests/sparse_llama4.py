"""Llama 4 folders of any size that take no room: files with headers, and holes where the weights would be (zeros)."""

import json
from pathlib import Path
from typing import Any

import llama4
import numpy as np

SCOUT: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 48,
    "num_local_experts": 16,
    "vocab_size": 202048,
}
"""What Llama-4-Scout-17B-16E has in place of the small model's sizes."""


def text_tower(folder: Path, **changes: Any) -> Path:
    """A text tower in bf16 with a file for each layer, ``changes`` as in ``llama4.text_only``."""
    folder.mkdir(parents=True)
    settings = llama4.config(llama4.SCOUT | changes, None)
    llama4.write_settings(folder, settings, "BF16")
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, (shape, *_) in llama4.tensors(settings):
        layer = name.split(".")[2] if ".layers." in name else "outside"
        files.setdefault(f"{layer}.safetensors", {})[name] = shape
    for file, shapes in files.items():
        _write_hollow(folder / file, shapes)
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _write_hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)

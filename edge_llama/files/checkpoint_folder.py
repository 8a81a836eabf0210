"""Folders of weights as they are published: what the runtime knows of them is how to tell them apart."""

from pathlib import Path
from typing import Literal

CheckpointKind = Literal["checkpoint", "adapter"]
ADAPTER = "adapter_config.json"
"""What a folder holds in which peft saved an adapter."""


def checkpoint_kind(folder: Path) -> CheckpointKind | None:
    """Whether ``folder`` has the files of a checkpoint (of Hugging Face or Meta), or of an adapter for one."""
    if any((folder / name).is_file() for name in ("config.json", "params.json")):
        return "checkpoint"
    if any(folder.glob("consolidated.*.pth")) or (folder / "model.safetensors.index.json").is_file():
        return "checkpoint"
    return "adapter" if (folder / ADAPTER).is_file() else None

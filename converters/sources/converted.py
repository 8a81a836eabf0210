"""Folders of what was converted already: a bundle, or GGUF files as people keep them. Their text tower is a source."""

from dataclasses import replace
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.sources import gguf
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import gguf_files, is_gguf
from edge_llama.files.gguf_parts import LATER_PART
from edge_llama.files.manifest import NAME, read_manifest
from edge_llama.files.onnx_text import CONFIG

_ORIGINAL = "give the checkpoint that it was converted from"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.index.json")


def open_folder(folder: Path) -> Checkpoint | None:
    """The text tower in ``folder`` if that is a bundle, or has GGUF files and no other weights; else None.

    CheckpointError for what can't be converted again: graphs for ONNX Runtime, a vision tower alone. Also where
    several text towers lie there.
    """
    if (folder / NAME).is_file():
        return _open_bundle(folder)
    if any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return None
    if (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: this is an ONNX model, which can't be converted again", remedy=_ORIGINAL)
    files = [file for file in gguf_files(folder) if not LATER_PART.search(file.name)]
    texts = [file for file in files if "mmproj" not in file.name.lower()]
    if files and len(texts) != 1:
        found = ", ".join(file.name for file in files)
        raise CheckpointError(f"{folder}: expected one text model, found {found}", remedy="name the file itself")
    return gguf.open_file(texts[0]) if texts else None


def _open_bundle(folder: Path) -> Checkpoint:
    """The vision tower is left out, which a warning tells: its weights are in an engine's own form."""
    manifest = read_manifest(folder)
    if manifest.text is None:
        raise CheckpointError(f"{folder}: this bundle holds a vision tower alone", remedy=_ORIGINAL)
    path = folder / manifest.text.file
    if not is_gguf(path):
        raise CheckpointError(
            f"{folder}: this bundle's text tower is for {manifest.text.engine} ({manifest.text.file}), "
            "and only GGUF can be converted again",
            remedy=_ORIGINAL,
        )
    checkpoint = gguf.open_file(path)
    checkpoint = replace(checkpoint, files=(folder / NAME, *checkpoint.files))
    if manifest.vision is None:
        return checkpoint
    left_out = f"the vision tower {folder / manifest.vision.file} is left out: {_ORIGINAL} to have both"
    return replace(checkpoint, warnings=(*checkpoint.warnings, left_out))

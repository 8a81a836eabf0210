"""Where checkpoints come from: one file per kind."""

import json
from collections.abc import Sequence
from pathlib import Path

from converters.checkpoint import INPUT_SUFFIXES, Checkpoint
from converters.sources import gguf, meta, safetensors
from edge_llama.errors import CheckpointError
from edge_llama.files.artifact import BUILT_IN, packaged_path
from edge_llama.files.gguf_parts import parts


def open_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint at ``source``: a folder as Hugging Face or Meta makes it, a GGUF file, or the name ``smollm2``.

    Raises CheckpointError if it is none of these or is not sound; no weight is read yet.
    """
    packaged = packaged_path() if str(source) == BUILT_IN and not source.exists() else None
    source = packaged or source
    if source.is_dir() and not (source / "config.json").is_file() and meta.is_folder(source):
        return meta.open_folder(source)
    if source.is_dir():
        return safetensors.open_folder(source)
    if source.suffix == ".gguf" and source.is_file():
        return gguf.open_file(source)
    if not source.exists():
        raise CheckpointError(f"{source}: no such file or folder")
    raise CheckpointError(
        f"{source}: not a checkpoint",
        remedy="give a folder with config.json and *.safetensors, or with params.json and *.pth, or a .gguf file",
    )


def fingerprint(inputs: Sequence[Path]) -> str:
    """Names, sizes and times of change of the files that a conversion reads at ``inputs``, files or folders."""
    try:
        files = [file for path in inputs for file in (sorted(path.iterdir()) if path.is_dir() else parts(path))]
        stats = [(str(file.resolve()), file.stat()) for file in files if file.suffix in INPUT_SUFFIXES]
    except OSError as error:
        raise CheckpointError(f"{inputs[0]}: cannot be read: {error.strerror}") from error
    return json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

"""Where checkpoints come from: one file per kind."""

import json
from collections.abc import Iterable
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.sources import gguf, meta, safetensors
from edge_llama.errors import CheckpointError
from edge_llama.files.artifact import BUILT_IN, packaged_path
from edge_llama.files.identity import file_state


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


def fingerprint(files: Iterable[Path]) -> str:
    """Names, sizes and times of change of those of ``files`` that are there. CheckpointError if one can't be read."""
    states = []
    for file in dict.fromkeys(files):
        try:
            states.append((str(file.resolve()), *file_state(file)))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    return json.dumps(states)

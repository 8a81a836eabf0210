"""Where checkpoints come from: one file per kind."""

import json
from collections.abc import Iterable
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.sources import converted, gguf, hugging_face, meta
from converters.sources.safetensors import impostor
from edge_llama.errors import UNREADABLE, CheckpointError
from edge_llama.files.artifact import BUILT_IN, packaged_path
from edge_llama.files.checkpoint_folder import ADAPTER
from edge_llama.files.gguf import is_gguf
from edge_llama.files.identity import file_state
from edge_llama.host.regular_files import content_of, why_no_file


def open_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint at ``source``: a folder as Hugging Face or Meta makes it, a GGUF file, or the name ``smollm2``.

    A GGUF file is known by its first bytes too, whatever it is called; of a folder that was converted it is the text
    tower. Raises CheckpointError, of a GGUF file or a bundle ArtifactError, if it is none of these or is not sound; no
    weight is read yet.
    """
    packaged = packaged_path() if str(source) == BUILT_IN and not source.exists() else None
    source = packaged or source
    if source.is_dir():
        checkpoint = _open_folder(source)
        _check_templates(checkpoint.files)
        return checkpoint
    if is_gguf(source):
        return gguf.open_file(source)
    if not source.exists():
        raise CheckpointError(f"{source}: no such file or folder", remedy="give a folder or a .gguf file")
    raise CheckpointError(f"{source}: {why_no_file(source) or 'not a checkpoint'}", remedy=_instead_of(source))


def _open_folder(folder: Path) -> Checkpoint:
    if (checkpoint := converted.open_folder(folder)) is not None:
        return checkpoint
    if (folder / "config.json").is_file():
        return hugging_face.open_folder(folder)
    if meta.is_folder(folder):
        return meta.open_folder(folder)
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder}: this is an adapter, whose base has the weights",
            remedy=f"give the base, and --lora {folder}; or for the adapter alone, --to gguf with a name in .gguf",
        )
    return hugging_face.open_folder(folder)


def _check_templates(files: Iterable[Path]) -> None:
    """CheckpointError for a template that is none: any text would be one to those who read it."""
    for file in (file for file in files if file.suffix == ".jinja" and file.is_file()):
        start = content_of(file)[:512]
        if problem := impostor(file, start, file.stat().st_size):
            raise problem
        if b"\0" in start:
            raise CheckpointError(f"{file}: holds zero bytes, expected a template's text", remedy="download it again")


def _instead_of(file: Path) -> str:
    """What to give for ``file``, which is a part of a checkpoint or something else."""
    folder = file.absolute().parent
    if (folder / "config.json").is_file() or meta.is_folder(folder):
        return f"give its folder: {folder}"
    return "give a folder with config.json and *.safetensors, or with params.json and *.pth, or a GGUF file"


def fingerprint(files: Iterable[Path]) -> str:
    """Names, sizes and times of change of those of ``files`` that are there.

    CheckpointError if one can't be read, is a folder, or is a link that leads nowhere: it was there once.
    """
    states = []
    for file in dict.fromkeys(files):
        try:
            state = file_state(file)
            states.append((str(file.resolve()), *state))
        except FileNotFoundError as error:
            if file.is_symlink():
                raise CheckpointError(f"{file}: is a link to a file that is not there", remedy=UNREADABLE) from error
            continue
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
        if file.is_dir():
            raise CheckpointError(f"{file}: is a folder, expected a file", remedy="remove it, or put the file there")
    return json.dumps(states)

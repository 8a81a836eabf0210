"""Which of a model's files are opened on a device: its graphs, or what was compiled of them for that device.

That is used where it fits, and compiled again where it doesn't: see :mod:`edge_llama.backends.onnxruntime.compiler`.
"""

import logging
import platform
from pathlib import Path

from edge_llama.backends.base import Placement
from edge_llama.backends.onnxruntime.compiler import compile_towers, compiles, compiling, package, would_be
from edge_llama.backends.towers import read_bundle
from edge_llama.errors import ArtifactError, EdgeLlamaError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.compiled import NAME, Compiled, folder_for, read_compiled
from edge_llama.files.manifest import bundle_of, read_manifest
from edge_llama.files.onnx_static import StaticArtifact, read_static
from edge_llama.files.onnx_text import text_file
from edge_llama.files.onnx_vision import read_from_bundle

_log = logging.getLogger(__name__)


def compiled_for(path: Path) -> str | None:
    """The device for which the tower at ``path`` was compiled; None: for any. ArtifactError for a damaged record."""
    record = _record_of(path)
    return record.device if record else None


def of_text(artifact: StaticArtifact, placement: Placement) -> StaticArtifact:
    """The tower as it was compiled for the device where it goes, if that lies beside it; else ``artifact``."""
    if record := _record_of(artifact.path):
        _check_here(record, artifact.path)
        return artifact
    beside = _beside(artifact.path.parent, "text", artifact.identity(), placement)
    return artifact if beside is None else read_static(text_file(beside))


def of_vision(artifact: VisionArtifact, placement: Placement) -> VisionArtifact:
    """The same of a vision tower."""
    if record := _record_of(artifact.path):
        _check_here(record, artifact.path)
        return artifact
    if not compiles(placement.device):
        return artifact
    beside = _beside(bundle_of(artifact.path), "vision", artifact.identity, placement)
    found = read_manifest(beside).vision if beside else None
    return read_from_bundle(beside / found.file) if beside and found else artifact


def _record_of(path: Path) -> Compiled | None:
    """The record beside the tower at ``path``, or a folder above, where a bundle may have its vision tower deeper."""
    return read_compiled(path.parent) or read_compiled(path.parent.parent)


def _check_here(record: Compiled, path: Path) -> None:
    """ArtifactError for what another version compiled, or for another kind of machine."""
    here = package(compiling(record.device))
    again = f"compile the model again: edge-llama compile MODEL --device {record.device}"
    if record.package != here:
        raise ArtifactError(f"{path}: was compiled by {record.package}, and here is {here}", remedy=again)
    if record.machine and record.machine != platform.machine():
        raise ArtifactError(f"{path}: was compiled for {record.machine}, this is {platform.machine()}", remedy=again)


def _beside(folder: Path, tower: str, identity: str, placement: Placement) -> Path | None:
    """The bundle in ``folder`` of what was compiled for this machine's device, compiled again if it doesn't fit.

    None where nothing of the ``tower`` was compiled, or where that fails: it is told then, and the model itself opened.
    """
    beside = folder_for(folder, placement.device)
    if not compiles(placement.device) or not (beside / NAME).exists():
        return None
    try:
        record = read_compiled(beside)
        if record is None or tower not in record.sources:
            return None
        wanted = would_be(compiling(placement.device), {**record.sources, tower: identity}, options=record.options)
        if record != wanted:
            _log.warning("%s: was compiled of other files or by another version: it is compiled again", beside)
            compile_towers(read_bundle(folder), placement.device, options=record.options)
        read_manifest(beside)  # it is whole
    except EdgeLlamaError as error:
        _log.warning("%s: is not used: %s", beside, error)
        return None
    return beside

"""Which of a model's files are opened on a device: its graphs, or what was compiled of them for that device.

That is used where it fits, and compiled again where it doesn't: see :mod:`edge_llama.backends.onnxruntime.compiler`.
"""

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edge_llama.backends.base import Placement, TextTower, VisionTower
from edge_llama.backends.onnxruntime.compiled_bundle import settings_of
from edge_llama.backends.onnxruntime.compiler import compile_towers, compiles, compiling, package, would_be
from edge_llama.backends.towers import read_bundle
from edge_llama.errors import ArtifactError, EdgeLlamaError, EngineError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.compiled import NAME, SETTINGS, Compiled, folder_for, read_compiled
from edge_llama.files.manifest import bundle_of, read_manifest
from edge_llama.files.onnx_static import StaticArtifact, read_static
from edge_llama.files.onnx_text import text_file
from edge_llama.files.onnx_vision import read_from_bundle

_log = logging.getLogger(__name__)
_EMULATED = ("x86_64", "amd64")
"""Machines that have none of Qualcomm's chips."""
A = TypeVar("A")
T = TypeVar("T", TextTower, VisionTower)


def compiled_for(folder: Path) -> str | None:
    """The device for which the towers in ``folder`` were compiled; None: any. ArtifactError for a damaged record."""
    record = read_compiled(folder)
    return record.device if record else None


def open_text(
    artifact: StaticArtifact, placement: Placement, opened: Callable[[StaticArtifact], TextTower]
) -> TextTower:
    """What ``opened`` makes of the tower, as it was compiled for the device where it goes, if that lies beside it."""
    folder = artifact.path.parent

    def compiled() -> StaticArtifact | None:
        wanted = {"text": artifact.identity(), SETTINGS: settings_of(artifact)}
        beside = _beside(folder, wanted, placement)
        return read_static(text_file(beside)) if beside else None

    return _opened(artifact, folder, placement, compiled, opened)


def open_vision(
    artifact: VisionArtifact, placement: Placement, opened: Callable[[VisionArtifact], VisionTower]
) -> VisionTower:
    """The same of a vision tower."""
    folder = bundle_of(artifact.path)

    def compiled() -> VisionArtifact | None:
        beside = _beside(folder, {"vision": artifact.identity}, placement)
        found = read_manifest(beside).vision if beside else None
        return read_from_bundle(beside / found.file) if beside and found else None

    return _opened(artifact, folder, placement, compiled, opened)


def _opened(
    artifact: A, folder: Path, placement: Placement, compiled: Callable[[], A | None], opened: Callable[[A], T]
) -> T:
    """A tower of what was compiled of ``artifact``, if there is that; where it can't be opened it is told."""
    if record := read_compiled(folder):
        soc = f" --soc {record.soc}{' --share' if record.shares else ''}" if record.soc else ""
        again = f"compile the model again: edge-llama compile MODEL --device {record.device}{soc} --force"
        _check_here(record, folder, again)
        try:
            return opened(artifact)
        except ArtifactError as error:
            raise ArtifactError(error.message, remedy=again) from error
        except EngineError as error:
            raise EngineError(error.message, remedy=f"{error.remedy}, or {again}" if error.remedy else again) from error
    beside = folder_for(folder, placement.device)
    try:
        is_there = compiles(placement.device) and (beside / NAME).exists()  # else nothing is hashed for it
        if is_there and (found := compiled()) is not None:
            return opened(found)
    except (EdgeLlamaError, OSError) as error:
        _log.warning("%s: is not used, the model's own graphs are: %s; compile again with --force", beside, error)
    return opened(artifact)


def _check_here(record: Compiled, folder: Path, again: str) -> None:
    """ArtifactError for what another version compiled, or for another kind of machine."""
    here, machine = package(compiling(record.device)), platform.machine()
    if record.soc and machine.lower() in _EMULATED:
        raise ArtifactError(
            f"{folder}: was compiled for {record.soc:.100}, this is {machine}",
            remedy="copy it to a machine with that chip, or compile the model for this one: leave --soc out",
        )
    if record.package != here:
        raise ArtifactError(f"{folder}: was compiled by {record.package:.100}, and here is {here}", remedy=again)
    if record.machine and record.machine != machine:
        raise ArtifactError(f"{folder}: was compiled for {record.machine:.100}, this is {machine}", remedy=again)


def _beside(folder: Path, sources: dict[str, str], placement: Placement) -> Path | None:
    """The bundle in ``folder`` of what was compiled for this machine's device, compiled again if it doesn't fit.

    ``sources`` are what it must have been compiled of. None where nothing of that was compiled.
    """
    beside = folder_for(folder, placement.device)
    record = read_compiled(beside)
    if record is None or not sources.keys() & record.sources.keys():
        return None
    wanted = would_be(compiling(placement.device), {**record.sources, **sources}, options=record.options)
    if record != wanted:
        _log.warning("%s: was compiled of other files or by another version: it is compiled again", beside)
        compile_towers(read_bundle(folder), placement.device, options=record.options)
    read_manifest(beside)  # it is whole
    return beside

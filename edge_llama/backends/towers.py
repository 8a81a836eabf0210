"""What towers lie at a path: in a bundle as its manifest says, in another folder by the files' names, in a file.

The text tower is found here, not read: :func:`edge_llama.backends.registry.open_artifact` does that.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_llama.backends.base import Bundled, Engine, VisionEngine
from edge_llama.backends.local_models import found
from edge_llama.backends.registry import engine_for, engine_named, engines, own_engines
from edge_llama.errors import ArtifactError
from edge_llama.files.artifact import Bundle, VisionArtifact
from edge_llama.files.checkpoint_folder import CheckpointKind, checkpoint_kind
from edge_llama.files.manifest import NAME as MANIFEST
from edge_llama.files.manifest import Manifest, Tower, read_manifest
from edge_llama.files.onnx_text import CONFIG


def locate(model: str | os.PathLike[str] | None = None) -> Path:
    """The text tower's file that ``model`` means, which is what :func:`edge_llama.backends.local_models.found` takes.

    Of a bundle its text tower; of another folder the only one that it holds.
    """
    path = found(model)
    if not path.is_dir():
        return path
    if (path / MANIFEST).exists():
        text = read_manifest(path).text
        if text is None:
            raise ArtifactError(
                f"{path}: holds a vision tower alone", remedy="give the text model, and this folder by --vision"
            )
        _text_engine(path, text)
        return path / text.file
    return _pair(path)[0]


def _pair(folder: Path) -> tuple[Path, list[Path]]:
    """The text model in a folder without a manifest, and what there is of vision towers, told by their usual name."""
    texts = _texts(own_engines(), folder) or _texts(engines(), folder)
    towers = [file for engine in own_engines() if engine.vision for file in engine.vision.find(folder)]
    if len(texts) == 1:
        return texts[0], towers
    if (kind := checkpoint_kind(folder)) is not None:
        what, source = ("an adapter", f"BASE OUTPUT.gguf --lora {folder}")
        if kind == "checkpoint":
            what, source = ("a full-precision checkpoint", f"{folder} OUTPUT.gguf")
        raise ArtifactError(f"{folder}: this is {what}", remedy=f"convert it first: edge-llama convert {source}")
    found = ", ".join(file.name for file in sorted((*texts, *towers), key=lambda file: (file.suffix, file))) or "none"
    raise ArtifactError(
        f"{folder}: expected exactly one text model (.gguf, or an .onnx with its {CONFIG}), found {found}",
        remedy="name the file itself",
    )


def checkpoint_at(path: Path) -> CheckpointKind | None:
    """Which kind of checkpoint lies at ``path``, if nothing is there that an engine runs."""
    if not path.is_dir() or (path / MANIFEST).exists() or _texts(engines(), path):
        return None
    return checkpoint_kind(path)


def _texts(asked: Iterable[Engine[Any]], folder: Path) -> list[Path]:
    return [file for engine in asked for file in engine.find(folder)]


def read_bundle(folder: Path) -> Bundle:
    """The towers in ``folder``: as its manifest says, or the only text model with the only mmproj, if there is one.

    ArtifactError names what is missing, malformed or ambiguous.
    """
    if not (folder / MANIFEST).exists():
        model, towers = _pair(folder)
        if len(towers) > 1:
            found = ", ".join(file.name for file in towers)
            raise ArtifactError(
                f"{folder}: more than one vision tower: {found}", remedy=f"open {model}, and one of these by --vision"
            )
        return Bundle(folder, model, read_vision(towers[0]) if towers else None, None)
    manifest = read_manifest(folder)
    text: Path | None = None
    vision: VisionArtifact | None = None
    if manifest.text:
        engine = _text_engine(folder, manifest.text)
        text = folder / manifest.text.file
        _check_listed(folder, manifest, engine.files(text))
    if manifest.vision and manifest.images:
        bundled = Bundled(manifest.images, manifest.name, manifest.vision.format)
        vision = _vision_engine(folder, manifest.vision).read(folder / manifest.vision.file, bundled)
        _check_listed(folder, manifest, vision.files)
    return Bundle(folder, text, vision, manifest)


def read_towers(path: Path) -> Bundle:
    """The towers at ``path``: those of a folder, or the one that is in a file.

    Of a file that needs its bundle it is that tower, with ``path`` and ``manifest`` those of the bundle.
    """
    if path.is_dir():
        return read_bundle(path)
    engine = engine_for(path)
    is_text = engine.tower_kind(path) == "text"
    if (folder := engine.bundle(path)) is not None:
        bundle = read_bundle(folder)
        return replace(bundle, vision=None) if is_text else replace(bundle, text=None)
    return Bundle(path, path, None, None) if is_text else Bundle(path, None, read_vision(path), None)


def read_vision(path: Path) -> VisionArtifact:
    """The vision tower at ``path``: a bundle's folder, or a tower's own file. ArtifactError names what is wrong."""
    if path.is_dir():
        vision = read_bundle(path).vision
        if vision is None:
            raise ArtifactError(f"{path}: holds no vision tower", remedy="give the mmproj or .onnx file itself")
        return vision
    engine = engine_for(path)
    if engine.vision is None:
        raise ArtifactError(f"{path}: {engine.name} runs no vision towers", remedy="give the mmproj or .onnx file")
    folder = engine.bundle(path)
    return engine.vision.read(path) if folder is None else read_vision(folder)


def _text_engine(folder: Path, tower: Tower) -> Engine[Any]:
    engine = engine_named(tower.engine)
    if engine is None:
        raise _unknown(folder, "text", tower, [engine.name for engine in engines()])
    return engine


def _vision_engine(folder: Path, tower: Tower) -> VisionEngine:
    engine = engine_named(tower.engine)
    if engine is None or engine.vision is None:
        raise _unknown(folder, "vision", tower, [engine.name for engine in engines() if engine.vision])
    return engine.vision


def _unknown(folder: Path, key: str, tower: Tower, known: Iterable[str]) -> ArtifactError:
    return ArtifactError(
        f"{folder / MANIFEST}: {key}: engine is {tower.engine[:100]!r}, this version runs it on {' or '.join(known)}",
        remedy="update edge-llama, or convert again",
    )


def _check_listed(folder: Path, manifest: Manifest, files: Iterable[Path]) -> None:
    """What the manifest does not list was not checked: it may be cut short, or a link out of the folder."""
    for file in files:
        if file.relative_to(folder).as_posix() not in manifest.files:
            raise ArtifactError(
                f"{folder / MANIFEST}: files: {file.relative_to(folder).as_posix()!r:.200} is missing",
                remedy="copy the whole folder again, or convert again",
            )

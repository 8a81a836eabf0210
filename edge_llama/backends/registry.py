"""The engines, one line each. To add one that comes with edge-llama, add its folder here and a line to ``_OWN``.

One from outside registers itself by an entry point, and is asked about what ours don't recognise:

    [project.entry-points."edge_llama.engines"]
    mine = "my_package:ENGINE"      # an object that keeps the Protocol edge_llama.backends.base.Engine

Nothing here loads an engine's own package.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from edge_llama.backends.base import Engine, VisionEngine
from edge_llama.backends.token_stream import RemoteEngine
from edge_llama.errors import EngineError
from edge_llama.files.artifact import Artifact, VisionArtifact

GROUP = "edge_llama.engines"
_OWN = (
    "edge_llama.backends.llama_cpp.engine",
    "edge_llama.backends.onnxruntime.engine",
)
_REMOTE = "edge_llama.backends.remote.engine"
"""The one whose models have no files here: see :class:`edge_llama.backends.token_stream.RemoteEngine`."""


@cache
def own_engines() -> tuple[Engine[Any], ...]:
    """Those that come with edge-llama."""
    return tuple(import_module(name).ENGINE for name in _OWN)


@cache
def registrations() -> tuple[EntryPoint, ...]:
    """What other packages registered; to look for them takes tens of milliseconds."""
    return tuple(entry_points(group=GROUP))


@cache
def registered(entry: EntryPoint) -> Engine[Any]:
    """The engine that was registered by ``entry``. EngineError if its package can't be loaded."""
    try:
        engine: Engine[Any] = entry.load()
    except Exception as error:  # whatever a package does when it is imported
        raise EngineError(
            f"the engine {entry.name} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}",
            remedy="reinstall or remove the package that registers it",
        ) from error
    return engine


def engines() -> Iterator[Engine[Any]]:
    """Every engine, our own first: others are asked only about what those don't know."""
    yield from own_engines()
    yield from map(registered, registrations())


def remote_engine() -> RemoteEngine:
    """The engine for models that a server runs."""
    engine: RemoteEngine = import_module(_REMOTE).ENGINE
    return engine


def engine_named(name: str) -> Engine[Any] | None:
    """The engine that manifests and artifacts call ``name``; None if there is none."""
    return next((engine for engine in engines() if engine.name == name), None)


def engine_of(artifact: Artifact) -> Engine[Any]:
    """The engine that runs ``artifact``."""
    engine = engine_named(artifact.engine)
    assert engine is not None  # noqa: S101 - it read the artifact
    return engine


def vision_engine_of(artifact: VisionArtifact) -> VisionEngine:
    """The engine that runs the vision tower ``artifact``."""
    engine = engine_named(artifact.engine)
    assert engine is not None and engine.vision is not None  # noqa: S101, PT018 - it read the artifact
    return engine.vision


def engine_for(path: Path) -> Engine[Any]:
    """The engine for the file at ``path``.

    What nobody recognises is taken for a GGUF file: its reader says what is wrong with it.
    """
    return next((engine for engine in engines() if engine.recognise(path)), own_engines()[0])


def open_artifact(path: Path) -> Artifact:
    """The text tower in the file at ``path``, read and checked. ArtifactError names what is wrong."""
    artifact: Artifact = engine_for(path).read(path)
    return artifact

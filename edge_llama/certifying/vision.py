"""A converted vision tower beside the checkpoint's in float32: its features, tile by tile."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import AskedDevice
from edge_llama.backends.registry import vision_engine_of
from edge_llama.backends.towers import read_vision
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.media.images import Image
from edge_llama.media.llama4_tiles import tiles

if TYPE_CHECKING:
    from converters.checkpoint import Checkpoint

N_TILES = 4
_LIMITS = {"f32": 0.01, "f16": 0.05, "bf16": 0.15, "q8_0": 0.15, "int8": 0.15}
_LIMIT = 0.6
"""Of formats with fewer bits: a tower that is another one is off by one or more."""
Features = list[NDArray[np.float32]]


def errors(reference: "Checkpoint", own: VisionArtifact, threads: int) -> tuple[float, ...]:
    """The relative error of the features of each of four tiles; nothing where the checkpoint has no vision tower.

    The checkpoint's tower lies in a temporary folder in float32 meanwhile: OutputError if there is no room.
    """
    from converters import convert  # noqa: PLC0415 - the runtime must not need this half
    from converters.targets import has_vision  # noqa: PLC0415

    if not has_vision(reference):
        return ()
    pictures = list(_pictures(own.spec))
    with tempfile.TemporaryDirectory(prefix="edge-llama-vision-") as scratch:
        folder = Path(scratch) / "vision"
        convert(reference.path, folder, tower="vision", vision_quant="f32", threads=threads)
        true = _features(read_vision(folder), pictures, threads)
    found = _features(own, pictures, threads)
    return tuple(
        float(np.linalg.norm(one - other) / (np.linalg.norm(other) or 1)) if one.shape == other.shape else np.inf
        for one, other in zip(found, true, strict=True)
    )


def faults(found: Sequence[float], own: VisionArtifact) -> Iterator[str]:
    """Tiles whose features are further off than the tower's format explains."""
    limit = _LIMITS.get(own.format, _LIMIT)
    for tile, error in enumerate(found):
        if not error <= limit:
            yield f"vision tower: features of tile {tile} are off by {error:.3g}, {own.format} gives {limit} at most"


def _features(artifact: VisionArtifact, pictures: Sequence[NDArray[np.float32]], threads: int) -> Features:
    engine = vision_engine_of(artifact)
    tower = engine.open(artifact, engine.place(artifact, AskedDevice("cpu")), threads=threads)
    try:
        return [tower.encode(picture[None])[0] for picture in pictures]
    finally:
        tower.close()


def _pictures(spec: VisionSpec) -> Iterator[NDArray[np.float32]]:
    """Tiles of shapes and colours that change over small and large distances, the same each time."""
    rng = np.random.default_rng(4)
    at = np.mgrid[0 : spec.tile, 0 : spec.tile] / spec.tile
    for _ in range(N_TILES):
        waves = rng.normal(0, 12, (3, 3, 2))
        phases = rng.uniform(0, 2 * np.pi, (3, 3, 1, 1))
        colours = np.sin(np.einsum("cwa,ayx->cwyx", waves, at) + phases).mean(axis=1)
        pixels = np.round(127.5 * (1 + colours)).astype(np.uint8).transpose(1, 2, 0)
        yield from tiles(Image.open(np.ascontiguousarray(pixels)), spec, 1)

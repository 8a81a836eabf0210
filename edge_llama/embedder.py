"""Images as the text tower reads them: ids that stand for them in a prompt, and embeddings where these are decoded.

The ids of an image's embeddings are negative and drawn from what determines the embeddings: the image's content, how it
is cut and the vision tower. So whatever compares tokens (the KV cache's reuse, parked caches, session files) knows
images too, and nothing that was read is embedded or decoded again.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edge_llama.artifact import VisionArtifact
from edge_llama.backends.base import AbortedError, VisionTower
from edge_llama.errors import ContextFullError
from edge_llama.images import Image
from edge_llama.vision import Grid, VisionSpec, grid, tiles, token_plan

_AHEAD = 4
"""Tiles embedded at once: a stop comes between, and the engine has enough to do."""
_BUDGET = 256 << 20
"""Bytes of embeddings that are kept: some 70 images of 17 tiles for a model of Scout's width."""


class Embedder:
    """A vision tower, opened when the first image is read, and what it made. The engine's thread embeds."""

    def __init__(self, artifact: VisionArtifact, open_tower: Callable[[], VisionTower], max_tiles: int | None) -> None:
        """``max_tiles`` None: as many as the model knows. OptionError for a number outside of that."""
        self.artifact = artifact
        self.max_tiles = max_tiles
        self._grid(Image.BLANK) if False else grid(1, 1, artifact.spec, max_tiles)
        self._open_tower = open_tower
        self._tower: VisionTower | None = None
        self._is_aborted = False
        self._kept: OrderedDict[tuple[str, Grid, int], NDArray[np.float32]] = OrderedDict()
        self._pixels: tuple[tuple[str, Grid], NDArray[np.float32]] | None = None
        self.encoded = 0
        """Tiles that the tower has embedded."""
        self.seconds = 0.0
        """Time that preparing and embedding them took."""

    @property
    def spec(self) -> VisionSpec:
        """What the tower needs of images."""
        return self.artifact.spec

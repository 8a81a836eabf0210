"""Images as the text tower takes them: ids that stand for them in a prompt, and embeddings where these are decoded.

The ids of an image's embeddings are negative and drawn from all that determines the embeddings: the image's content,
how it is cut, and the vision tower. So whatever compares tokens (the reuse of the KV cache, caches in the KV store,
session files) knows images too, and nothing that is in a cache is embedded or decoded again.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import AbortedError, VisionTower
from edge_llama.errors import ArtifactError, ContextFullError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.host.memory import give_back
from edge_llama.media.images import Image
from edge_llama.media.llama4_tiles import Grid, count_tokens, grid, tiles, token_plan

_AHEAD = 4
"""Tiles embedded at once: enough work for the engine, and a stop comes between."""
_GLANCE = 0.02
"""Seconds between two looks at whether to stop while a picture is decoded and cut: half a second for a large photo."""
_BUDGET = 256 << 20
"""Bytes of embeddings that are kept: 20 images of 17 tiles for a model of Scout's width."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One of an image's tiles: what a run of negative ids stands for."""

    image: Image
    grid: Grid
    index: int


class ImageEncoder:
    """A vision tower, opened when the first image is encoded, and the embeddings that it gave.

    Ids may be asked for by any thread; the engine's thread embeds, and ``abort`` stops it from any other.
    """

    def __init__(
        self,
        artifact: VisionArtifact,
        open_tower: Callable[[], VisionTower],
        control_tokens: Mapping[str, int],
        max_tiles: int | None = None,
    ) -> None:
        """``control_tokens`` are the text tower's, by their text; ``max_tiles`` None: as many as the model knows.

        OptionError for ``max_tiles`` outside of that, ArtifactError if the text tower lacks tokens that images need.
        """
        self.artifact = artifact
        self.max_tiles = max_tiles
        grid(1, 1, artifact.spec, max_tiles)
        for text in token_plan(Grid(2, 2), artifact.spec):
            if isinstance(text, str) and text not in control_tokens:
                raise ArtifactError(
                    f"{artifact.path}: a tower of Llama 4, but the text model has no token {text}",
                    remedy="open it with the text model that it belongs to",
                )
        self._control = control_tokens
        self._open_tower = open_tower
        self._tower: VisionTower | None = None
        self._is_aborted = False
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="image")
        self._kept: OrderedDict[tuple[str, Grid, int], NDArray[np.float32]] = OrderedDict()
        self._pixels: tuple[tuple[str, Grid], NDArray[np.float32]] | None = None
        self.kept_bytes = 0
        """What the embeddings take that are kept."""
        self.encoded = 0
        """Tiles that the tower has embedded so far."""
        self.seconds = 0.0
        """Time that preparing and embedding them took, and opening the tower."""

    @property
    def spec(self) -> VisionSpec:
        """What the tower wants of images."""
        return self.artifact.spec

    def grid(self, image: Image) -> Grid:
        """How the image is cut."""
        return grid(image.width, image.height, self.spec, self.max_tiles)

    def ids(self, image: Image) -> list[int]:
        """What stands for the image in a prompt: control tokens, and a negative id for each embedding."""
        cut = self.grid(image)
        seed = f"{self.artifact.identity} {image.digest} {cut.rows} {cut.columns}".encode()
        drawn = np.frombuffer(hashlib.shake_256(seed).digest(4 * cut.count * self.spec.tokens_per_tile), "<u4")
        embedded = iter((drawn.astype(np.int64) >> 1) - (1 << 31))
        ids: list[int] = []
        for step in token_plan(cut, self.spec):
            ids += [self._control[step]] if isinstance(step, str) else [int(next(embedded)) for _ in range(step)]
        return ids

    def fewer_tiles(self, images: Sequence[Image], excess: int) -> int | None:
        """The largest ``max_tiles`` with which the images take at least ``excess`` tokens less, or None."""

        def total(most: int | None) -> int:
            cuts = (grid(image.width, image.height, self.spec, most) for image in images)
            return sum(count_tokens(token_plan(cut, self.spec)) for cut in cuts)

        now = total(self.max_tiles)
        numbers = range((self.max_tiles or self.spec.max_tiles) - 1, 0, -1)
        return next((most for most in numbers if now - total(most) >= excess), None)

    def tiles(self, image: Image) -> list[Tile]:
        """The tiles in the order of their runs of ids."""
        cut = self.grid(image)
        return [Tile(image, cut, index) for index in range(cut.count)]

    def embed(self, tile: Tile) -> NDArray[np.float32]:
        """The embeddings of a tile, ``(tokens_per_tile, n_embd)``; those after it are encoded along with it.

        Raises AbortedError, InputError for a damaged image, or what opening and running the tower raises.
        """
        key = (tile.image.digest, tile.grid, tile.index)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        started = time.perf_counter()
        try:
            pixels = self._prepared(tile)
            tower = self._opened()
            stop = min(tile.index + _AHEAD, tile.grid.count)
            embeddings = tower.encode(pixels[tile.index : stop])
            self.encoded += stop - tile.index
        finally:
            self.seconds += time.perf_counter() - started
        for index, of_tile in enumerate(embeddings, tile.index):
            self._keep((tile.image.digest, tile.grid, index), of_tile)
        if stop == tile.grid.count:
            self._pixels = None
            give_back()  # a picture's tiles are tens of megabytes, and what comes after them would keep their place
        first: NDArray[np.float32] = embeddings[0]
        return first

    def abort(self) -> None:
        """Stop the ``embed`` that is running, and refuse others until ``resume``."""
        self._is_aborted = True
        if tower := self._tower:
            tower.abort()

    def resume(self) -> None:
        """Take work again after ``abort``."""
        self._is_aborted = False
        if self._tower:
            self._tower.resume()

    def close(self) -> None:
        """Free the tower and the embeddings. May be called twice."""
        self._preparing.shutdown(wait=False)
        self._kept.clear()
        self.kept_bytes = 0
        self._pixels = None
        if self._tower:
            self._tower.close()
            self._tower = None

    def _opened(self) -> VisionTower:
        if self._tower is None:
            self._tower = self._open_tower()
        if self._is_aborted:  # perhaps while it was opened
            raise AbortedError
        return self._tower

    def _prepared(self, tile: Tile) -> NDArray[np.float32]:
        """The image's tiles, kept until the last of them is embedded."""
        if self._is_aborted:
            raise AbortedError
        key = (tile.image.digest, tile.grid)
        if self._pixels is None or self._pixels[0] != key:
            cutting = self._preparing.submit(tiles, tile.image, self.spec, self.max_tiles)
            while not wait((cutting,), _GLANCE).done:
                if self._is_aborted:  # what was begun ends by itself, for nobody
                    raise AbortedError
            self._pixels = (key, cutting.result())
        return self._pixels[1]

    def _keep(self, key: tuple[str, Grid, int], embeddings: NDArray[np.float32]) -> None:
        self._kept[key] = embeddings
        room = max(1, _BUDGET // max(embeddings.nbytes, 1))
        while len(self._kept) > room:
            self._kept.popitem(last=False)
        self.kept_bytes = len(self._kept) * embeddings.nbytes


def check_room(needed: int, n_ctx: int, images: Sequence[Image], encoder: ImageEncoder | None) -> None:
    """ContextFullError if a prompt of ``needed`` tokens doesn't fit ``n_ctx``; with images it says what would."""
    if needed < n_ctx:
        return
    remedy = ""
    if images and encoder:
        over = needed - n_ctx + 1
        fewer = encoder.fewer_tiles(images, over)
        offer = f"max_tiles={fewer} (--max-tiles {fewer}) would do" if fewer else "fewer tiles would not do"
        remedy = f"that is {over:,} too many: {offer}; or a larger n_ctx (--n-ctx)"
    raise ContextFullError(needed, n_ctx, remedy=remedy)


class ImageEmbeddings:
    """What the negative ids of one prompt stand for: ``embed(start, stop)`` for the session that prefills it."""

    def __init__(self, encoder: ImageEncoder, prompt: Sequence[int], images: Sequence[Image]) -> None:
        self._encoder = encoder
        tiles: dict[tuple[int, ...], Tile] = {}  # by their ids: a template may show images in another order
        for image in images:
            ids = encoder.ids(image)
            runs = (tuple(ids[start:stop]) for start, stop in _runs(ids))
            tiles.update(zip(runs, encoder.tiles(image), strict=True))
        self._runs = {(start, stop): tiles[tuple(prompt[start:stop])] for start, stop in _runs(prompt)}

    def embed(self, start: int, stop: int) -> NDArray[np.float32]:
        """The embeddings of the positions from ``start`` to ``stop``, which lie within one tile."""
        begin, tile = next((run[0], tile) for run, tile in self._runs.items() if run[0] <= start and stop <= run[1])
        return self._encoder.embed(tile)[start - begin : stop - begin]


def _runs(prompt: Sequence[int]) -> Iterator[tuple[int, int]]:
    at = 0
    for is_token, run in groupby(prompt, key=lambda token: token >= 0):
        end = at + sum(1 for _ in run)
        if not is_token:
            yield at, end
        at = end

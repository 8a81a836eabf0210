"""An image as Llama 4 takes it: which tiles it is cut into, their pixels, and the tokens that frame them.

The reference is transformers' ``Llama4ImageProcessor`` and ``Llama4Processor``; canvases and sizes follow it to the
last rounding, since one tile more or less is another prompt.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_llama.errors import OptionError
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.media.images import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

Plan = tuple[str | int, ...]
"""Control tokens by their text, and numbers of embeddings: the k-th number is the k-th tile's."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How an image is cut into tiles: ``rows`` x ``columns`` tiles, and if these are several, a global one."""

    rows: int
    columns: int

    @property
    def count(self) -> int:
        """Tiles in all."""
        tiles = self.rows * self.columns
        return tiles + (tiles > 1)


@lru_cache(maxsize=1024)
def grid(width: int, height: int, spec: VisionSpec, max_tiles: int | None = None) -> Grid:
    """The canvas for an image of this size, of at most ``max_tiles`` tiles (the spec's if None).

    The one that needs the smallest enlargement, or else the least shrinking; of several the smallest. Scales are
    compared in float32, as the reference does. OptionError for ``max_tiles`` outside 1 to the spec's.
    """
    most = spec.max_tiles if max_tiles is None else max_tiles
    if not 1 <= most <= spec.max_tiles:
        raise OptionError(f"max_tiles is {most}", remedy=f"give 1 to {spec.max_tiles}, the most that the model knows")
    canvases = [Grid(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    scales = {
        canvas: min(np.float32(canvas.columns * spec.tile) / width, np.float32(canvas.rows * spec.tile) / height)
        for canvas in canvases
    }
    enough = [scale for scale in scales.values() if scale >= 1]
    best = min(enough) if enough else max(scales.values())
    return min((canvas for canvas in canvases if scales[canvas] == best), key=lambda canvas: canvas.count)


def resized(width: int, height: int, canvas: Grid, tile: int) -> tuple[int, int]:
    """(width, height) of an image on its canvas: as large as fits, but no side grows past max(side, tile).

    The reference computes in float32 where the canvas is the limit and in float64 where the image is.
    """

    def limit(side: int, tiles: int) -> Any:
        own = max(side, tile)
        return own if own <= tiles * tile else np.float32(tiles * tile)

    target_width, target_height = limit(width, canvas.columns), limit(height, canvas.rows)
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        target_height = min(math.floor(height * scale_width), target_height)
    else:
        target_width = min(math.floor(width * scale_height), target_width)
    return max(int(target_width), 1), max(int(target_height), 1)


def tiles(image: Image, spec: VisionSpec, max_tiles: int | None = None) -> "NDArray[np.float32]":
    """The tiles row by row, then the global one: (grid.count, 3, tile, tile), normalised RGB.

    The image lies in the canvas's upper left corner, the rest is black. Pillow's bilinear filter resizes, as in Meta's
    own code; the reference's, torchvision's, differs by a level here and there. It also normalises in bfloat16, which
    this does not. OptionError as :func:`grid`, InputError for damaged data.
    """
    from PIL.Image import Resampling  # noqa: PLC0415

    canvas, side = grid(image.width, image.height, spec, max_tiles), spec.tile
    picture = image.to_pillow()
    size = resized(image.width, image.height, canvas, side)
    levels = np.zeros((canvas.rows * side, canvas.columns * side, 3), np.uint8)
    levels[: size[1], : size[0]] = np.asarray(picture.resize(size, Resampling.BILINEAR))
    cut = levels.reshape(canvas.rows, side, canvas.columns, side, 3).transpose(0, 2, 4, 1, 3)
    found = np.empty((canvas.count, 3, side, side), np.float32)
    _normalise(cut, found[: canvas.rows * canvas.columns].reshape(cut.shape), spec)
    if canvas.count > 1:
        whole = np.asarray(picture.resize((side, side), Resampling.BILINEAR))
        _normalise(whole.transpose(2, 0, 1), found[-1], spec)
    return found


def _normalise(levels: "NDArray[np.uint8]", out: "NDArray[np.float32]", spec: VisionSpec) -> None:
    """Both (..., 3, side, side), by a table of the 256 levels for each channel."""
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        table = ((np.arange(256) / 255 - mean) / std).astype(np.float32)
        out[..., channel, :, :] = table[levels[..., channel, :, :]]


def token_plan(grid: Grid, spec: VisionSpec) -> Plan:
    """What an image is in a prompt: tiles row by row with separators, then the global tile (or the only one)."""
    tiles = spec.tokens_per_tile
    row = (tiles, *("<|tile_x_separator|>", tiles) * (grid.columns - 1), "<|tile_y_separator|>")
    rows = row * grid.rows if grid.count > 1 else ()
    return ("<|image_start|>", *rows, "<|image|>", tiles, "<|image_end|>")


def count_tokens(plan: Plan) -> int:
    """The positions that a plan takes in the context."""
    return sum(step if isinstance(step, int) else 1 for step in plan)

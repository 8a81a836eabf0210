"""What transformers and Meta's own code make of a picture, step by step: the references of tiles and token plans.

Meta's code resizes by Pillow and computes in float32. transformers resizes by torchvision, in integers too but rounded
otherwise, and normalises in bfloat16.
"""

import importlib
import sys
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from llama4_reference import image_processor_class
from numpy.typing import NDArray
from PIL import Image, ImageFile
from transformers.image_utils import SizeDict
from transformers.models.llama4.processing_llama4 import Llama4Processor

MEAN = STD = [0.5, 0.5, 0.5]


@cache
def _processors() -> tuple[type[Any], type[Any]]:
    original = image_processor_class()

    class InFloat32(original):
        def rescale_and_normalize(self, images, do_rescale, factor, do_normalize, mean, std):
            return self.normalize(images.to(torch.float32) * factor, mean, std)

    class WithoutPixels(original):
        def resize(self, image, size, **_):
            self.asked.append((size.width, size.height))
            return torch.zeros(1, dtype=torch.uint8).expand(*image.shape[:-2], size.height, size.width)

        def rescale_and_normalize(self, images, *_):
            return images

    return InFloat32, WithoutPixels


def transformers_tiles(
    image: Image.Image, side: int, max_tiles: int, *, in_float32: bool = False
) -> NDArray[np.float32]:
    """(tiles, 3, side, side), the global one last; ``in_float32``: its steps without the rounding to bfloat16."""
    kind = _processors()[0] if in_float32 else image_processor_class()
    processor = kind(size={"height": side, "width": side}, max_patches=max_tiles)
    return processor(image, return_tensors="pt")["pixel_values"].float().numpy()


def transformers_plan(width: int, height: int, side: int, max_tiles: int) -> tuple[Any, ...]:
    """(rows, columns), the (width, height) that it resizes to, the number of tiles; all its code but without pixels."""
    processor = _processors()[1]()
    processor.asked = []
    image = torch.zeros(1, dtype=torch.uint8).expand(3, height, width)
    size = SizeDict(height=side, width=side)
    found = processor._preprocess(
        [image], True, size, Image.Resampling.BILINEAR, True, 1 / 255, True, MEAN, STD, max_tiles, False, True, None
    )
    return tuple(found["aspect_ratios"][0].tolist()), processor.asked[0], len(found["pixel_values"][0])


def transformers_text(rows: int, columns: int, tokens_per_tile: int) -> str:
    """What its processor puts in the place of an image, ``<|patch|>`` for each embedding."""
    return Llama4Processor._prompt_split_image(None, (rows, columns), tokens_per_tile)


def metas_plan(width: int, height: int, side: int, max_tiles: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) and the (width, height) that it resizes to."""
    code = _metas_code().VariableSizeImageTransform(side)
    canvases = torch.tensor(code.find_supported_resolutions(max_tiles, side))
    across, down = code.get_best_fit((width, height), canvases)
    limits = min(max(width, side), across), min(max(height, side), down)
    size = code.get_max_res_without_distortion((width, height), limits)
    return (down // side, across // side), (max(size[0], 1), max(size[1], 1))


def metas_tiles(image: Image.Image, side: int, max_tiles: int) -> NDArray[np.float32]:
    """(tiles, 3, side, side), the global one last, as its chat format joins them."""
    code = _metas_code()
    tiles, _ = code.VariableSizeImageTransform(side)(image, max_tiles)
    if len(tiles) > 1:
        tiles = torch.cat([tiles, code.ResizeNormalizeImageTransform(side, side)(image)[None]])
    return tiles.numpy()


@cache
def _metas_code() -> Any:
    """Its module, imported with what it uses of torchvision (for Pillow images these call Pillow)."""

    def resize(
        image: Image.Image, size: tuple[int, int], interpolation: int = Image.Resampling.BILINEAR
    ) -> Image.Image:
        return image.resize(size[::-1], interpolation)

    def normalize(mean: Any, std: Any, inplace: bool) -> Any:
        shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        return lambda pixels: (pixels - shift) / scale

    def compose(steps: list[Any]) -> Any:
        def run(value: Any) -> Any:
            for step in steps:
                value = step(value)
            return value

        return run

    transforms = ModuleType("torchvision.transforms")
    transforms.functional = SimpleNamespace(resize=resize)
    transforms.InterpolationMode = SimpleNamespace(BILINEAR=Image.Resampling.BILINEAR)
    transforms.Compose, transforms.Normalize = compose, normalize
    transforms.Resize = lambda size: lambda image: resize(image, size)
    transforms.ToTensor = lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    torchvision = ModuleType("torchvision")
    torchvision.transforms = transforms
    modules = {"torchvision": torchvision, "torchvision.transforms": transforms}
    with mock.patch.dict(sys.modules, modules), mock.patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", False):
        return importlib.import_module("llama_models.llama4.preprocess")

"""Vision towers in integers, for tests: which engines are here, and a tower with its ranges."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from llama4_training import dialogues
from numpy.typing import NDArray

import converters
from edge_llama import Image
from edge_llama.backends.towers import read_vision
from edge_llama.files.onnx_vision import VISION_INPUT
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.media.llama4_tiles import tiles
from quant.calibration import measured

PACKAGES = {"openvino": "onnxruntime_ep_openvino", "qnn": "onnxruntime_qnn"}


def needs(device: str) -> pytest.MarkDecorator:
    """Skips a test where the device's package is missing: there are wheels for Linux on x86-64 and few others."""
    package = PACKAGES[device]
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def in_integers(source: Path, folder: Path, tiles: NDArray[np.float32]) -> Path:
    """The vision tower of ``source`` as ``folder``/f32, ``folder``/ranges.json over ``tiles`` and ``folder``/a16w8."""
    converters.convert(source, folder / "f32", tower="vision", vision_quant="f32")
    samples = ({VISION_INPUT: tile[None]} for tile in tiles)
    ranges = measured(read_vision(folder / "f32").path, samples, threads=2)
    (folder / "ranges.json").write_bytes(ranges.encode())
    integers = {"vision_quant": "a16w8", "calibration": [folder / "ranges.json"]}
    converters.convert(source, folder / "a16w8", tower="vision", **integers)
    return folder


def digits(spec: VisionSpec, *, held_out: bool, seed: int, count: int) -> NDArray[np.float32]:
    """Tiles of ``count`` pictures of drawn digits, in many sizes."""
    rng, found = np.random.default_rng(seed), []
    for at in range(count):
        kind = ("single", "across", "stacked")[at % 3]
        turn = dialogues(kind, 1, rng, held_out=held_out)[0].turns[0]
        found += [tiles(Image.open(picture), spec) for picture in turn.pictures]
    return np.concatenate(found)

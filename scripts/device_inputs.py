"""What a device check converts: the tests' small trained models, and one with random weights to measure speed by.

All of it lies in this repository or is drawn from a seed: nothing is downloaded.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from edge_llama import Image
from edge_llama.convert import convert

ROOT = Path(__file__).resolve().parent.parent
TALK = ROOT / "tests" / "data" / "small_talk.gguf"
DIGITS = ROOT / "tests" / "data" / "llama4_digits"
PICTURE = ROOT / "docs" / "digits.png"
QUESTIONS = (
    *(f"What is the capital of {country}?" for country in ("Japan", "Italy", "Egypt", "France")),
    *(f"And of {country}?" for country in ("Japan", "Italy", "Egypt", "France")),
    *("Hello!", "hi", "Thanks!", "Bye!", "Go.", "Say 5.", "Say something.", "Who are you?"),
    "Write a very long story about a ship, with many chapters.",
    "Tell a very long story.",
    "Please remember this list of words: apple, river, stone, apple, river, stone, ",
    "My dog is called Bruno. He likes long walks by the sea. ",
)
"""What the small model was trained to answer."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, what is asked about it, and the right answer."""

    image: Image
    question: str
    answer: str


def pictures() -> Iterator[Picture]:
    """The README's two handwritten digits, together and each alone, in three sizes."""
    with PIL.Image.open(PICTURE) as opened:
        whole = opened.convert("RGB")
    side = whole.height
    cuts = (
        (whole, "Which digits are these?", "left 5, right 4"),
        (whole.crop((0, 0, side, side)), "Which digit is this?", "5"),
        (whole.crop((side, 0, 2 * side, side)), "Which digit is this?", "4"),
    )
    for percent in (100, 75, 50):
        for cut, question, answer in cuts:
            size = (cut.width * percent // 100, cut.height * percent // 100)
            yield Picture(Image.open(cut.resize(size)), question, answer)


def make(name: str, folder: Path, *, is_quick: bool) -> Path:
    """Convert the input of this name (a key of :data:`INPUTS`) into ``folder``; its path.

    Raises what :func:`edge_llama.convert.convert` raises.
    """
    INPUTS[name](folder / name, is_quick)
    return folder / name


def _digits_in_integers(path: Path) -> None:
    """For NPUs, by the ranges of the pictures that will be asked about: they say nothing of other pictures."""
    from edge_llama.backends.towers import read_vision  # noqa: PLC0415 - where it is asked for
    from edge_llama.files.onnx_vision import VISION_INPUT  # noqa: PLC0415
    from edge_llama.media.llama4_tiles import tiles  # noqa: PLC0415
    from quant.calibration import measured  # noqa: PLC0415

    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        convert(DIGITS, Path(scratch) / "f32", tower="vision", vision_quant="f32")
        tower = read_vision(Path(scratch) / "f32")
        seen = [tile for picture in pictures() for tile in tiles(picture.image, tower.spec)]
        ranges = measured(tower.path, ({VISION_INPUT: tile[None]} for tile in seen), threads=2)
        (Path(scratch) / "ranges.json").write_bytes(ranges.encode())
        convert(DIGITS, path, quant="f32", vision_quant="a16w8", calibration=[Path(scratch) / "ranges.json"])


def _talk_in_integers(path: Path) -> None:
    """For NPUs, by the ranges of what will be asked."""
    from converters.sources import open_checkpoint  # noqa: PLC0415
    from converters.targets.onnx.static_ranges import measure_text  # noqa: PLC0415

    turns = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS]
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        ranges = Path(scratch) / "ranges.json"
        ranges.write_bytes(measure_text(open_checkpoint(TALK), ["".join(turns)], threads=2).encode())
        convert(TALK, path, to="onnx", quant="a16w8", calibration=[ranges], n_ctx=1024, window=32)


def _random(path: Path, is_quick: bool, **options: object) -> None:
    """A Llama with random weights: of 75 million, in widths at which K-quants occur, or of less than a million."""
    sys.path.insert(0, str(ROOT / "tests"))
    from checkpoints import Shape, smollm  # noqa: PLC0415 - the tests' own

    big = Shape(hidden=768, ffn=2048, layers=12, heads=12, kv_heads=4)
    shape = Shape(hidden=256, ffn=512, layers=2) if is_quick else big
    checkpoint = path.parent / "random"  # of both forms
    if not checkpoint.exists():
        smollm(checkpoint, shape=shape, dtype="BF16")
    convert(checkpoint, path, **options)  # type: ignore[arg-type]


INPUTS: dict[str, Callable[[Path, bool], object]] = {
    "text.gguf": lambda path, _: convert(TALK, path, quant="f32"),
    "text-onnx": lambda path, _: convert(TALK, path, to="onnx", quant="f32", portable=True),
    "digits-gguf": lambda path, _: convert(DIGITS, path, quant="f32", vision_to="gguf", vision_quant="f32"),
    "digits-onnx": lambda path, _: convert(DIGITS, path, quant="f32", vision_quant="f32"),
    "digits-integers": lambda path, _: _digits_in_integers(path),
    "text-integers": lambda path, _: _talk_in_integers(path),
    "speed.gguf": lambda path, is_quick: _random(path, is_quick, quant="q4_k_m"),
    "speed-onnx": lambda path, is_quick: _random(path, is_quick, to="onnx", quant="int4", portable=True),
}

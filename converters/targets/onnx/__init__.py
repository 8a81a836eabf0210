"""ONNX graphs and the folder around them.

What writes them takes a third of a second to load, so it is imported only where a graph is written.
"""

from collections.abc import Mapping
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.options import Options
from converters.target import NEEDS_RANGES, TowerFiles, needless_ranges
from converters.targets.onnx.forms import VISION_FORMS
from edge_llama.errors import OptionError
from quant import onnx_recipe


class OnnxTextWriter:
    """A text tower for ONNX Runtime."""

    label, engine = "ONNX", "onnxruntime"
    quants, default_quant = tuple(onnx_recipe.RECIPES), onnx_recipe.DEFAULT
    options = ("quant", "tensor_types", "block", "zero_points", "portable", "embeddings", "chat_template", "lora")

    def check(self, options: Options) -> None:
        """Standard operators have no zero points here."""
        if options.portable and options.zero_points:
            raise OptionError("--zero-points: not with --portable", remedy="leave one of them out")

    def files(self, checkpoint: Checkpoint, options: Options) -> TowerFiles:
        """model.onnx, its data, and what onnxruntime-genai reads beside them."""
        _check_library()
        from converters.targets.onnx.text import text_files  # noqa: PLC0415

        return text_files(checkpoint, options)

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """The folder's files for each recipe."""
        _check_library()
        from converters.targets.onnx.text import text_sizes  # noqa: PLC0415

        return text_sizes(checkpoint, self.quants)


class OnnxVisionWriter:
    """A vision tower for ONNX Runtime."""

    label, engine = "ONNX", "onnxruntime"
    quants, default_quant = tuple(VISION_FORMS), "f16"
    options = ("vision_to", "vision_quant", "ranges")

    def check(self, options: Options) -> None:
        """Ranges are there where they are needed, and only there."""
        if options.vision_quant == NEEDS_RANGES and options.ranges is None:
            raise OptionError(
                f"--vision-quant {NEEDS_RANGES}: needs to know the ranges of values",
                remedy="convert to f32, measure with edge-llama calibrate, and add --ranges FILE",
            )
        if options.vision_quant != NEEDS_RANGES and options.ranges is not None:
            raise needless_ranges(options)

    def files(self, checkpoint: Checkpoint, options: Options) -> TowerFiles:
        """vision/model.onnx and its data."""
        _check_library()
        from converters.targets.onnx.vision import vision_parts  # noqa: PLC0415

        quant, ranges = options.vision_quant or self.default_quant, options.ranges
        path = None if ranges is None else Path(ranges)
        return TowerFiles(tuple(vision_parts(checkpoint, quant, "vision", path, is_portable=options.portable)))

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """The files in each format but the one that needs ranges."""
        quants = [quant for quant in self.quants if quant != NEEDS_RANGES]
        return {quant: self.files(checkpoint, Options(vision_quant=quant)).nbytes for quant in quants}


def _check_library() -> None:
    """OptionError without onnx-ir, which writes the graphs."""
    try:
        import onnx_ir  # noqa: F401, PLC0415
    except ImportError as error:
        raise OptionError(
            "writing ONNX needs the package onnx-ir", remedy='pip install "edge-llama[convert]"'
        ) from error


ONNX_TEXT, ONNX_VISION = OnnxTextWriter(), OnnxVisionWriter()

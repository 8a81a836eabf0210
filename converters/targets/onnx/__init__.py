"""ONNX graphs and the folder around them.

What writes them takes a third of a second to load, so it is imported only where a graph is written.
"""

from collections.abc import Mapping

from converters.checkpoint import Checkpoint
from converters.evidence.given import needs_ranges, ranges_for
from converters.options import Options, flag
from converters.target import TowerFiles
from converters.targets.onnx.forms import VISION_FORMS
from edge_llama.errors import OptionError
from quant import onnx_recipe


class OnnxTextWriter:
    """A text tower for ONNX Runtime."""

    label, engine = "ONNX", "onnxruntime"
    quants, default_quant = (*onnx_recipe.RECIPES, *onnx_recipe.STATIC), onnx_recipe.DEFAULT
    options = (
        *("quant", "tensor_types", "block", "zero_points", "portable", "embeddings", "chat_template", "lora"),
        *("calibration", "n_ctx", "window", "kv_bits", "max_shard_bytes"),
    )

    def check(self, options: Options) -> None:
        """Standard operators have no zero points here, and graphs of fixed shapes are another thing."""
        if options.portable and options.zero_points:
            raise OptionError("--zero-points: not with --portable", remedy="leave one of them out")
        is_static = options.quant in onnx_recipe.STATIC
        # An adapter changes what was measured, and position 0 with it.
        static = ("tensor_types", "block", "zero_points", "embeddings", "lora", "allow_nonfinite")
        for name in static if is_static else ("n_ctx", "window", "kv_bits", "max_shard_bytes"):
            value = getattr(options, name)
            if value is not None and value is not False and value != {}:  # 0 is given
                forms = "" if is_static else f": it is for {' and '.join(onnx_recipe.STATIC)}"
                raise OptionError(
                    f"{flag(name)}: not with --quant {options.quant or self.default_quant}{forms}",
                    remedy="leave one of them out",
                )

    def files(self, checkpoint: Checkpoint, options: Options) -> TowerFiles:
        """The graph or graphs, their data, and what onnxruntime-genai reads beside them."""
        check_library()
        if options.quant in onnx_recipe.STATIC:
            from converters.targets.onnx.static_text import static_files  # noqa: PLC0415

            return static_files(checkpoint, options)
        from converters.targets.onnx.text import text_files  # noqa: PLC0415

        return text_files(checkpoint, options)

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """The folder's files for each recipe but those that need ranges."""
        check_library()
        from converters.targets.onnx.text import text_sizes  # noqa: PLC0415

        return text_sizes(checkpoint, onnx_recipe.RECIPES)


class OnnxVisionWriter:
    """A vision tower for ONNX Runtime."""

    label, engine = "ONNX", "onnxruntime"
    quants, default_quant = tuple(VISION_FORMS), "f16"
    options = ("vision_to", "vision_quant", "calibration")

    def check(self, options: Options) -> None:
        """There is nothing that does not go together."""

    def files(self, checkpoint: Checkpoint, options: Options) -> TowerFiles:
        """vision/model.onnx and its data."""
        check_library()
        from converters.targets.onnx.vision import vision_parts  # noqa: PLC0415

        quant = options.vision_quant or self.default_quant
        ranges = ranges_for(options, "vision", checkpoint.path) if needs_ranges(quant, "vision") else None
        return TowerFiles(tuple(vision_parts(checkpoint, quant, "vision", ranges, is_portable=options.portable)))

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """The files in each format but the one that needs ranges."""
        quants = [quant for quant in self.quants if not needs_ranges(quant, "vision")]
        return {quant: self.files(checkpoint, Options(vision_quant=quant)).nbytes for quant in quants}


def check_library() -> None:
    """OptionError without onnx-ir, which writes the graphs."""
    try:
        import onnx_ir  # noqa: F401, PLC0415
    except ImportError as error:
        raise OptionError(
            "writing ONNX needs the package onnx-ir", remedy='pip install "edge-llama[convert]"'
        ) from error


ONNX_TEXT, ONNX_VISION = OnnxTextWriter(), OnnxVisionWriter()

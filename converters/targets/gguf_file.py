"""One .gguf file, or several if it shall be cut: a text tower, or a vision tower, which is then called mmproj."""

from collections.abc import Collection

from converters.checkpoint import Checkpoint
from converters.layout import Layout
from converters.options import Options
from converters.targets import gguf, mmproj
from converters.targets.gguf import GGUF
from converters.targets.writers import check_heeded, check_same_kind, with_quant, with_vision_quant
from edge_llama.errors import OptionError


class TextFile:
    """The text tower."""

    def chosen(self, options: Options, _towers: Collection[str]) -> Options:
        """With a recipe."""
        check_heeded(options, GGUF.options, has_vision=False)
        return with_quant(options, "gguf", GGUF.quants, GGUF.default_quant)

    def lay_out(self, checkpoint: Checkpoint, name: str, options: Options) -> Layout:
        """One file, or parts of at most ``max_shard_bytes``."""
        return Layout(gguf.parts(checkpoint, name, options))


class VisionFile:
    """The vision tower."""

    def chosen(self, options: Options, towers: Collection[str]) -> Options:
        """With a format."""
        check_heeded(options, None, has_vision=True)
        if options.vision_to == "onnx":
            raise OptionError("--vision-to onnx: a .gguf file can't hold it", remedy="give a folder, or leave it out")
        check_same_kind(options, towers)
        return with_vision_quant(options, "gguf")

    def lay_out(self, checkpoint: Checkpoint, name: str, options: Options) -> Layout:
        """One file."""
        return Layout((mmproj.part(checkpoint, options.vision_quant or mmproj.MMPROJ.default_quant, name),))


TEXT_FILE, VISION_FILE = TextFile(), VisionFile()

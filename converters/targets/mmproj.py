"""A vision tower as llama.cpp's tools take it: a GGUF file of its own, called mmproj."""

from collections.abc import Mapping

from converters.architectures import llama4_vision
from converters.checkpoint import Checkpoint, Tensor
from converters.layout import Entry, Part
from converters.metadata import generation_config
from converters.options import Options
from converters.target import TowerFiles
from converters.targets import gguf
from edge_llama.files.formats import F16, F32, FORMATS, Format
from edge_llama.files.gguf import string, u32
from edge_llama.files.mmproj import ARCHITECTURE, MAX_TILES, is_added
from quant.recipe import RECIPES


class MmprojWriter:
    """A vision tower for llama.cpp."""

    label, engine = "GGUF", "llama.cpp"
    quants, default_quant = ("f16", "f32", "bf16", "q8_0"), "f16"
    options = ("vision_to", "vision_quant")

    def check(self, options: Options) -> None:
        """There is nothing that does not go together."""

    def files(self, checkpoint: Checkpoint, options: Options) -> TowerFiles:
        """mmproj.gguf."""
        return TowerFiles((part(checkpoint, options.vision_quant or self.default_quant, "mmproj.gguf"),))

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """The file in each format."""
        return {quant: part(checkpoint, quant, "mmproj.gguf").nbytes for quant in self.quants}


MMPROJ = MmprojWriter()


def part(checkpoint: Checkpoint, quant: str, name: str) -> Part:
    """The file ``name`` with the vision tower, its matrices in ``quant``. CheckpointError if it can't be expressed."""
    weights, metadata = llama4_vision.mmproj(checkpoint)
    entries = tuple(Entry(weight.tensor, _format(weight.tensor, FORMATS[quant])) for weight in weights)
    fields = {
        "general.architecture": string(ARCHITECTURE),
        "general.type": string("mmproj"),
        "general.name": string(checkpoint.name),
        **checkpoint.provenance.fields,
        **generation_config.to_gguf(checkpoint.generation, checkpoint.path),
        **metadata,
        MAX_TILES: u32(llama4_vision.spec(checkpoint).max_tiles),
        "general.quantization_version": u32(gguf.QUANTIZATION_VERSION),
        "general.file_type": u32(RECIPES[quant].ftype),
    }
    return gguf.part(name, fields, entries, checkpoint.path)


def _format(tensor: Tensor, wanted: Format) -> Format:
    """As llama.cpp's converter decides. It convolves patches, which its engine does in f32 and f16 alone."""
    if is_added(tensor.name, tensor.shape):
        return F32
    if tensor.name == "v.patch_embd.weight":
        return F16 if wanted is F16 else F32
    return F16 if tensor.columns % wanted.block_size else wanted

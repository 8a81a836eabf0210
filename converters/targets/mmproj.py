"""A vision tower as llama.cpp's tools take it: a GGUF file of its own, called mmproj."""

from converters.architectures import llama4_vision
from converters.checkpoint import Checkpoint, Tensor
from converters.metadata import generation_config
from converters.options import Options
from converters.targets import gguf
from converters.targets.layout import Entry, Layout, Part
from edge_llama.files.formats import F16, F32, FORMATS, Format
from edge_llama.files.gguf import string, u32
from edge_llama.files.mmproj import ARCHITECTURE, MAX_TILES, is_added
from quant.recipe import RECIPES

QUANTS = ("f16", "f32", "bf16", "q8_0")
DEFAULT_QUANT = "f16"


def lay_out(checkpoint: Checkpoint, name: str, options: Options) -> Layout:
    """The file ``name`` with the vision tower of ``checkpoint``."""
    return Layout((part(checkpoint, options.vision_quant or DEFAULT_QUANT, name),))


def part(checkpoint: Checkpoint, quant: str, name: str) -> Part:
    """The same as a part of an output, its matrices in ``quant``. CheckpointError if it can't be expressed so."""
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

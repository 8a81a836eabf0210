"""What the matrices of a vision tower may be stored in as ONNX; a text tower's recipes are :mod:`quant.onnx_recipe`."""

from edge_llama.files.formats import F16, F32, FORMATS
from quant.nbits import Grid
from quant.onnx_recipe import Form

VISION_FORMS: dict[str, Form] = {
    "f16": F16,
    "f32": F32,
    "int8": FORMATS["i8"],
    "int4": Grid(4),
    "a16w8": FORMATS["i8"],
}

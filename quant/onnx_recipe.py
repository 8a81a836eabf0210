"""Which tensor of an ONNX model gets which form: ``f32``, ``f16``, ``int8``, ``int4``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_llama.errors import OptionError
from edge_llama.files.formats import F16, F32, Format
from quant.nbits import BLOCKS, Grid, exact_grid
from quant.recipe import check_types

Form = Format | Grid
RECIPES: dict[str, Form] = {"int4": Grid(4), "int8": Grid(8), "f16": F16, "f32": F32}
DEFAULT = "int4"
STATIC: Mapping[str, int] = {"a16w8": 8, "a16w4": 4}
"""What a text tower for NPUs may be stored in: activations of 16 bits, matrices of so many."""
_EIGHT_BITS = ("token_embd", "output")
"""Roles that int4 gives 8 bits: every answer passes through them, and 4 bits there cost more than anywhere else."""
_COMPARED = ("attn_q", "attn_k", "attn_v")


@dataclass(frozen=True, slots=True)
class OnnxRecipe:
    """``name`` of :data:`RECIPES`; quantized forms have ``block`` weights to a scale, and zero points if asked.

    ``tensor_types`` gives a role another form.
    """

    name: str
    block: int = 32
    has_zero_points: bool = False
    tensor_types: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise OptionError(f"--block {self.block}: unknown", remedy=f"known: {', '.join(map(str, BLOCKS))}")
        if not isinstance(RECIPES[self.name], Grid) and (self.block != BLOCKS[0] or self.has_zero_points):
            raise OptionError(
                f"--quant {self.name}: has no blocks", remedy="leave --block and --zero-points out, or say int4"
            )
        check_types(self.tensor_types, RECIPES)

    def is_precise(self, role: str, layer: int, n_layer: int) -> bool:
        """Whether what this matrix multiplies keeps more than 8 bits, which takes longer.

        Those are where rounding changed SmolLM2's answers most for their time: queries, keys and values, the last
        layer, and ``ffn_down`` of the first and last tenth. Experts never are: their operator knows no mixture.
        """
        outer = max(1, n_layer // 10)
        is_outer = not outer <= layer < n_layer - outer
        return role in _COMPARED or layer == n_layer - 1 or (role == "ffn_down" and is_outer)

    def form(self, role: str, columns: int, source: Format) -> Form:
        """How rows of ``columns`` weights in ``source`` are stored.

        Weights that ggml has quantized keep their values where a form of as many bits can hold them. Rows that are no
        whole blocks get smaller ones, or none: f16.
        """
        if role == "router":
            return F32
        given = self.tensor_types.get(role)
        form = RECIPES[given or ("int8" if self.name == "int4" and role in _EIGHT_BITS else self.name)]
        if not isinstance(form, Grid):
            return form
        exact = exact_grid(source)
        if exact and exact.bits == form.bits and self.block == BLOCKS[0] and not self.has_zero_points:
            return exact
        blocks = [block for block in BLOCKS if block <= self.block and columns % block == 0]
        return Grid(form.bits, max(blocks), self.has_zero_points) if blocks else F16

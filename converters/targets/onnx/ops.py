"""What the operator sets :mod:`~converters.targets.onnx.microsoft` and ``standard`` have in common."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.onnx.graph import Graph, ValueInfo
from converters.targets.onnx.operator_set import Mixture
from edge_llama.files.formats import F32
from quant.nbits import Grid
from quant.onnx_recipe import Form

ROWS = ("batch", "sequence")
NEVER = -1e30
"""Added to a score, it leaves nothing of it."""


class Ops(ABC):
    """What both kinds share. They write into ``graph``; ``eps`` is that of the norms.

    Activations are float32 ``(batch, sequence, width)``.
    """

    opset: ClassVar[int] = 21
    shares_cache = False
    joins_qkv = True
    mixture: Mixture | None = None

    def __init__(self, graph: Graph, eps: float) -> None:
        self.graph = graph
        self.eps = eps
        self._sums: dict[tuple[str, int], ir.Value] = {}
        self._terms: dict[tuple[str, int], ir.Value] = {}

    def begin(self, ids: ir.Value, mask: ir.Value) -> None:
        """Take the graph's inputs, ``(batch, sequence)`` and ``(batch, total)``."""
        self._ids, self._mask = ids, mask

    @cached_property
    def positions(self) -> ir.Value:
        """Those of ``ids``, int64 ``(sequence,)``: the last of all."""
        first = self.op("Sub", self._total, self._count, name="positions.first")
        return self.op("Range", first, self._total, self._number(1), name="positions")

    @cached_property
    def all_positions(self) -> ir.Value:
        """Those of the cache and of ``ids``, int64 ``(total,)``."""
        return self.op("Range", self._number(0), self._total, self._number(1), name="all_positions")

    @cached_property
    def _count(self) -> ir.Value:
        return self._columns_of(self._ids, "positions.count")

    @cached_property
    def _total(self) -> ir.Value:
        return self._columns_of(self._mask, "positions.total")

    def _columns_of(self, x: ir.Value, name: str) -> ir.Value:
        shape = self.op("Shape", x, name=f"{name}.shape")
        return self.op("Gather", shape, self._number(1), name=name, axis=0)

    def _number(self, number: int) -> ir.Value:
        return self.graph.constant(f"numbers.{number}", np.array(number))

    def linear(
        self,
        x: ir.Value,
        matrix: Tensor,
        form: Form,
        name: str,
        bias: Tensor | None = None,
        *,
        is_precise: bool = False,
    ) -> ir.Value:
        """``x`` times the transposed ``matrix`` of ``(outputs, inputs)``, plus ``bias``.

        ``is_precise``: what is multiplied is not rounded to 8 bits.
        """
        output = name if bias is None else f"{name}.product"
        if is_precise and isinstance(form, Grid):
            product = self.precise_product(x, matrix, form, name, output)
        else:
            product = self.product(x, matrix, form, name, output)
        return product if bias is None else self.biased(product, bias, name, name)

    @abstractmethod
    def product(self, x: ir.Value, matrix: Tensor, form: Form, name: str, output: str) -> ir.Value:
        """``x`` times the transposed ``matrix``, which is stored under ``name``; the result is called ``output``."""

    def precise_product(self, x: ir.Value, matrix: Tensor, form: Grid, name: str, output: str) -> ir.Value:
        """As :meth:`product`, with 16 bits of ``x``: two rows of 8 cost little more than one, weights are read once."""
        both = self.product(self._two_terms(x, matrix.columns, form.block), matrix, form, name, f"{output}.terms")
        axis, info = self.graph.constant("terms.axis", [-2]), ValueInfo((*sizes(x)[:-1], matrix.rows))
        return self.op("ReduceSum", both, axis, name=output, info=info, keepdims=0)

    def logits(self, x: ir.Value, head: Tensor, form: Form, name: str) -> ir.Value:
        """``x`` times the transposed ``head`` of ``(tokens, width)``."""
        return self.linear(x, head, form, name, is_precise=True)

    def _two_terms(self, x: ir.Value, columns: int, block: int) -> ir.Value:
        """``x`` as kernels round it, and what that takes away, ``(..., 2, columns)``: their sum is ``x``."""
        key = (str(x.name), block)
        if key not in self._terms:
            kept = [0] * (len(sizes(x)) - 1)
            name = f"{x.name}.by_{block}"
            blocks = self.reshape(x, f"{name}.blocks", *kept, columns // block, block)
            axis = self.graph.constant("terms.within_block", [-1])
            largest = self.op("ReduceMax", self.op("Abs", blocks, name=f"{name}.sizes"), axis, name=f"{name}.largest")
            step = self.op("Mul", largest, self.graph.constant("terms.per_step", 1 / 127), name=f"{name}.exact_step")
            step = self.op("Max", step, self.graph.constant("terms.least_step", 1e-30), name=f"{name}.step")
            steps = self.op("Div", blocks, step, name=f"{name}.steps")
            half = self.graph.constant("terms.half", 0.5)  # WebGPU has no Round
            steps = self.op("Add", steps, half, name=f"{name}.steps_and_half")
            steps = self.op("Floor", steps, name=f"{name}.whole_steps")
            coarse = self.op("Mul", steps, step, name=f"{name}.coarse")
            rest = self.op("Sub", blocks, coarse, name=f"{name}.rest")
            both = self.op("Concat", coarse, rest, name=f"{name}.both", axis=-2)
            info = ValueInfo((*sizes(x)[:-1], 2, columns))
            self._terms[key] = self.reshape(both, f"{name}.terms", *kept, 2, columns, info=info)
        return self._terms[key]

    def biased(self, x: ir.Value, bias: Tensor, name: str, output: str) -> ir.Value:
        """``x`` plus ``bias``, which is stored under ``name``."""
        info = None if x.shape is None else ValueInfo(sizes(x))
        return self.op("Add", x, self.graph.weight(f"{name}.bias", bias, F32), name=output, info=info)

    def scaled(self, x: ir.Value, factor: float, name: str) -> ir.Value:
        """``x`` times a number."""
        return self.op("Mul", x, self.graph.constant(f"{name}.factor", factor), name=name, info=ValueInfo(sizes(x)))

    def geglu(self, gate: ir.Value, up: ir.Value, name: str) -> ir.Value:
        """``gelu(gate) * up``, of which the first is approximated by tanh."""
        info = ValueInfo(sizes(gate))
        gelu = self.op("Gelu", gate, name=f"{name}.gelu", info=info, approximate="tanh")
        return self.op("Mul", gelu, up, name=name, info=info)

    def rotated(
        self, real: ir.Value, imaginary: ir.Value, tables: tuple[ir.Value, ir.Value], name: str
    ) -> tuple[ir.Value, ir.Value]:
        """The product of complex numbers, real and imaginary parts apart."""
        cos, sin = tables
        parts = {
            f"{part}_{turn}": self.op("Mul", x, table, name=f"{name}.{part}_{turn}")
            for part, x in (("real", real), ("imaginary", imaginary))
            for turn, table in (("cos", cos), ("sin", sin))
        }
        return (
            self.op("Sub", parts["real_cos"], parts["imaginary_sin"], name=f"{name}.turned_real"),
            self.op("Add", parts["real_sin"], parts["imaginary_cos"], name=f"{name}.turned_imaginary"),
        )

    def block_sums(self, x: ir.Value, n_blocks: int, block: int) -> ir.Value:
        """What a block's offset is multiplied by."""
        key = (str(x.name), block)
        if key not in self._sums:
            blocks = self.reshape(x, f"{x.name}.blocks", *[0] * (len(sizes(x)) - 1), n_blocks, block)
            axis = self.graph.constant(f"{x.name}.block_sums.axis", [-1])
            self._sums[key] = self.op("ReduceSum", blocks, axis, name=f"{x.name}.block_sums", keepdims=0)
        return self._sums[key]

    def reshape(self, x: ir.Value, name: str, *shape: int, info: ValueInfo | None = None) -> ir.Value:
        """0 keeps a size."""
        return self.graph.op("Reshape", x, self.graph.constant(f"{name}.shape", shape), name=name, info=info)

    def reshape_like(self, x: ir.Value, like: ir.Value, name: str, columns: int) -> ir.Value:
        """Rows of ``columns`` in the shape of ``like``."""
        shape = self.op("Shape", like, name=f"{name}.shape")
        return self.graph.op("Reshape", x, shape, name=name, info=ValueInfo((*sizes(like)[:-1], columns)))

    def op(self, kind: str, *inputs: ir.Value | None, name: str, **attributes: Any) -> ir.Value:
        """The output of a standard node."""
        return self.graph.op(kind, *inputs, name=name, **attributes)


def sizes(x: ir.Value) -> tuple[int | str, ...]:
    """The shape of ``x``, which must have been told."""
    assert x.shape is not None, x.name  # noqa: S101 - by its node
    return tuple(size if isinstance(size, int) else str(size) for size in x.shape)

"""An ONNX graph in integers, as NPUs take it: every value passes a QuantizeLinear and a DequantizeLinear.

Activations have 16 bits, by ranges that were measured (:mod:`quant.ranges`); matrices have 8, with a scale for each
output; what is added or multiplied has 16. Shapes are fixed and operators are the standard's. An engine for an NPU
fuses each operator with the pairs around it; any other computes it in float, between roundings.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.onnx.graph import FLOAT, INT4, UINT8, DataFile, Graph
from converters.targets.onnx.integer_weights import (
    I8,
    Integers,
    RowForm,
    in_chunks,
    pairs,
    read_floats,
    steps,
)
from converters.tensors.transposed import transposed
from edge_llama.files.formats import F32, FORMATS, Format
from quant.ranges import Code, Ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INT8, _UINT16 = ir.DataType.INT8, ir.DataType.UINT16
_I16 = FORMATS["i16"]
_MIDDLE = 1 << 15
_EIGHT = RowForm(8)
_MOVES = {"Reshape", "Transpose", "Slice", "Split", "ReduceMax"}
"""Operators whose output has the numbers of their input, in other places."""
_Pair = tuple[ir.Value, ir.Value]
"""A scale and a zero point."""


class QdqGraph(Graph):
    """A graph whose values are quantized by ``ranges``. OptionError for a value that these lack.

    A node's name is that of its output after quantizing and dequantizing, which other nodes read.
    """

    def __init__(self, name: str, data: DataFile, ranges: Ranges, opset: int = 21, *, kept_bits: int = 8) -> None:
        """``kept_bits``, 8 or 16: of what is handed from one run to the next."""
        super().__init__(name, data, opset)
        self._ranges = ranges
        self._kept_type = UINT8 if kept_bits == 8 else _UINT16
        self._kept_middle = 1 << (kept_bits - 1)
        self._pairs: dict[str, _Pair] = {}
        self._kept: dict[str, _Pair] = {}
        """Of values that are handed from one run to the next, by what they are called in ``ranges``."""

    def input(self, name: str, shape: Sequence[int | str], dtype: ir.DataType = FLOAT) -> ir.Value:
        """An input, quantized."""
        return self._quantized(super().input(name, shape, dtype), f"{name}.rounded", self._measured(name))

    def ops(self, kind: str, *inputs: ir.Value | None, names: Sequence[str], **options: Any) -> list[ir.Value]:
        """The outputs of a node, quantized."""
        outputs = super().ops(kind, *inputs, names=[f"{name}.exact" for name in names], **options)
        kept = self._moved(kind, inputs)
        return [
            self._quantized(value, name, kept or self._measured(name))
            for value, name in zip(outputs, names, strict=True)
        ]

    def _moved(self, kind: str, inputs: Sequence[ir.Value | None]) -> _Pair | None:
        """What the outputs have in common with the inputs, if all numbers come from there as they are."""
        if kind in _MOVES:
            return self._pairs[str(inputs[0].name)] if inputs[0] else None
        if kind != "Concat":
            return None
        first, *others = (self._pairs.get(str(value.name)) for value in inputs if value)
        return first if all(other is first for other in others) else None

    def kept_input(self, name: str, shape: Sequence[int | str], of: str) -> ir.Value:
        """What an earlier run gave by :meth:`kept_output`, in uint8 around 128, or uint16 around 32,768."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(self._kept_type))
        self._inputs.append(value)
        return self._dequantized(value, f"{name}.floats", self._pair_kept(of))

    def kept_output(self, value: ir.Value, name: str, shape: Sequence[int | str], of: str) -> ir.Value:
        """Give ``value`` for a later run, and what it then is."""
        pair = self._pair_kept(of)
        (given,) = super().ops("QuantizeLinear", value, *pair, names=(name,))
        given.shape, given.type = ir.Shape(shape), ir.TensorType(self._kept_type)
        self._outputs.append(given)
        return self._dequantized(given, f"{name}.floats", pair)

    def kept_constant(self, name: str, values: "NDArray[np.float32]", of: str) -> ir.Value:
        """``values`` as if an earlier run had given them."""
        pair = self._pair_kept(of)
        numbers = np.rint(values / np.float32(self._kept_scale(of))) + self._kept_middle
        numbers = numbers.clip(0, 2 * self._kept_middle - 1).astype(self._kept_type.numpy())
        return self._dequantized(self._numbers(f"{name}.quantized", numbers), name, pair)

    def _pair_kept(self, of: str) -> _Pair:
        if of not in self._kept:
            scale = super().constant(f"{of}.kept.scale", self._kept_scale(of))
            middle = self._kept_type.numpy().type(self._kept_middle)
            self._kept[of] = scale, self._numbers(f"{of}.kept.zero", middle)
        return self._kept[of]

    def _kept_scale(self, of: str) -> float:
        low, high = self._ranges.ends(of)
        return float(steps(np.array(max(-low, high), np.float32), self._kept_middle - 1))

    def matrix(self, name: str, tensor: Tensor, form: RowForm) -> ir.Value:
        """A matrix of (outputs, inputs) as (inputs, outputs)."""
        form, rows = form.of(tensor), (tensor.rows,)
        integers = Integers(tensor, form)
        numbers = transposed(integers.numbers)
        scale = self.stored(f"{name}.scale", integers.scales, F32, rows, FLOAT)
        if form.bits == 8:
            quantized = self.stored(f"{name}.quantized", numbers, I8, numbers.shape, _INT8)
            return self._dequantized(quantized, name, (scale, self._zeros(f"{name}.zero", rows, _INT8)), axis=1)
        quantized = self.stored(f"{name}.quantized", pairs(numbers), I8, numbers.shape, INT4)
        if not form.block:
            return self._dequantized(quantized, name, (scale, self._zeros(f"{name}.zero", rows, INT4)), axis=1)
        blocks = integers.block_numbers
        whole = self.stored(f"{name}.block_numbers", blocks, I8, blocks.shape, UINT8)
        zero = self._zeros(f"{name}.scale.zero", rows, UINT8)
        scales = self._dequantized(whole, f"{name}.block_scales", (scale, zero), axis=1)
        zeros = self._zeros(f"{name}.zero", blocks.shape, INT4)
        return self._dequantized(quantized, name, (scales, zeros), axis=0, block_size=form.block)

    def _zeros(self, name: str, shape: Sequence[int], dtype: ir.DataType) -> ir.Value:
        """Zero points beside the graph, the same bytes for all of a size: of blocks they are a 64th of the weights."""
        nbytes = prod(shape) // (2 if dtype is INT4 else 1)
        return self.stored(name, _zero_bytes(nbytes), I8, shape, dtype)

    def constant(self, name: str, values: "NDArray[Any] | Sequence[int] | float") -> ir.Value:
        """Numbers that are part of the graph; floats are quantized."""
        numbers = np.asarray(values)
        if numbers.dtype.kind != "f":
            return super().constant(name, values)
        code = Code.of(float(numbers.min()), float(numbers.max()))
        quantized = self._numbers(f"{name}.quantized", code.numbers(numbers))
        return self._dequantized(quantized, name, self._pair(name, code))

    def weight(
        self, name: str, tensor: Tensor, format_: Format, shape: Sequence[int] | None = None, *, transpose: bool = False
    ) -> ir.Value:
        """Vectors (``format_`` f32) in 16 bits; a matrix in 8, with a scale for each of its rows."""
        if format_ is F32:
            scale = self.stored(f"{name}.scale", _scale_of_all(tensor), F32, (), FLOAT)
            pair = scale, self._numbers(f"{name}.zero", np.uint16(_MIDDLE))
            quantized = self.stored(f"{name}.quantized", _vector(tensor), _I16, shape or tensor.shape, _UINT16)
            return self._dequantized(quantized, name, pair)
        if transpose:
            return self.matrix(name, tensor, _EIGHT)
        integers = Integers(tensor, _EIGHT)
        zeros = self._zeros(f"{name}.zero", (tensor.rows,), _INT8)
        scale = self.stored(f"{name}.scale", integers.scales, F32, (tensor.rows,), FLOAT)
        quantized = self.stored(f"{name}.quantized", integers.numbers, I8, shape or tensor.shape, _INT8)
        return self._dequantized(quantized, name, (scale, zeros), axis=0)

    def _quantized(self, value: ir.Value, name: str, pair: _Pair) -> ir.Value:
        (quantized,) = super().ops("QuantizeLinear", value, *pair, names=(f"{name}.quantized",))
        return self._dequantized(quantized, name, pair)

    def _dequantized(self, quantized: ir.Value, name: str, pair: _Pair, **attributes: Any) -> ir.Value:
        (value,) = super().ops("DequantizeLinear", quantized, *pair, names=(name,), **attributes)
        self._pairs[name] = pair
        return value

    def _measured(self, name: str) -> _Pair:
        return self._pair(name, self._ranges.code(name))

    def _pair(self, name: str, code: Code) -> _Pair:
        return super().constant(f"{name}.scale", code.scale), self._numbers(f"{name}.zero", np.uint16(code.zero_point))

    def _numbers(self, name: str, numbers: "NDArray[Any] | np.unsignedinteger[Any]") -> ir.Value:
        """Integers as they are."""
        tensor = ir.tensor(np.asarray(numbers), name=name)
        return self._initializer(name, tensor, tensor.dtype, np.shape(numbers))


def _scale_of_all(tensor: Tensor) -> Tensor:
    """What a number of a vector, or of several, is worth: float32 (1,)."""

    def read(_start: int, _stop: int) -> "NDArray[np.uint8]":
        largest = in_chunks(tensor, lambda rows: np.abs(rows).max(axis=1)).max(keepdims=True)
        return steps(largest, _MIDDLE - 1).view(np.uint8)[None]

    return Tensor(f"{tensor.name} scale", (1,), F32, read)


def _vector(tensor: Tensor) -> Tensor:
    """A vector, or several, in uint16 around the middle, by one scale. Read as a whole: they are small."""

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        rows = read_floats(tensor, 0, tensor.rows)
        worth = steps(np.abs(rows).max(keepdims=True), _MIDDLE - 1)
        numbers: NDArray[np.uint16] = (np.rint(rows[start:stop] / worth) + _MIDDLE).astype(np.uint16)
        return numbers.view(np.uint8)

    return replace(tensor, format=_I16, read=read, step=1)


def _zero_bytes(count: int) -> Tensor:
    """So many bytes of zero, (count,)."""
    return Tensor(f"{count} zeros", (count,), I8, lambda start, stop: np.zeros((stop - start, count), np.uint8))

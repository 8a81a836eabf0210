"""An ONNX graph in integers, as NPUs take it: every value passes a QuantizeLinear and a DequantizeLinear.

Activations have 16 bits, by ranges that were measured (:mod:`quant.ranges`); matrices have 8, with a scale for each
output; what is added or multiplied has 16. Shapes are fixed and operators are the standard's. An engine for an NPU
fuses each operator with the pairs around it; any other computes it in float, between roundings.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.onnx.graph import FLOAT, Graph
from converters.tensors.transposed import transposed
from edge_llama.files.formats import F32, FORMATS, Format
from quant.kernels import recode
from quant.ranges import LEAST, Code, Ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INT8, _UINT16 = ir.DataType.INT8, ir.DataType.UINT16
_I8, _I16 = FORMATS["i8"], FORMATS["i16"]
_MIDDLE = 1 << 15
_CHUNK = 1 << 20  # weights looked through at once
_MOVES = {"Reshape", "Transpose", "Slice", "Split"}
"""Operators whose output has the numbers of their input, in other places."""
_Pair = tuple[ir.Value, ir.Value]
"""A scale and a zero point."""


class QdqGraph(Graph):
    """A graph whose values are quantized by ``ranges``. OptionError for a value that these lack.

    A node's name is that of its output after quantizing and dequantizing, which other nodes read.
    """

    def __init__(self, name: str, data_file: str, ranges: Ranges) -> None:
        super().__init__(name, data_file)
        self._ranges = ranges
        self._pairs: dict[str, _Pair] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: ir.DataType = FLOAT) -> ir.Value:
        """An input, quantized."""
        return self._quantized(super().input(name, shape, dtype), f"{name}.rounded", self._measured(name))

    def ops(self, kind: str, *inputs: ir.Value | None, names: Sequence[str], **options: Any) -> list[ir.Value]:
        """The outputs of a node, quantized."""
        outputs = super().ops(kind, *inputs, names=[f"{name}.exact" for name in names], **options)
        first = inputs[0].name if inputs and inputs[0] else None
        kept = self._pairs[str(first)] if kind in _MOVES else None
        return [
            self._quantized(value, name, kept or self._measured(name))
            for value, name in zip(outputs, names, strict=True)
        ]

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
            pair = self._stored_scale(name, tensor, ()), self._numbers(f"{name}.zero", np.uint16(_MIDDLE))
            quantized = self.stored(f"{name}.quantized", _vector(tensor), _I16, shape or tensor.shape, _UINT16)
            return self._dequantized(quantized, name, pair)
        zeros = self._numbers(f"{name}.zero", np.zeros(tensor.rows, np.int8))
        pair = self._stored_scale(name, tensor, (tensor.rows,)), zeros
        matrix = transposed(int8_rows(tensor)) if transpose else int8_rows(tensor)
        quantized = self.stored(f"{name}.quantized", matrix, _I8, shape or matrix.shape, _INT8)
        return self._dequantized(quantized, name, pair, axis=1 if transpose else 0)

    def _stored_scale(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> ir.Value:
        return self.stored(f"{name}.scale", row_scales(tensor, each_row=bool(shape)), F32, shape, FLOAT)

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

    def _numbers(self, name: str, numbers: "NDArray[Any] | np.uint16") -> ir.Value:
        """Integers as they are."""
        tensor = ir.tensor(np.asarray(numbers), name=name)
        return self._initializer(name, tensor, tensor.dtype, np.shape(numbers))


def read_floats(tensor: Tensor, start: int, stop: int, *, check: bool = True) -> "NDArray[np.float32]":
    """Rows ``start`` to ``stop``: (stop - start, columns); with ``check`` NonFiniteError for NaN and infinity."""
    return recode(tensor.read(start, stop), tensor.format, F32, check=check).view(np.float32)


def _largest(tensor: Tensor, *, each_row: bool) -> "NDArray[np.float32]":
    """The largest magnitude in each row, or in all: (rows,) or (1,)."""
    step = max(_CHUNK // tensor.columns // tensor.step, 1) * tensor.step
    pieces = [
        np.abs(read_floats(tensor, start, min(start + step, tensor.rows))).max(axis=1)
        for start in range(0, tensor.rows, step)
    ]
    found = np.concatenate(pieces)
    return found if each_row else found.max(keepdims=True)


def _steps(largest: "NDArray[np.float32]", most: int) -> "NDArray[np.float32]":
    """What a number is worth, for numbers up to ``most``; 1 for what float32 can hardly tell from zeros."""
    return np.where(largest > LEAST, largest / np.float32(most), np.float32(1)).astype(np.float32)


def row_scales(tensor: Tensor, *, each_row: bool = True) -> Tensor:
    """What a number of each row is worth, or one of all: float32 (rows,) or (1,)."""

    def read(_start: int, _stop: int) -> "NDArray[np.uint8]":
        steps = _steps(_largest(tensor, each_row=each_row), 127 if each_row else _MIDDLE - 1)
        return steps.view(np.uint8)[None]

    shape = (tensor.rows if each_row else 1,)
    return Tensor(f"{tensor.name} scales", shape, F32, read)


def int8_rows(tensor: Tensor) -> Tensor:
    """A matrix in int8, each row by a scale of its own."""

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        rows = read_floats(tensor, start, stop)
        steps = _steps(np.abs(rows).max(axis=1), 127)
        numbers: NDArray[np.int8] = np.rint(rows / steps[:, None]).astype(np.int8)
        return numbers.view(np.uint8)

    return replace(tensor, format=_I8, read=read)


def _vector(tensor: Tensor) -> Tensor:
    """A vector, or several, in uint16 around the middle, by one scale. Read as a whole: they are small."""

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        rows = read_floats(tensor, 0, tensor.rows)
        steps = _steps(np.abs(rows).max(keepdims=True), _MIDDLE - 1)
        numbers: NDArray[np.uint16] = (np.rint(rows[start:stop] / steps) + _MIDDLE).astype(np.uint16)
        return numbers.view(np.uint8)

    return replace(tensor, format=_I16, read=read, step=1)

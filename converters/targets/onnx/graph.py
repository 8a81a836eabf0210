"""Writes an ONNX graph node by node, with its weights in a file beside it that is streamed later."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.layout import Entry, Part
from converters.targets.onnx.integer_weights import RowForm
from converters.tensors.transposed import floats, transposed
from edge_llama.files.formats import F16, F32, Format

if TYPE_CHECKING:
    from numpy.typing import NDArray

STANDARD, MICROSOFT = "", "com.microsoft"
ALIGNMENT = 64
MODEL, DATA = "model.onnx", "model.onnx.data"
"""What a graph and the file of its weights are called in most folders."""
FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
INT4, INT8, INT32, INT64, UINT8 = (
    ir.DataType.INT4,
    ir.DataType.INT8,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT8,
)
_IR_VERSIONS = {21: 10, 23: 11}
"""The oldest that an operator set needs, so that as many programs as possible read the file."""


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """Type and shape of a value behind an operator of Microsoft's, which ONNX itself can't infer."""

    shape: Sequence[int | str]
    dtype: ir.DataType = FLOAT


class DataFile:
    """The file in which weights lie: of one graph, or of several that share them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._entries: list[Entry] = []
        self._places: dict[tuple[str, Format], int] = {}
        self._at = 0

    def place(self, name: str, tensor: Tensor, format_: Format) -> tuple[int, int]:
        """Where the bytes of ``tensor`` in ``format_`` begin, and how many they are: the same lie there once."""
        entry, key = Entry(tensor.renamed(name), format_), (tensor.name, format_)
        if key not in self._places:
            self._places[key] = self._at
            self._at += entry.stored_bytes(ALIGNMENT)
            self._entries.append(entry)
        return self._places[key], entry.nbytes

    def part(self, folder: str = "") -> Part:
        """The file in ``folder``."""
        return Part(_within(folder, self.name), b"", tuple(self._entries), ALIGNMENT)


class Graph:
    """A graph to which nodes are added. Each value has the name of its node."""

    def __init__(self, name: str, data: DataFile, opset: int = 21) -> None:
        self._name = name
        self.data = data
        self._opset = opset
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: ir.DataType = FLOAT) -> ir.Value:
        """What is given to the graph."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._inputs.append(value)
        return value

    def optional_input(self, name: str, shape: Sequence[int | str], default: "NDArray[Any]") -> ir.Value:
        """An input that need not be given; it is ``default`` then."""
        tensor = ir.tensor(default, name=name)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._initializers[name] = value
        self._inputs.append(value)
        return value

    def kept_input(self, name: str, shape: Sequence[int | str], of: str) -> ir.Value:  # noqa: ARG002 - for integers
        """What an earlier run gave by :meth:`kept_output`; ``of`` is what measured ranges call it."""
        return self.input(name, shape)

    def kept_output(self, value: ir.Value, name: str, shape: Sequence[int | str], of: str) -> ir.Value:  # noqa: ARG002
        """Give ``value`` for a later run, and what it then is."""
        self.output(self.op("Identity", value, name=name), shape)
        return value

    def kept_constant(self, name: str, values: "NDArray[np.float32]", of: str) -> ir.Value:  # noqa: ARG002
        """``values`` as if an earlier run had given them."""
        return self.constant(name, values)

    def matrix(self, name: str, tensor: Tensor, form: RowForm) -> ir.Value:  # noqa: ARG002 - for integers
        """A matrix of (outputs, inputs) as (inputs, outputs)."""
        columns = transposed(floats(tensor)).renamed(f"{tensor.name} transposed")  # a table may be stored both ways
        return self.weight(name, columns, F32)

    def output(self, value: ir.Value, shape: Sequence[int | str]) -> None:
        """Give ``value``, float32, to who runs the graph."""
        value.shape, value.type = ir.Shape(shape), ir.TensorType(FLOAT)
        self._outputs.append(value)

    def weight(
        self, name: str, tensor: Tensor, format_: Format, shape: Sequence[int] | None = None, *, transpose: bool = False
    ) -> ir.Value:
        """A tensor of the checkpoint, stored in ``format_`` (f32 or f16), as float32.

        ``transpose``: a matrix's columns become its rows. ``shape``: if the graph sees the numbers in another.
        """
        tensor = transposed(tensor) if transpose else tensor
        if format_ is F32:
            return self.stored(name, tensor, F32, shape or tensor.shape, FLOAT)
        value = self.stored(name, tensor, F16, shape or tensor.shape, FLOAT16)
        return self.op("Cast", value, name=f"{name}.as_f32", to=int(FLOAT))

    def stored(self, name: str, tensor: Tensor, format_: Format, shape: Sequence[int], dtype: ir.DataType) -> ir.Value:
        """The bytes of ``tensor`` in ``format_``, as the graph sees them; asked for again, the same bytes."""
        if name in self._initializers:
            return self._initializers[name]
        at, nbytes = self.data.place(name, tensor, format_)
        data = ir.ExternalTensor(self.data.name, at, nbytes, dtype, shape=ir.Shape(shape), name=name)
        return self._initializer(name, data, dtype, shape)

    def constant(self, name: str, values: "NDArray[Any] | Sequence[int] | float") -> ir.Value:
        """Numbers that are part of the graph: integers as int64, others as float32."""
        numbers = np.asarray(values)
        numbers = numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.float32)
        tensor = ir.tensor(numbers, name=name)
        return self._initializer(name, tensor, tensor.dtype, numbers.shape)

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        name: str,
        domain: str = STANDARD,
        info: ValueInfo | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """The output of a node of ``kind``; None stands for an input that is left out."""
        return self.ops(kind, *inputs, names=(name,), domain=domain, infos=[info], **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: ir.Value | None,
        names: Sequence[str],
        domain: str = STANDARD,
        infos: Sequence[ValueInfo | None] = (),
        **attributes: Any,
    ) -> list[ir.Value]:
        """The outputs of a node that has several; "" for one that nothing reads."""
        node = ir.node(kind, list(inputs), attributes, domain=domain, num_outputs=len(names), name=names[0])
        for value, name, known in zip(node.outputs, names, infos or [None] * len(names), strict=True):
            value.name = name
            if known:
                value.shape, value.type = ir.Shape(known.shape), ir.TensorType(known.dtype)
        self._nodes.append(node)
        return list(node.outputs)

    def part(self, file: str, folder: str = "") -> Part:
        """The graph as ``file`` in ``folder``, where its data lies too."""
        domains = {node.domain for node in self._nodes} | {STANDARD}
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={domain: self._opset if domain == STANDARD else 1 for domain in sorted(domains)},
            name=self._name,
        )
        model = ir.Model(graph, ir_version=_IR_VERSIONS[self._opset], producer_name="edge-llama")
        return Part(_within(folder, file), ir.to_proto(model).SerializeToString(), ())

    def _initializer(self, name: str, tensor: Any, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
        self._initializers[name] = value
        return value


def _within(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file

"""Writes an ONNX graph node by node, with its weights in a file beside it that is streamed later."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.layout import Entry, Part
from edge_llama.formats import F16, F32, Format

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 21
IR_VERSION = 10
ALIGNMENT = 64
_TYPES = {F32: ir.DataType.FLOAT, F16: ir.DataType.FLOAT16}


class Graph:
    """A graph that grows. Each value has the name of the node that makes it."""

    def __init__(self, name: str, data_file: str) -> None:
        self._name = name
        self._data_file = data_file
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._initializers: list[ir.Value] = []
        self._entries: list[Entry] = []
        self._at = 0

    def input(self, name: str, shape: Sequence[int | str]) -> ir.Value:
        """An input of float32."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self._inputs.append(value)
        return value

    def weight(self, name: str, tensor: Tensor, format_: Format) -> ir.Value:
        """A tensor of the checkpoint, stored in ``format_``, as float32."""
        entry = Entry(tensor.renamed(name), format_)
        stored = ir.ExternalTensor(
            self._data_file, self._at, entry.nbytes, _TYPES[format_], shape=ir.Shape(tensor.shape), name=name
        )
        self._at += entry.stored_bytes(ALIGNMENT)
        self._entries.append(entry)
        value = self._initializer(name, stored, _TYPES[format_], tensor.shape)
        return value if format_ is F32 else self.op("Cast", value, name=f"{name}.as_f32", to=int(ir.DataType.FLOAT))

    def constant(self, name: str, values: "NDArray[Any] | Sequence[int] | float") -> ir.Value:
        """Numbers that are part of the graph: integers as int64, others as float32."""
        numbers = np.asarray(values)
        numbers = numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.float32)
        tensor = ir.tensor(numbers, name=name)
        return self._initializer(name, tensor, tensor.dtype, numbers.shape)

    def op(self, kind: str, *inputs: ir.Value, name: str, **attributes: Any) -> ir.Value:
        """The output of a node of ``kind``."""
        return self.ops(kind, *inputs, names=(name,), **attributes)[0]

    def ops(self, kind: str, *inputs: ir.Value, names: Sequence[str], **attributes: Any) -> list[ir.Value]:
        """The outputs of a node that has several."""
        node = ir.node(kind, list(inputs), attributes, num_outputs=len(names), name=names[0])
        for value, name in zip(node.outputs, names, strict=True):
            value.name = name
        self._nodes.append(node)
        return list(node.outputs)

    def parts(self, folder: str, output: ir.Value, shape: Sequence[int | str], producer: str) -> list[Part]:
        """The model's file and its data's, with ``output`` as the only output."""
        output.shape, output.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            self._inputs,
            [output],
            nodes=self._nodes,
            initializers=self._initializers,
            opset_imports={"": OPSET},
            name=self._name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name=producer)
        file = self._data_file.removesuffix(".data")
        prefix = f"{folder}/" if folder else ""
        return [
            Part(prefix + file, ir.to_proto(model).SerializeToString(), ()),
            Part(prefix + self._data_file, b"", tuple(self._entries), ALIGNMENT),
        ]

    def _initializer(self, name: str, tensor: Any, type_: ir.DataType, shape: Sequence[int]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(type_), const_value=tensor)
        self._initializers.append(value)
        return value

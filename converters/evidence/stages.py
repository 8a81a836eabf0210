"""Graphs whose weights are given anew with each run, in float32: a session knows a form, not a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from converters.targets.onnx.graph import MODEL, DataFile, Graph
from converters.targets.onnx.microsoft import MicrosoftOps
from edge_llama.errors import CheckpointError, EngineError
from edge_llama.files.formats import F32, Format
from quant.kernels import NonFiniteError, recode
from quant.onnx_recipe import Form

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]
_AT_ONCE = 1 << 22  # weights that are read and widened at once: 16 MB in float32


class GivenWeights(Graph):
    """A graph without weights: each of them is an input, and ``weights`` has by these inputs' names what belongs there.

    ``inputs_of`` has by the name of each matrix what it multiplies.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, DataFile(""), Operators.opset)
        self.weights: dict[str, Tensor] = {}
        self.inputs_of: dict[str, ir.Value] = {}
        self._given: dict[str, ir.Value] = {}
        self._shown: set[str] = set()

    def stored(self, name: str, tensor: Tensor, format_: Format, shape: Sequence[int], dtype: ir.DataType) -> ir.Value:  # noqa: ARG002 - all are float32
        """An input for ``tensor``; asked for again, the same."""
        if name not in self._given:
            self.weights[name] = tensor
            self._given[name] = self.input(name, shape, dtype)
        return self._given[name]

    def show(self, value: ir.Value) -> str:
        """Have ``value`` among the outputs; its name."""
        name = str(value.name)
        if name not in self._shown and value.producer() is not None:
            assert value.shape is not None, name  # noqa: S101 - by its node
            self.output(value, [size if isinstance(size, int) else str(size) for size in value.shape])
            self._shown.add(name)
        return name


class Operators(MicrosoftOps):
    """The fast ones, that tell what each matrix multiplies: queries, keys and values are products of their own."""

    joins_qkv = False

    def product(self, x: ir.Value, matrix: Tensor, form: Form, name: str, output: str, accuracy: int = 0) -> ir.Value:
        """``x`` times the transposed ``matrix``."""
        assert isinstance(self.graph, GivenWeights)  # noqa: S101 - it is written for these
        self.graph.inputs_of[matrix.name] = x
        return super().product(x, matrix, form, name, output, accuracy)


class Stage:
    """A graph in a session of ONNX Runtime on the CPU. EngineError if it can't be loaded, or fails.

    Nothing is kept between two runs: memory is what is given, what comes out, and what lies between.
    """

    def __init__(self, graph: GivenWeights, threads: int) -> None:
        self.weights: Mapping[str, Tensor] = graph.weights
        try:
            self._session = _session(graph.part(MODEL).header, threads)
        except Exception as error:  # its errors share no class but this
            raise _failed(error) from error

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> list[Floats]:
        """The ``outputs``, of inputs and weights by their names."""
        try:
            found: list[Floats] = self._session.run(list(outputs), dict(inputs))
        except Exception as error:
            raise _failed(error) from error
        return found


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime  # noqa: PLC0415 - loads native code

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # which would keep the most that any run took
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # between runs the threads are others'
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _failed(error: Exception) -> EngineError:
    told = " ".join(str(error).split())[:500]
    return EngineError(f"ONNX Runtime failed at a layer: {told}", remedy="if memory ran out, close what else has it")


def read(tensor: Tensor, path: Path) -> Floats:
    """All of ``tensor`` in float32. CheckpointError for NaN or infinity, which names ``path``."""
    found = np.empty(tensor.shape, np.float32)
    rows = found.reshape(-1, tensor.columns)
    step = max(_AT_ONCE // tensor.columns // tensor.step, 1) * tensor.step
    for start in range(0, tensor.rows, step):
        stop = min(start + step, tensor.rows)
        rows[start:stop] = read_rows(tensor, start, stop, path)
    return found


def read_rows(tensor: Tensor, start: int, stop: int, path: Path) -> Floats:
    """Rows ``start`` to ``stop`` in float32, ``(stop - start, columns)``; as :func:`read`."""
    try:
        return recode(tensor.read(start, stop), tensor.format, F32).view(np.float32)
    except NonFiniteError as error:
        raise CheckpointError(
            f"{path}: tensor {tensor.name!r}: {error}", remedy="it is damaged: download or convert it again"
        ) from error


def read_all(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Floats]:
    """Each of ``tensors`` in float32; as :func:`read`."""
    return {name: read(tensor, path) for name, tensor in tensors.items()}

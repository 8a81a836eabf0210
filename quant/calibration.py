"""Runs a tower's ONNX graph on samples, to see which numbers its values are."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import ArtifactError
from quant.ranges import IDENTIFYING, Ranges, fingerprint

if TYPE_CHECKING:
    import onnx_ir as ir

_ENDS = ("ReduceMin", "ReduceMax")
_AGAIN = "convert the checkpoint again"


def measured(path: Path, samples: Iterable[Mapping[str, NDArray[np.float32]]], *, threads: int) -> Ranges:
    """The least and the greatest number of every float value in the graph at ``path``, inputs included.

    The graph runs as it is, on ``samples`` of its inputs, and gives two numbers more for each value: so it takes no
    more memory than usual. ArtifactError if ONNX Runtime refuses it, or a value is not finite.
    """
    import onnx_ir as ir  # noqa: PLC0415 - a third of a second

    try:
        model = ir.load(path)
        vectors = [model.graph.initializers[name].const_value for name in IDENTIFYING]
        tower = fingerprint(vector.numpy() for vector in vectors if vector is not None)
        names = _watch(model)
        session = _session(path, ir.to_proto(model).SerializeToString(), threads)
    except Exception as error:  # those of onnx_ir and of ONNX Runtime share no class but this
        raise ArtifactError(f"{path}: can't be measured: {error}", remedy=_AGAIN) from error
    outputs = [f"{name}.{end}" for end in _ENDS for name in names]
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    count = 0
    for sample in samples:
        found = np.array(session.run(outputs, dict(sample)), np.float64).reshape(2, -1)
        finite = np.isfinite(found).all(axis=0)
        if not finite.all():
            raise ArtifactError(f"{path}: {names[finite.argmin()]!r} is NaN or infinite", remedy=_AGAIN)
        low, high = np.minimum(low, found[0]), np.maximum(high, found[1])
        count += 1
    return Ranges(tower, count, dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True)))


def _session(path: Path, model: bytes, threads: int) -> Any:
    """The graph ``model``, whose weights lie beside ``path``."""
    import onnxruntime  # noqa: PLC0415 - loads native code

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _watch(model: "ir.Model") -> list[str]:
    """Have ``model`` give the least and the greatest of each float value too; these values' names."""
    import onnx_ir as ir  # noqa: PLC0415
    from onnx_ir.passes.common import ShapeInferencePass  # noqa: PLC0415

    ShapeInferencePass()(model)
    graph = model.graph
    constant = set(graph.initializers)
    values = list(graph.inputs)
    for node in graph:
        if all(value is None or value.name in constant for value in node.inputs):
            constant |= {str(value.name) for value in node.outputs}  # a weight that becomes float32
        else:
            values += node.outputs
    watched = [value for value in values if value.dtype is ir.DataType.FLOAT]
    for value in watched:
        for end in _ENDS:
            node = ir.node(end, [value], {"keepdims": 0}, name=f"{value.name}.{end}")
            node.outputs[0].name = node.name
            node.outputs[0].shape, node.outputs[0].type = ir.Shape(()), ir.TensorType(ir.DataType.FLOAT)
            graph.append(node)
            graph.outputs.append(node.outputs[0])
    return [str(value.name) for value in watched]

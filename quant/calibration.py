"""Which values an ONNX graph computes on samples: the ranges that integers must reach."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.onnx_runtime import runtime
from edge_llama.errors import ArtifactError
from quant.ranges import Ranges

_ENDS = ("ReduceMin", "ReduceMax")


def measure(path: Path, samples: Iterable[Mapping[str, NDArray[np.float32]]], *, threads: int) -> dict[str, Any]:
    """The least and the greatest number of every float value of the graph at ``path``, inputs included, by name.

    The graph runs as it is, with two numbers more for each value: it takes no more memory than usual. ``samples`` are
    its inputs. ArtifactError if ONNX Runtime refuses it, or a value is not finite.
    """
    names, model = _watched(path)
    lib = runtime()
    options = lib.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        session = lib.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class but this
        raise ArtifactError(f"{path}: ONNX Runtime refuses it: {error}", remedy="convert it again") from error
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    outputs = [f"{name}.{end}" for end in _ENDS for name in names]
    for sample in samples:
        found = np.array(session.run(outputs, dict(sample)), np.float64).reshape(2, -1)
        if not np.isfinite(found).all():
            name = names[int(np.flatnonzero(~np.isfinite(found).all(axis=0))[0])]
            raise ArtifactError(f"{path}: {name!r} is NaN or infinite", remedy="give other images, or convert again")
        low, high = np.minimum(low, found[0]), np.maximum(high, found[1])
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def _watched(path: Path) -> tuple[list[str], bytes]:
    """The graph with the least and the greatest of each float value among its outputs, and these values' names."""
    import onnx_ir as ir  # noqa: PLC0415 - a third of a second
    from onnx_ir.passes.common import ShapeInferencePass  # noqa: PLC0415

    model = ir.load(path)
    ShapeInferencePass()(model)
    graph = model.graph
    constant = set(graph.initializers)
    values = list(graph.inputs)
    for node in graph:
        if all(value is None or value.name in constant for value in node.inputs):
            constant |= {str(value.name) for value in node.outputs}  # a weight, cast
        else:
            values += node.outputs
    watched = [value for value in values if value.dtype is ir.DataType.FLOAT]
    for value in watched:
        for end in _ENDS:
            node = ir.node(end, [value], {"keepdims": 0}, name=f"{value.name}.{end}")
            node.outputs[0].name = f"{value.name}.{end}"
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = ir.Shape(())
            graph.append(node)
            graph.outputs.append(node.outputs[0])
    return [str(value.name) for value in watched], ir.to_proto(model).SerializeToString()

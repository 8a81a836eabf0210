"""Runs a tower's ONNX graph on samples, to see which numbers its values are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import ArtifactError, EngineError, InputError
from quant.ranges import IDENTIFYING, Ranges, fingerprint

if TYPE_CHECKING:
    import onnx_ir as ir

_ENDS = ("ReduceMin", "ReduceMax")
_AGAIN = "convert the checkpoint again"
Fail = Callable[[str], InputError]
"""Makes the error about what is measured, of what is wrong with it."""


def measured(path: Path, samples: Iterable[Mapping[str, NDArray[np.float32]]], *, threads: int) -> Ranges:
    """The least and the greatest number of every float value in the vision tower at ``path``, inputs included.

    The graph runs as it is, on ``samples`` of its inputs. ArtifactError if it is none, or a value is not finite;
    EngineError if ONNX Runtime refuses it or fails.
    """
    watched = Watched(path, threads)
    for sample in samples:
        watched.run(sample)
    return Ranges(fingerprint(watched.vectors(IDENTIFYING)), watched.runs, watched.values())


class Watched:
    """A graph that tells of each of its float values the least and the greatest number, over all runs.

    It gives two numbers more for each value: so it takes no more memory than usual.
    """

    def __init__(self, path: Path, threads: int, fail: Fail | None = None, *, keep: tuple[str, ...] = ()) -> None:
        """``fail`` makes the error of what is wrong with the graph at ``path``; None: ArtifactError, which names that.

        ``keep``: of values whose names end so each run's ends are kept.

        EngineError if ONNX Runtime refuses it, or has not memory enough.
        """
        import onnx_ir as ir  # noqa: PLC0415 - a third of a second

        self._fail: Fail = fail or (lambda told: ArtifactError(f"{path}: {told}", remedy=_AGAIN))
        try:
            model = ir.load(path)
            self._initializers = model.graph.initializers
            self._names = _watch(model)
            content = ir.to_proto(model).SerializeToString()
        except Exception as error:  # those of onnx_ir share no class but this
            raise self._fail(f"can't be measured: {error}") from error
        try:
            self._session = _session(path, content, threads)
        except Exception as error:  # nor do ONNX Runtime's
            raise _failed(error) from error
        self._ends = [f"{name}.{end}" for end in _ENDS for name in self._names]
        self._low, self._high = np.full(len(self._names), np.inf), np.full(len(self._names), -np.inf)
        self._kept = [at for at, name in enumerate(self._names) if name.endswith(keep)]
        self._by_run: list[NDArray[np.float32]] = []
        self.runs = 0

    def vectors(self, names: Iterable[str]) -> list[NDArray[np.float32]]:
        """Initializers by their names. ArtifactError if there is no such."""
        found = []
        for name in names:
            value = self._initializers.get(name)
            if value is None or value.const_value is None:
                raise self._fail(f"can't be measured: it has no {name!r}")
            found.append(value.const_value.numpy())
        return found

    def run(self, sample: Mapping[str, NDArray[np.float32]], outputs: Sequence[str] = ()) -> list[NDArray[np.float32]]:
        """Run it on inputs by their names; those of its own ``outputs``.

        The graph's own error (ArtifactError) if a value is not finite, EngineError if ONNX Runtime fails.
        """
        try:
            found = self._session.run([*self._ends, *outputs], dict(sample))
        except Exception as error:
            raise _failed(error) from error
        ends = np.array(found[: len(self._ends)], np.float64).reshape(2, -1)
        finite = np.isfinite(ends).all(axis=0)
        if not finite.all():
            name = self._names[int(finite.argmin())]
            raise self._fail(f"{name!r} is NaN or infinite")
        self._low, self._high = np.minimum(self._low, ends[0]), np.maximum(self._high, ends[1])
        self._by_run.append(ends[:, self._kept].astype(np.float32))
        self.runs += 1
        return list(found[len(self._ends) :])

    def values(self) -> dict[str, tuple[float, float]]:
        """The ends of each value by its name, over all runs."""
        return dict(zip(self._names, zip(self._low.tolist(), self._high.tolist(), strict=True), strict=True))

    def by_run(self) -> dict[str, NDArray[np.float32]]:
        """The ends of each value that is kept, by its name, float32 (2, runs)."""
        names = [self._names[at] for at in self._kept]
        return dict(zip(names, np.stack(self._by_run, axis=-1).swapaxes(0, 1), strict=True))


def _failed(error: Exception) -> EngineError:
    told = " ".join(str(error).split())[:500]
    return EngineError(f"ONNX Runtime failed at measuring: {told}", remedy="if memory ran out, close what else has it")


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

"""Which nodes of ONNX graphs Core ML would take: ``python scripts/coreml_usability.py FOLDER...`` prints a table.

It is ONNX Runtime's own estimate (``onnxruntime.tools.check_onnx_model_mobile_usability``), by the operators that its
provider knows as an ML program, and runs anywhere. Notes on single operators are not checked: a Mac may take less.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.tools.mobile_helpers.usability_checker import check_coreml_partitions
from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

_OPERATORS = "coreml_supported_mlprogram_ops.md"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a graph's ``nodes`` so many are taken, in ``partitions``; ``unknown`` are operators that it hasn't."""

    nodes: int
    taken: int
    partitions: int
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.taken:,} of {self.nodes:,} in {self.partitions:,}"


def estimates(graph: Path) -> tuple[Estimate, Estimate]:
    """For a graph as it is, of which inputs' sizes may be open, and as if all were fixed."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "model.onnx"
        optimize_model(graph, optimized, use_external_initializers=True)  # what every provider is asked about
        model = ModelProtoWithShapeInfo(optimized).model_with_shape_info
        return _estimate(model, is_fixed=False), _estimate(model, is_fixed=True)


def _estimate(model: onnx.ModelProto, *, is_fixed: bool) -> Estimate:
    found: Any = check_coreml_partitions(model, not is_fixed, _OPERATORS)
    unknown = tuple(sorted(name.removeprefix("ai.onnx:") for name in found.unsupported_ops))
    return Estimate(found.num_nodes, found.num_supported_nodes, found.num_partitions, unknown)


def table(folders: list[Path]) -> str:
    """A row for each folder's ``model.onnx``."""
    lines = ["| graph | as it is | with fixed sizes | operators that it does not take |", "|---|---|---|---|"]
    for folder in folders:
        is_, fixed = estimates(folder / "model.onnx")
        lines.append(f"| {folder.name} | {is_} | {fixed} | {', '.join(fixed.unknown) or 'none'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]]))

"""The operator sets that a graph may be written in: a new one is a file and a line here."""

from collections.abc import Mapping

from converters.targets.onnx.microsoft import MicrosoftOps
from converters.targets.onnx.operator_set import OperatorSet
from converters.targets.onnx.standard import StandardOps

OPERATOR_SETS: Mapping[bool, type[OperatorSet]] = {False: MicrosoftOps, True: StandardOps}
"""By whether the graph is portable: in standard operators alone."""

"""What a decoder's graph asks of the operators that it is written in: a new set is a file and a line in ``operators``.

Activations are float32 ``(batch, sequence, width)``; a matrix is ``(outputs, inputs)``. Every method writes nodes into
``graph``, the last of which has the name that is given, and returns its output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.onnx.graph import Graph, ValueInfo
from quant.nbits import Grid
from quant.onnx_recipe import Form


@dataclass(frozen=True, slots=True)
class Experts:
    """``gate_up``: ``(experts, 2 * width, inputs)``, their rows alternate; ``down``: ``(experts, inputs, width)``."""

    gate_up: Tensor
    down: Tensor
    form: Grid


Mixture = Callable[[ir.Value, ir.Value, Experts, str], ir.Value]
"""Of rows ``(rows, width)``, router logits ``(rows, experts)``, experts and a name: the best expert's outputs."""


class OperatorSet(Protocol):
    """Operators for a graph; ``eps`` is that of its norms."""

    opset: ClassVar[int]
    """The version of the standard's operators that the graph declares."""

    def __init__(self, graph: Graph, eps: float) -> None: ...

    @property
    def graph(self) -> Graph:
        """Where nodes are written to."""

    @property
    def shares_cache(self) -> bool:
        """Whether past and present may be one buffer, as long as the context."""

    @property
    def joins_qkv(self) -> bool:
        """Whether queries, keys and values are one product where they can be."""

    @property
    def mixture(self) -> Mixture | None:
        """A mixture of experts in one operator, if there is one."""

    def begin(self, ids: ir.Value, mask: ir.Value) -> None:
        """Take the graph's inputs, ``(batch, sequence)`` and ``(batch, total)``."""

    @property
    def positions(self) -> ir.Value:
        """Those of the ids, int64 ``(sequence,)``: the last of all."""

    @property
    def all_positions(self) -> ir.Value:
        """Those of the cache and of the ids, int64 ``(total,)``."""

    def embedding(self, ids: ir.Value, table: Tensor, form: Form, name: str) -> ir.Value:
        """The rows ``ids`` of ``table``."""

    def linear(
        self,
        x: ir.Value,
        matrix: Tensor,
        form: Form,
        name: str,
        bias: Tensor | None = None,
        *,
        is_precise: bool = False,
    ) -> ir.Value:
        """``x`` times the transposed ``matrix``, plus ``bias``; ``is_precise``: ``x`` is not rounded to 8 bits."""

    def product(self, x: ir.Value, matrix: Tensor, form: Form, name: str, output: str) -> ir.Value:
        """``x`` times the transposed ``matrix``, which is stored under ``name``; the result is called ``output``."""

    def biased(self, x: ir.Value, bias: Tensor, name: str, output: str) -> ir.Value:
        """``x`` plus ``bias``, which is stored under ``name``."""

    def logits(self, x: ir.Value, head: Tensor, form: Form, name: str) -> ir.Value:
        """``x`` times the transposed ``head`` of ``(tokens, width)``."""

    def norm(self, x: ir.Value, weight: Tensor, name: str) -> ir.Value:
        """RMS norm."""

    def added_norm(self, x: ir.Value, more: ir.Value, weight: Tensor, name: str) -> tuple[ir.Value, ir.Value]:
        """The RMS norm of ``x + more``, and the sum."""

    def head_norm(self, x: ir.Value, heads: int, head_dim: int, name: str, weight: Tensor | None = None) -> ir.Value:
        """RMS norm of each head, whose ``weight`` they share."""

    def scaled(self, x: ir.Value, factor: float, name: str) -> ir.Value:
        """``x`` times a number."""

    def swiglu(self, gate: ir.Value, up: ir.Value, name: str) -> ir.Value:
        """``silu(gate) * up``."""

    def geglu(self, gate: ir.Value, up: ir.Value, name: str) -> ir.Value:
        """``gelu(gate) * up``, of which the first is approximated by tanh."""

    def attention(
        self,
        qkv: Sequence[ir.Value | None],
        past: tuple[ir.Value, ir.Value],
        name: str,
        *,
        heads: tuple[int, int],
        head_dim: int,
        present: tuple[str, str],
        rotary: tuple[ir.Value, ir.Value] | None = None,
        bias: ir.Value | None = None,
        scale: float | None = None,
        window: int | None = None,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Causal attention of ``heads`` query and KV heads; its output, and the cache with the new positions.

        ``qkv``: the three, or all in the first; ``rotary``: cosines and sines for RoPE by halves of a head,
        ``(n_ctx, head_dim / 2)``; ``bias`` is added to the scores, ``(1, 1, sequence, total)``, which are multiplied
        by ``scale``, by default ``head_dim ** -0.5``. A query sees the last ``window`` keys, its own among them.
        """

    def rope(
        self,
        x: ir.Value,
        rotary: tuple[ir.Value, ir.Value],
        heads: int,
        head_dim: int,
        name: str,
        *,
        by_halves: bool = False,
    ) -> ir.Value:
        """RoPE by neighbouring pairs or by halves of a head.

        ``rotary``: these positions' cosines and sines, ``(sequence, head_dim / 2)``.
        """

    def rotated(
        self, real: ir.Value, imaginary: ir.Value, tables: tuple[ir.Value, ir.Value], name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Complex numbers times others of length 1, whose parts ``tables`` are: cosines and sines."""

    def op(
        self, kind: str, *inputs: ir.Value | None, name: str, **attributes: int | float | str | list[int]
    ) -> ir.Value:
        """The output of a standard node."""

    def reshape(self, x: ir.Value, name: str, *shape: int, info: ValueInfo | None = None) -> ir.Value:
        """``x`` in another shape, where 0 keeps a size."""

    def reshape_like(self, x: ir.Value, like: ir.Value, name: str, columns: int) -> ir.Value:
        """Rows of ``columns`` in the shape of ``like``."""

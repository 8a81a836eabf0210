"""A decoder in standard operators alone (opset 21), for runtimes that have no others.

Weights of 4 and 8 bits are DequantizeLinear before MatMul, which runtimes fuse; the cache is concatenated with what is
new.
"""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.onnx.graph import FLOAT, INT4, INT8, UINT8, Graph, ValueInfo
from converters.targets.onnx.ops import NEVER, ROWS, Ops, sizes
from converters.tensors.split import row_blocks
from converters.tensors.transposed import floats, transposed
from edge_llama.files.formats import F32
from quant.nbits import Grid
from quant.onnx_recipe import Form


class StandardOps(Ops):
    """The portable ones."""

    def __init__(self, graph: Graph, eps: float) -> None:
        super().__init__(graph, eps)
        self._kept: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._masks: dict[int | None, ir.Value] = {}

    def embedding(self, ids: ir.Value, table: Tensor, form: Form, name: str) -> ir.Value:
        """The rows ``ids`` of ``table``: those are dequantized, not the table."""
        graph, info = self.graph, ValueInfo((*ROWS, table.columns))
        if not isinstance(form, Grid):
            return self.op("Gather", graph.weight(f"{name}.weight", table, form), ids, name=name, info=info, axis=0)
        form = Grid(8, form.block)  # rows of half bytes can't be gathered
        n_blocks = table.columns // form.block
        numbers = graph.stored(f"{name}.weight", table, form.array("numbers"), table.shape, UINT8)
        scales = graph.stored(f"{name}.scales", table, form.array("scales"), (table.rows, n_blocks, 1), FLOAT)
        rows = self.op("Gather", numbers, ids, name=f"{name}.numbers", axis=0)
        rows = self.op("Cast", rows, name=f"{name}.floats", to=int(FLOAT))
        rows = self.op("Sub", rows, graph.constant(f"{name}.zero", 128.0), name=f"{name}.centred")
        blocks = self.reshape(rows, f"{name}.blocks", 0, 0, n_blocks, form.block)
        found = self.op("Gather", scales, ids, name=f"{name}.block_scales", axis=0)
        scaled = self.op("Mul", blocks, found, name=f"{name}.scaled")
        return self.reshape(scaled, name, 0, 0, table.columns, info=info)

    def product(self, x: ir.Value, matrix: Tensor, form: Form, name: str, output: str) -> ir.Value:
        """``x`` times the transposed ``matrix``, which is stored under ``name``; the result is called ``output``."""
        if isinstance(form, Grid):
            weight = self._dequantized(matrix, form, name)
        else:
            weight = self.graph.weight(f"{name}.weight", _transposed(matrix), form)
        return self.op("MatMul", x, weight, name=output, info=ValueInfo((*sizes(x)[:-1], matrix.rows)))

    def _dequantized(self, matrix: Tensor, form: Grid, name: str) -> ir.Value:
        """The matrix transposed, ``(inputs, outputs)``, as float32."""
        graph, n_blocks = self.graph, matrix.columns // form.block
        bits = 8 if matrix.rows % 2 else form.bits  # two numbers of a row share a byte
        form = Grid(bits, form.block)
        blocks = row_blocks(_transposed(matrix), form.block)
        shape, dtype = (matrix.columns, matrix.rows), INT4 if form.bits == 4 else INT8
        numbers = graph.stored(f"{name}.weight", blocks, form.array("numbers", is_transposed=True), shape, dtype)
        scales = form.array("scales", is_transposed=True)
        scale = graph.stored(f"{name}.scales", blocks, scales, (n_blocks, matrix.rows), FLOAT)
        return graph.op(
            *("DequantizeLinear", numbers, scale),
            name=f"{name}.dequantized",
            info=ValueInfo(shape),
            axis=0,
            block_size=form.block,
        )

    def norm(self, x: ir.Value, weight: Tensor, name: str) -> ir.Value:
        """RMS norm."""
        gamma = self.graph.weight(f"{name}.weight", weight, F32)
        return self.op("Mul", self._unit(x, name), gamma, name=name, info=ValueInfo(sizes(x)))

    def _unit(self, x: ir.Value, name: str) -> ir.Value:
        """``x`` divided by the root of its mean square."""
        axes = self.graph.constant(f"{name}.axes", [-1])
        mean = self.op("ReduceMean", self.op("Mul", x, x, name=f"{name}.squares"), axes, name=f"{name}.mean")
        mean = self.op("Add", mean, self.graph.constant(f"{name}.epsilon", self.eps), name=f"{name}.above_zero")
        return self.op("Div", x, self.op("Sqrt", mean, name=f"{name}.root"), name=f"{name}.unit")

    def added_norm(self, x: ir.Value, more: ir.Value, weight: Tensor, name: str) -> tuple[ir.Value, ir.Value]:
        """The RMS norm of ``x + more``, and the sum."""
        total = self.op("Add", x, more, name=f"{name}.sum", info=ValueInfo(sizes(x)))
        return self.norm(total, weight, name), total

    def swiglu(self, gate: ir.Value, up: ir.Value, name: str) -> ir.Value:
        """``silu(gate) * up``."""
        silu = self.op("Mul", gate, self.op("Sigmoid", gate, name=f"{name}.sigmoid"), name=f"{name}.silu")
        return self.op("Mul", silu, up, name=name, info=ValueInfo(sizes(gate)))

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
        """Step by step; the cache is concatenated."""
        n_head, n_head_kv = heads
        q, k, v = self._apart(qkv, heads, head_dim, name)
        q, k, v = (
            self._heads(value, count, head_dim, f"{name}.{part}")
            for value, count, part in ((q, n_head, "q"), (k, n_head_kv, "k"), (v, n_head_kv, "v"))
        )
        if rotary is not None:
            q, k = (self._by_halves(x, rotary, f"{name}.{part}") for x, part in ((q, "q"), (k, "k")))
        key = self.op("Concat", past[0], k, name=present[0], axis=2)
        value = self.op("Concat", past[1], v, name=present[1], axis=2)
        group = n_head // n_head_kv
        q = self.reshape(q, f"{name}.q.groups", 0, n_head_kv, group, -1, head_dim)
        keys = self.op("Transpose", key, name=f"{name}.keys", perm=[0, 1, 3, 2])
        axis = self.graph.constant("attention.group_axis", [2])
        keys, values = (
            self.op("Unsqueeze", cache, axis, name=f"{name}.{part}")
            for cache, part in ((keys, "shared_keys"), (value, "shared_values"))
        )
        scores = self.op("MatMul", q, keys, name=f"{name}.scores")
        factor = self.graph.constant("attention.scale", head_dim**-0.5 if scale is None else scale)
        scores = self.op("Mul", scores, factor, name=f"{name}.scaled")
        scores = self.op("Add", scores, self._causal(window), name=f"{name}.causal")
        if bias is not None:
            scores = self.op("Add", scores, bias, name=f"{name}.biased")
        weights = self.op("Softmax", scores, name=f"{name}.weights", axis=-1)
        mixed = self.op("MatMul", weights, values, name=f"{name}.by_groups")
        mixed = self.op("Transpose", mixed, name=f"{name}.in_rows", perm=[0, 3, 1, 2, 4])
        info = ValueInfo((*ROWS, n_head * head_dim))
        return self.reshape(mixed, name, 0, 0, n_head * head_dim, info=info), key, value

    def _apart(
        self, qkv: Sequence[ir.Value | None], heads: tuple[int, int], head_dim: int, name: str
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        first, second, third = qkv
        assert first is not None  # noqa: S101 - the queries are always there
        if second is not None and third is not None:
            return first, second, third
        widths = self.graph.constant(f"{name}.widths", [count * head_dim for count in (heads[0], heads[1], heads[1])])
        q, k, v = self.graph.ops("Split", first, widths, names=[f"{name}.{part}.apart" for part in "qkv"], axis=-1)
        return q, k, v

    def _heads(self, x: ir.Value, count: int, head_dim: int, name: str) -> ir.Value:
        split = self.reshape(x, f"{name}.split", 0, 0, count, head_dim)
        return self.op("Transpose", split, name=f"{name}.heads", perm=[0, 2, 1, 3])

    def _shared(
        self, rotary: tuple[ir.Value, ir.Value], kind: str, how: ir.Value, name: str, **attributes: Any
    ) -> tuple[ir.Value, ir.Value]:
        """Both tables after a node of ``kind``: the same for all layers."""
        key = f"{rotary[0].name}.{name}"
        if key not in self._kept:
            cos, sin = (self.op(kind, table, how, name=f"{table.name}.{name}", **attributes) for table in rotary)
            self._kept[key] = cos, sin
        return self._kept[key]

    def _by_halves(self, x: ir.Value, rotary: tuple[ir.Value, ir.Value], name: str) -> ir.Value:
        """RoPE of ``(batch, heads, sequence, head_dim)``, whose first half is real, the second imaginary."""
        rows = self._shared(rotary, "Gather", self.positions, "rows", axis=0)  # (sequence, head_dim / 2)
        return self.op("Concat", *self.rotated(*self._parts(x, name), rows, name), name=f"{name}.turned", axis=-1)

    def _parts(self, x: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        names = (f"{name}.real", f"{name}.imaginary")
        real, imaginary = self.graph.ops("Split", x, names=names, axis=-1, num_outputs=2)
        return real, imaginary

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
        """RoPE by neighbouring pairs or by halves of a head."""
        axes, parts = ([1], (head_dim,)) if by_halves else ([1, 3], (head_dim // 2, 2))
        columns = self._shared(rotary, "Unsqueeze", self.graph.constant("rotary.axes", axes), "columns")
        pairs = self.reshape(x, f"{name}.pairs", 0, 0, heads, *parts)
        both = self.rotated(*self._parts(pairs, name), columns, name)
        joined = self.op("Concat", *both, name=f"{name}.turned_pairs", axis=-1)
        return self.reshape(joined, name, 0, 0, heads * head_dim)

    def _causal(self, window: int | None) -> ir.Value:
        """``(sequence, total)``: nothing where a key is not later than the query, and in its window."""
        if window not in self._masks:
            name = "causal" if window is None else f"causal.last_{window}"
            column = self.reshape(self.positions, f"{name}.query", -1, 1)
            is_out = self.op("Greater", self.all_positions, column, name=f"{name}.is_later")
            if window is not None:
                first = self.op("Sub", column, self._number(window), name=f"{name}.before_window")
                is_early = self.op("LessOrEqual", self.all_positions, first, name=f"{name}.is_early")
                is_out = self.op("Or", is_out, is_early, name=f"{name}.is_out")
            never, zero = (self.graph.constant(f"causal.{n}", x) for n, x in (("never", NEVER), ("nothing", 0.0)))
            self._masks[window] = self.op("Where", is_out, never, zero, name=name)
        return self._masks[window]

    def head_norm(self, x: ir.Value, heads: int, head_dim: int, name: str, weight: Tensor | None = None) -> ir.Value:
        """RMS norm of each head."""
        split = self.reshape(x, f"{name}.heads", 0, 0, heads, head_dim)
        unit = self._unit(split, name)
        if weight is not None:
            gamma = self.graph.weight(f"{name}.weight", weight, F32)
            unit = self.op("Mul", unit, gamma, name=f"{name}.weighed")
        return self.reshape(unit, name, 0, 0, heads * head_dim)


def _transposed(matrix: Tensor) -> Tensor:
    """Under another name, since an embedding that is also the head is stored both ways."""
    return transposed(floats(matrix)).renamed(f"{matrix.name} transposed")

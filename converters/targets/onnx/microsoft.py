"""A decoder's parts in the operators that ONNX Runtime has fast kernels for (domain ``com.microsoft``)."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.onnx.graph import FLOAT, INT32, MICROSOFT, UINT8, ValueInfo
from converters.targets.onnx.operator_set import Experts
from converters.targets.onnx.ops import ROWS, Ops, sizes
from edge_llama.files.formats import F32
from quant.nbits import Grid
from quant.onnx_recipe import Form

_FLOAT_ACTIVATIONS, _INT8_ACTIVATIONS = 0, 4
"""accuracy_level: 4 rounds what is multiplied to 8 bits, a scale for each block. One row is read twice as fast as in
float with 4-bit weights, and ten times with 8 bits; many rows are as fast in float, with 4 bits."""
_PARTS = (*range(64, 31, -1), *range(65, 129))
"""Into how many parts a vocabulary may be divided, the best number first."""


class MicrosoftOps(Ops):
    """The fast ones."""

    opset: ClassVar[int] = 23  # for RMSNormalization
    shares_cache = True

    def embedding(self, ids: ir.Value, table: Tensor, form: Form, name: str) -> ir.Value:
        """The rows ``ids`` of ``table``."""
        info = ValueInfo((*ROWS, table.columns))
        if not isinstance(form, Grid):
            weight = self.graph.weight(f"{name}.weight", table, form)
            return self.op("Gather", weight, ids, name=name, info=info, axis=0)
        if not form.has_offsets:
            return self._gathered(ids, table, form, name, name, ROWS)
        found = self._gathered(ids, table, form, name, f"{name}.numbers", ROWS)
        n_blocks = table.columns // form.block
        offsets = self.graph.stored(f"{name}.offsets", table, form.array("offsets"), (table.rows, n_blocks, 1), FLOAT)
        added = self.op("Gather", offsets, ids, name=f"{name}.offset_rows", axis=0)
        blocks = self.reshape(found, f"{name}.blocks", 0, 0, n_blocks, form.block)
        total = self.op("Add", blocks, added, name=f"{name}.sum")
        return self.reshape(total, name, 0, 0, table.columns, info=info)

    def _gathered(
        self, ids: ir.Value, table: Tensor, form: Grid, name: str, output: str, outer: Sequence[int | str]
    ) -> ir.Value:
        """The rows ``ids``, of the shape ``outer``, of ``table`` without its offsets."""
        numbers, scales, zeros = self._grid(f"{name}.rows", table, form, _row(table, form))
        return self._ms(
            *("GatherBlockQuantized", numbers, ids, scales, zeros),
            name=output,
            info=ValueInfo((*outer, table.columns)),
            gather_axis=0,
            quantize_axis=1,
            block_size=form.block,
            bits=form.bits,
        )

    def product(
        self,
        x: ir.Value,
        matrix: Tensor,
        form: Form,
        name: str,
        output: str,
        accuracy: int = _INT8_ACTIVATIONS,
    ) -> ir.Value:
        """``x`` times the transposed ``matrix``, which is stored under ``name``; the result is called ``output``."""
        info = ValueInfo((*sizes(x)[:-1], matrix.rows))
        if not isinstance(form, Grid):
            weight = self.graph.weight(f"{name}.weight", matrix, form)
            return self._ms("FusedMatMul", x, weight, name=output, info=info, transB=1)
        n_blocks = matrix.columns // form.block
        numbers, scales, zeros = self._grid(name, matrix, form, (n_blocks, form.block * form.bits // 8))
        product = self._ms(
            *("MatMulNBits", x, numbers, scales, zeros),
            name=f"{output}.numbers_product" if form.has_offsets else output,
            info=info,
            K=matrix.columns,
            N=matrix.rows,
            bits=form.bits,
            block_size=form.block,
            accuracy_level=accuracy,
        )
        return self._with_offsets(product, x, matrix, form, name, output) if form.has_offsets else product

    def precise_product(self, x: ir.Value, matrix: Tensor, form: Grid, name: str, output: str) -> ir.Value:
        """With 4 bits a kernel for floats is fast enough."""
        if form.bits == 4:
            return self.product(x, matrix, form, name, output, _FLOAT_ACTIVATIONS)
        return super().precise_product(x, matrix, form, name, output)

    def logits(self, x: ir.Value, head: Tensor, form: Form, name: str) -> ir.Value:
        """With 8 bits the likeliest tokens alone are computed again, in float: cheaper than two terms for all.

        They are the likeliest of some sixty parts of the vocabulary: WebGPU's TopK takes no more than 2,048 at once.
        """
        parts = next((count for count in _PARTS if head.rows % count == 0), None)
        if not isinstance(form, Grid) or form.bits == 4 or parts is None:
            return super().logits(x, head, form, name)
        outer, size = sizes(x)[:-1], head.rows // parts
        kept = [0] * len(outer)
        rough = self.product(x, head, form, name, f"{name}.rough")
        split = self.reshape(rough, f"{name}.parts", *kept, size, parts)  # neighbours apart: often both are likely
        best = self.op("ArgMax", split, name=f"{name}.best_of_parts", axis=-2, keepdims=0)
        stride = self.graph.constant(f"{name}.part_count", np.array(parts))
        starts = self.op("Mul", best, stride, name=f"{name}.likely_starts")
        likely = self.op(
            "Add", starts, self.graph.constant(f"{name}.part_numbers", np.arange(parts)), name=f"{name}.likely"
        )
        rows = self._gathered(likely, head, form, name, f"{name}.likely_rows", (*outer, parts))
        column = self.reshape(x, f"{name}.column", *kept, head.columns, 1)
        exact = self.op("MatMul", rows, column, name=f"{name}.likely_column")
        exact = self.reshape(exact, f"{name}.likely_exact", *kept, parts)
        info = ValueInfo((*outer, head.rows))
        return self.op("ScatterElements", rough, likely, exact, name=name, info=info, axis=-1)

    def _with_offsets(
        self, product: ir.Value, x: ir.Value, matrix: Tensor, form: Grid, name: str, output: str
    ) -> ir.Value:
        """``product``, of the numbers alone, plus what the blocks' offsets add."""
        n_blocks, info = matrix.columns // form.block, ValueInfo((*sizes(x)[:-1], matrix.rows))
        offsets = self.graph.stored(f"{name}.offsets", matrix, form.array("offsets"), (matrix.rows, n_blocks), FLOAT)
        sums = self.block_sums(x, n_blocks, form.block)
        added = self._ms("FusedMatMul", sums, offsets, name=f"{output}.offsets_product", info=info, transB=1)
        return self.op("Add", product, added, name=output, info=info)

    def _grid(
        self, name: str, matrix: Tensor, form: Grid, row: tuple[int, ...]
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """A matrix's numbers, of ``row`` bytes each, its scales and zero points."""
        graph, n_blocks = self.graph, matrix.columns // form.block
        outer = matrix.shape[:-1]
        numbers = graph.stored(f"{name}.weight", matrix, form.array("numbers"), (*outer, *row), UINT8)
        scales = graph.stored(f"{name}.scales", matrix, form.array("scales"), (*outer, n_blocks), FLOAT)
        shape = (*outer, -(-n_blocks * form.bits // 8))
        if form.has_zero_points:
            return numbers, scales, graph.stored(f"{name}.zeros", matrix, form.array("zero_points"), shape, UINT8)
        return numbers, scales, None

    def norm(self, x: ir.Value, weight: Tensor, name: str) -> ir.Value:
        """RMS norm."""
        gamma = self.graph.weight(f"{name}.weight", weight, F32)
        return self.op("RMSNormalization", x, gamma, name=name, info=ValueInfo(sizes(x)), axis=-1, epsilon=self.eps)

    def added_norm(self, x: ir.Value, more: ir.Value, weight: Tensor, name: str) -> tuple[ir.Value, ir.Value]:
        """The RMS norm of ``x + more``, and the sum."""
        gamma = self.graph.weight(f"{name}.weight", weight, F32)
        info = ValueInfo(sizes(x))
        normed, _, _, total = self.graph.ops(
            *("SkipSimplifiedLayerNormalization", x, more, gamma),
            names=(name, "", "", f"{name}.sum"),
            domain=MICROSOFT,
            infos=[info, None, None, info],
            epsilon=self.eps,
        )
        return normed, total

    def swiglu(self, gate: ir.Value, up: ir.Value, name: str) -> ir.Value:
        """``silu(gate) * up``."""
        info = ValueInfo(sizes(gate))
        silu = self._ms("QuickGelu", gate, name=f"{name}.silu", info=info, alpha=1.0)
        return self.graph.op("Mul", silu, up, name=name, info=info)

    @cached_property
    def _lengths(self) -> tuple[ir.Value, ir.Value]:
        """Each row's last position, int32 ``(batch,)``, and the number of all, an int32 scalar."""
        one = self.graph.constant("lengths.one", [1])
        counted = self.op("ReduceSum", self._mask, one, name="lengths.counted", keepdims=0)
        last = self.op("Sub", counted, one, name="lengths.last_position")
        last = self.op("Cast", last, name="lengths.last", to=int(INT32))
        return last, self.op("Cast", self._total, name="lengths.total", to=int(INT32))

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
        """By GroupQueryAttention, which rotates too."""
        cache = ValueInfo(("batch", heads[1], "total", head_dim))
        cos, sin = rotary or (None, None)
        inputs = [*qkv, *past, *self._lengths, cos, sin]
        if bias is not None:
            inputs += [None, bias]
        settings: dict[str, float] = {} if scale is None else {"scale": scale}
        if window is not None:
            settings["local_window_size"] = window
        mixed, key, value = self.graph.ops(
            "GroupQueryAttention",
            *inputs,
            names=(name, *present),
            domain=MICROSOFT,
            infos=[ValueInfo((*ROWS, heads[0] * head_dim)), cache, cache],
            num_heads=heads[0],
            kv_num_heads=heads[1],
            do_rotary=int(rotary is not None),
            **settings,
        )
        return mixed, key, value

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
        start = self.graph.constant("rotary.start", [0])
        info = ValueInfo((*ROWS, heads * head_dim))
        return self._ms("RotaryEmbedding", x, start, *rotary, name=name, info=info, interleaved=int(not by_halves))

    def head_norm(self, x: ir.Value, heads: int, head_dim: int, name: str, weight: Tensor | None = None) -> ir.Value:
        """RMS norm of each head. Not GroupQueryAttention's own, which its CPU kernel lacks."""
        split = self.reshape(x, f"{name}.heads", 0, 0, heads, head_dim)
        ones = np.ones(head_dim, np.float32)
        stored = f"{name}.weight"
        gamma = self.graph.constant(stored, ones) if weight is None else self.graph.weight(stored, weight, F32)
        normed = self.op("RMSNormalization", split, gamma, name=f"{name}.normed_heads", axis=-1, epsilon=self.eps)
        return self.reshape(normed, name, 0, 0, heads * head_dim)

    def mixture(self, x: ir.Value, router: ir.Value, experts: Experts, name: str) -> ir.Value:
        """What the expert of the highest ``router`` logit makes of each row of ``x``, unweighed."""
        first = self._grid(f"{name}.gate_up", experts.gate_up, experts.form, _row(experts.gate_up, experts.form))
        second = self._grid(f"{name}.down", experts.down, experts.form, _row(experts.down, experts.form))
        inputs = [*first[:2], None, *second[:2], None, None, None, None, first[2], second[2]]
        return self._ms(
            "QMoE",
            x,
            router,
            *inputs,
            name=name,
            info=ValueInfo(sizes(x)),
            k=1,
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=1.0,
            activation_beta=0.0,
            normalize_routing_weights=1,
            expert_weight_bits=experts.form.bits,
            block_size=experts.form.block,
            accuracy_level=_INT8_ACTIVATIONS,
        )

    def _ms(self, kind: str, *inputs: ir.Value | None, name: str, info: ValueInfo, **attributes: Any) -> ir.Value:
        return self.graph.op(kind, *inputs, name=name, domain=MICROSOFT, info=info, **attributes)


def _row(matrix: Tensor, form: Grid) -> tuple[int, ...]:
    """Bytes of a row of numbers, as a shape."""
    return (matrix.columns * form.bits // 8,)

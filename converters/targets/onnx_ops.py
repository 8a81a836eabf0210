"""What a decoder is made of, in the operators that ONNX Runtime has fast kernels for (domain ``com.microsoft``)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.checkpoint import Tensor
from converters.targets.onnx_graph import FLOAT, INT32, MICROSOFT, UINT8, Graph, Made
from edge_llama.formats import F32
from quant.nbits import BYTES, Grid
from quant.onnx_recipe import Form

ROWS = ("batch", "sequence")
_INT8_ACTIVATIONS = 4  # accuracy_level: several times as fast as float, for 8 bits the only fast kernel


class MicrosoftOps:
    """Writes into ``graph``; ``eps`` is that of the norms. Activations are float32 ``(batch, sequence, width)``."""

    OPSET = 23  # for RMSNormalization
    SHARES_CACHE = True
    """Whether past and present may be one buffer, as long as the context."""

    def __init__(self, graph: Graph, eps: float) -> None:
        self.graph = graph
        self.eps = eps
        self._sums: dict[tuple[str, int], ir.Value] = {}

    def embedding(self, ids: ir.Value, table: Tensor, form: Form, name: str) -> ir.Value:
        """The rows ``ids`` of ``table``."""
        if not isinstance(form, Grid):
            return self.op("Gather", self.graph.weight(f"{name}.weight", table, form), ids, name=name, axis=0)
        numbers, scales, zeros = self._grid(f"{name}.rows", table, form, (table.columns * form.bits // 8,))
        made = Made((*ROWS, table.columns))
        axes = {"gather_axis": 0, "quantize_axis": 1, "block_size": form.block}
        rows = f"{name}.numbers" if form.has_minima else name
        found = self._ms(
            "GatherBlockQuantized", numbers, ids, scales, zeros, name=rows, made=made, bits=form.bits, **axes
        )
        if not form.has_minima:
            return found
        n_blocks = table.columns // form.block
        minima = self.graph.stored(f"{name}.minima", table, form.stored("minima"), (table.rows, n_blocks, 1), FLOAT)
        added = self.op("Gather", minima, ids, name=f"{name}.minima_rows", axis=0)
        blocks = self.reshape(found, f"{name}.blocks", 0, 0, n_blocks, form.block)
        return self.reshape(self.op("Add", blocks, added, name=f"{name}.sum"), name, 0, 0, table.columns)

    def linear(self, x: ir.Value, matrix: Tensor, form: Form, name: str, bias: Tensor | None = None) -> ir.Value:
        """``x`` times the transposed ``matrix`` of ``(outputs, inputs)``, plus ``bias``."""
        made = Made((*_sizes(x)[:-1], matrix.rows))
        last = name if bias is None else f"{name}.product"
        if isinstance(form, Grid):
            product = self._blocks(x, matrix, form, last, made)
        else:
            weight = self.graph.weight(f"{name}.weight", matrix, form)
            product = self._ms("FusedMatMul", x, weight, name=last, made=made, transB=1)
        if bias is None:
            return product
        return self.op("Add", product, self.graph.weight(f"{name}.bias", bias, F32), name=name)

    def _blocks(self, x: ir.Value, matrix: Tensor, form: Grid, name: str, made: Made) -> ir.Value:
        n_blocks = matrix.columns // form.block
        numbers, scales, zeros = self._grid(name, matrix, form, (n_blocks, form.block * form.bits // 8))
        product = self._ms(
            *("MatMulNBits", x, numbers, scales, zeros),
            name=f"{name}.numbers_product" if form.has_minima else name,
            made=made,
            K=matrix.columns,
            N=matrix.rows,
            bits=form.bits,
            block_size=form.block,
            accuracy_level=_INT8_ACTIVATIONS,
        )
        if not form.has_minima:
            return product
        minima = self.graph.stored(f"{name}.minima", matrix, form.stored("minima"), (matrix.rows, n_blocks), FLOAT)
        sums = self._block_sums(x, n_blocks, form.block)
        added = self._ms("FusedMatMul", sums, minima, name=f"{name}.minima_product", made=made, transB=1)
        return self.op("Add", product, added, name=name)

    def _block_sums(self, x: ir.Value, n_blocks: int, block: int) -> ir.Value:
        """What a block's minimum is multiplied by."""
        key = (str(x.name), block)
        if key not in self._sums:
            blocks = self.reshape(x, f"{x.name}.blocks", 0, 0, n_blocks, block)
            axis = self.graph.constant(f"{x.name}.block_sums.axis", [-1])
            self._sums[key] = self.op("ReduceSum", blocks, axis, name=f"{x.name}.block_sums", keepdims=0)
        return self._sums[key]

    def _grid(
        self, name: str, matrix: Tensor, form: Grid, inner: tuple[int, ...]
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """A matrix's numbers, of ``inner`` bytes a row, its scales and zero points."""
        graph, (outer, n_blocks) = self.graph, ((matrix.rows,), matrix.columns // form.block)
        numbers = graph.stored(f"{name}.weight", matrix, form.stored("numbers"), (*outer, *inner), UINT8)
        scales = graph.stored(f"{name}.scales", matrix, form.stored("scales"), (*outer, n_blocks), FLOAT)
        shape = (*outer, -(-n_blocks * form.bits // 8))
        if form.has_minima:
            return numbers, scales, graph.stored(f"{name}.zeros", _nothing(f"{name}.zeros", shape), BYTES, shape, UINT8)
        if form.has_zeros:
            return numbers, scales, graph.stored(f"{name}.zeros", matrix, form.stored("zeros"), shape, UINT8)
        return numbers, scales, None

    def norm(self, x: ir.Value, weight: Tensor, name: str) -> ir.Value:
        """RMS norm."""
        gamma = self.graph.weight(f"{name}.weight", weight, F32)
        return self.op("RMSNormalization", x, gamma, name=name, axis=-1, epsilon=self.eps)

    def added_norm(self, x: ir.Value, more: ir.Value, weight: Tensor, name: str) -> tuple[ir.Value, ir.Value]:
        """The RMS norm of ``x + more``, and the sum."""
        gamma = self.graph.weight(f"{name}.weight", weight, F32)
        made = Made((*ROWS, weight.columns))
        normed, _, _, total = self.graph.ops(
            *("SkipSimplifiedLayerNormalization", x, more, gamma),
            names=(name, "", "", f"{name}.sum"),
            domain=MICROSOFT,
            made=[made, None, None, made],
            epsilon=self.eps,
        )
        return normed, total

    def swiglu(self, gate: ir.Value, up: ir.Value, name: str) -> ir.Value:
        """``silu(gate) * up``."""
        made = Made(_sizes(gate))
        silu = self._ms("QuickGelu", gate, name=f"{name}.silu", made=made, alpha=1.0)
        return self.graph.op("Mul", silu, up, name=name, made=made)

    def lengths(self, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Of ``attention_mask``: each row's last position, int32 ``(batch,)``, and all positions, an int32 scalar."""
        one = self.graph.constant("lengths.one", [1])
        counted = self.op("ReduceSum", mask, one, name="lengths.counted", keepdims=0)
        last = self.op("Sub", counted, one, name="lengths.last_position")
        last = self.op("Cast", last, name="lengths.last", to=int(INT32))
        shape = self.op("Shape", mask, name="lengths.mask_shape")
        total = self.op("Gather", shape, self.graph.constant("lengths.axis", np.array(1)), name="lengths.positions")
        return last, self.op("Cast", total, name="lengths.total", to=int(INT32))

    def attention(
        self,
        qkv: Sequence[ir.Value | None],
        past: tuple[ir.Value, ir.Value],
        lengths: tuple[ir.Value, ir.Value],
        name: str,
        *,
        heads: tuple[int, int],
        head_dim: int,
        present: tuple[str, str],
        rotary: tuple[ir.Value, ir.Value] | None = None,
        bias: ir.Value | None = None,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Causal attention of ``heads`` query and KV heads; what it gives, and the cache with the new positions.

        ``qkv``: the three, or all in the first; ``rotary`` tables turn queries and keys by halves; ``bias`` is added
        to the scores, ``(1, 1, sequence, total)``.
        """
        cache = Made(("batch", heads[1], "total", head_dim))
        cos, sin = rotary or (None, None)
        inputs = [*qkv, *past, *lengths, cos, sin, *([] if bias is None else [None, bias])]
        mixed, key, value = self.graph.ops(
            "GroupQueryAttention",
            *inputs,
            names=(name, *present),
            domain=MICROSOFT,
            made=[Made((*ROWS, heads[0] * head_dim)), cache, cache],
            num_heads=heads[0],
            kv_num_heads=heads[1],
            do_rotary=int(rotary is not None),
        )
        return mixed, key, value

    def reshape(self, x: ir.Value, name: str, *shape: int) -> ir.Value:
        """0 keeps a size."""
        return self.op("Reshape", x, self.graph.constant(f"{name}.shape", shape), name=name)

    def op(self, kind: str, *inputs: ir.Value | None, name: str, **attributes: Any) -> ir.Value:
        """The output of a standard node."""
        return self.graph.op(kind, *inputs, name=name, **attributes)

    def _ms(self, kind: str, *inputs: ir.Value | None, name: str, made: Made, **attributes: Any) -> ir.Value:
        return self.graph.op(kind, *inputs, name=name, domain=MICROSOFT, made=made, **attributes)


def _sizes(x: ir.Value) -> tuple[int | str, ...]:
    """The shape of ``x`` as far as it is known."""
    return (
        (*ROWS, "width") if x.shape is None else tuple(size if isinstance(size, int) else str(size) for size in x.shape)
    )


def _nothing(name: str, shape: tuple[int, ...]) -> Tensor:
    """Zeros, that nobody needs to read."""
    return Tensor(name, shape, BYTES, lambda start, stop: np.zeros((stop - start, shape[-1]), np.uint8))

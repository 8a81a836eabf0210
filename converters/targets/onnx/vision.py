"""The vision tower of Llama 4 as ONNX: in standard operators, but for ``int4`` that is not portable.

The graph reads as transformers' ``modeling_llama4.py`` computes: :class:`_Tower` is the whole of it, for every form.
It takes any number of tiles and computes in float32 whatever the weights are stored in: on a CPU, f16 throughout takes
a third longer (1.04 against 0.81 s a tile, 12 layers of 512, 2 threads, ONNX Runtime 1.32) and is half as exact. Of
``int8`` the matrices are multiplied in integers; ``a16w8`` takes one tile and computes in integers throughout. No value
has more than four dimensions, as NPUs like it.
"""

import onnx_ir as ir

from converters.architectures import llama4_vision
from converters.architectures.llama4_vision import EPS, PROJECTOR, Hyperparameters
from converters.checkpoint import Checkpoint, Tensor
from converters.layout import Part
from converters.targets.onnx.forms import VISION_FORMS
from converters.targets.onnx.graph import DATA, FLOAT, INT8, MODEL, DataFile, Graph
from converters.targets.onnx.integer_weights import Integers, RowForm, read_floats
from converters.targets.onnx.operator_set import OperatorSet
from converters.targets.onnx.operators import OPERATOR_SETS
from converters.targets.onnx.qdq import QdqGraph
from converters.targets.onnx.standard import StandardOps
from converters.tensors.transposed import transposed
from edge_llama.errors import OptionError
from edge_llama.files.formats import F16, F32, FORMATS
from edge_llama.files.onnx_vision import VISION_INPUT, VISION_OUTPUT
from quant.nbits import Grid
from quant.onnx_recipe import Form
from quant.ranges import Ranges, fingerprint

_I8 = FORMATS["i8"]
_NAME = "llama4_vision"


def vision_parts(
    checkpoint: Checkpoint, quant: str, folder: str, ranges: Ranges | None, *, is_portable: bool
) -> list[Part]:
    """The vision tower as ``folder``/model.onnx and its data beside it, matrices in ``quant`` of :data:`VISION_FORMS`.

    It takes float32 pixels and gives float32 embeddings, in shapes that :mod:`edge_llama.files.onnx_vision` names: of
    any number of tiles, or of one in ``a16w8``, which needs ``ranges``. ``is_portable``: in standard operators.
    CheckpointError if the checkpoint is not whole, OptionError for ranges of another tower.
    """
    hp = llama4_vision.hyperparameters(checkpoint)
    tensors = llama4_vision.tensors(checkpoint, hp)
    if ranges is None:
        operators = OPERATOR_SETS[is_portable]
        return _Tower(hp, tensors, operators(Graph(_NAME, DataFile(DATA)), EPS), VISION_FORMS[quant], "tiles").parts(
            folder
        )
    norms = (tensors[f"layernorm_{at}.{part}"] for at in ("pre", "post") for part in ("weight", "bias"))
    if ranges.tower != fingerprint(read_floats(norm, 0, 1, check=False) for norm in norms):
        raise OptionError(
            f"--calibration {ranges.path}: of another vision tower than {checkpoint.path}",
            remedy="calibrate this one, converted to f32 or f16: edge-llama calibrate",
        )
    ops = StandardOps(QdqGraph(_NAME, DataFile(DATA), ranges), EPS)
    return _Tower(hp, tensors, ops, VISION_FORMS[quant], 1).parts(folder)


class _Tower:
    """``ops`` multiply by blocks of weights; ``tiles`` is how many the graph takes, or a name for any number."""

    def __init__(
        self,
        hp: Hyperparameters,
        tensors: dict[str, Tensor],
        ops: OperatorSet,
        form: Form,
        tiles: int | str,
    ) -> None:
        self.hp = hp
        self.graph = ops.graph
        self._ops = ops
        self._tensors = tensors
        self._form = form
        self._tiles = tiles
        self._integers: dict[str, list[ir.Value]] = {}
        cos, sin = (table[:, None] for table in llama4_vision.rotary(hp))
        self._cos = self.graph.constant("vision.rotary.cos", cos)
        self._sin = self.graph.constant("vision.rotary.sin", sin)
        self._scale = self.graph.constant("vision.attention.scale", hp.head_dim**-0.5)

    @property
    def _rounds(self) -> bool:
        """Whether matrices are multiplied in integers, by what the values' own ranges are in each run."""
        return self._form is _I8 and not isinstance(self.graph, QdqGraph)

    def parts(self, folder: str) -> list[Part]:
        hp, graph = self.hp, self.graph
        x = self._patches(graph.input(VISION_INPUT, (self._tiles, 3, hp.image_size, hp.image_size)))
        x = self._norm(x, "layernorm_pre", "vision.norm_pre")
        for layer in range(hp.n_layer):
            x = self._layer(x, f"model.layers.{layer}", f"vision.layers.{layer}")
        x = self._norm(x, "layernorm_post", "vision.norm_post")
        x = self._adapter(self._shuffled(x))
        output = self._linear(x, PROJECTOR.removesuffix(".weight"), "projector", output=VISION_OUTPUT)
        graph.output(output, (self._tiles, (hp.grid // hp.scale) ** 2, hp.n_text))
        return [graph.part(MODEL, folder), graph.data.part(folder)]

    def _patches(self, pixels: ir.Value) -> ir.Value:
        """Patches in rows, the class token after them, with their places."""
        hp, graph, side = self.hp, self.graph, self.hp.patch_size
        matrix = self._tensors["patch_embedding.linear.weight"]
        form = F16 if isinstance(self._form, Grid) or self._rounds else self._form  # neither of them convolves
        kernel = graph.weight("vision.patch_embedding.weight", matrix, form, (hp.n_embd, 3, side, side))
        grid = graph.op("Conv", pixels, kernel, name="vision.patches.grid", strides=[side, side])
        columns = self._ops.reshape(grid, "vision.patches.columns", 0, hp.n_embd, hp.grid**2)
        x = graph.op("Transpose", columns, name="vision.patch_embedding", perm=[0, 2, 1])
        x = graph.op("Concat", x, self._class_tokens(pixels), name="vision.embedded", axis=1)
        places = graph.weight("vision.positions.embedding", self._tensors["positional_embedding_vlm"], F32)
        return graph.op("Add", x, places, name="vision.positions")

    def _class_tokens(self, pixels: ir.Value) -> ir.Value:
        """The class token, once for each tile."""
        hp, graph = self.hp, self.graph
        token = graph.weight("vision.class.embedding", self._tensors["class_embedding"], F32, (1, 1, hp.n_embd))
        if self._tiles == 1:
            return token
        count = graph.op("Shape", pixels, name="vision.tiles", start=0, end=1)
        one = graph.constant("vision.class.shape", [1, hp.n_embd])
        shape = graph.op("Concat", count, one, name="vision.class.full_shape", axis=0)
        return graph.op("Expand", token, shape, name="vision.class.tokens")

    def _layer(self, x: ir.Value, source: str, name: str) -> ir.Value:
        graph = self.graph
        attended = self._attention(self._norm(x, f"{source}.input_layernorm", f"{name}.norm1"), source, name)
        x = graph.op("Add", x, attended, name=f"{name}.attention.residual")
        hidden = self._norm(x, f"{source}.post_attention_layernorm", f"{name}.norm2")
        hidden = self._linear(hidden, f"{source}.mlp.fc1", f"{name}.mlp.up")
        hidden = graph.op("Gelu", hidden, name=f"{name}.mlp.gelu")
        hidden = self._linear(hidden, f"{source}.mlp.fc2", f"{name}.mlp.down")
        return graph.op("Add", x, hidden, name=f"{name}.mlp.residual")

    def _attention(self, x: ir.Value, source: str, name: str) -> ir.Value:
        hp, graph, name = self.hp, self.graph, f"{name}.attention"
        q, k, v = (self._linear(x, f"{source}.self_attn.{part}_proj", f"{name}.{part}") for part in "qkv")
        q, k = self._rope(q, f"{name}.q"), self._rope(k, f"{name}.k")
        q = graph.op("Transpose", q, name=f"{name}.q.heads", perm=[0, 2, 1, 3])
        k = graph.op("Transpose", k, name=f"{name}.k.heads", perm=[0, 2, 3, 1])
        v = self._ops.reshape(v, f"{name}.v.split", 0, 0, hp.n_head, hp.head_dim)
        v = graph.op("Transpose", v, name=f"{name}.v.heads", perm=[0, 2, 1, 3])
        scores = graph.op("MatMul", q, k, name=f"{name}.scores")
        scores = graph.op("Mul", scores, self._scale, name=f"{name}.scaled")
        weights = graph.op("Softmax", scores, name=f"{name}.weights", axis=-1)
        mixed = graph.op("MatMul", weights, v, name=f"{name}.mixed")
        mixed = graph.op("Transpose", mixed, name=f"{name}.mixed.in_rows", perm=[0, 2, 1, 3])
        mixed = self._ops.reshape(mixed, f"{name}.joined", 0, 0, hp.n_embd)
        return self._linear(mixed, f"{source}.self_attn.o_proj", f"{name}.o")

    def _rope(self, x: ir.Value, name: str) -> ir.Value:
        """RoPE of neighbouring pairs, as a product of complex numbers: (tiles, places, heads, head_dim).

        First all real parts, then all imaginary ones: for products of queries with keys the order is all the same.
        """
        x = self._ops.reshape(x, f"{name}.split", 0, 0, self.hp.n_head, self.hp.head_dim)
        real, imaginary = self._every_second(x, 0, f"{name}.real"), self._every_second(x, 1, f"{name}.imaginary")
        rotated = self._ops.rotated(real, imaginary, (self._cos, self._sin), name)
        return self.graph.op("Concat", *rotated, name=f"{name}.turned", axis=-1)

    def _every_second(self, x: ir.Value, first: int, name: str) -> ir.Value:
        bounds = (("first", first), ("last", self.hp.head_dim), ("axis", 3), ("step", 2))
        return self._slice(x, name, *bounds)

    def _shuffled(self, x: ir.Value) -> ir.Value:
        """Pixel shuffle without the class token: ``scale`` x ``scale`` neighbouring patches become one row."""
        hp, graph, side = self.hp, self.graph, self.hp.grid // self.hp.scale
        x = self._slice(x, "vision.shuffle.patches", ("first", 0), ("last", -1), ("axis", 1))
        x = self._ops.reshape(x, "vision.shuffle.cut", -1, hp.scale, side, hp.scale * hp.n_embd)
        x = graph.op("Transpose", x, name="vision.shuffle.in_rows", perm=[0, 2, 1, 3])
        return self._ops.reshape(x, "vision.shuffled", -1, side**2, hp.scale**2 * hp.n_embd)

    def _slice(self, x: ir.Value, name: str, *bounds: tuple[str, int]) -> ir.Value:
        return self.graph.op(
            "Slice", x, *(self.graph.constant(f"{name}.{what}", [at]) for what, at in bounds), name=name
        )

    def _adapter(self, x: ir.Value) -> ir.Value:
        for part in ("fc1", "fc2"):
            x = self._linear(x, f"vision_adapter.mlp.{part}", f"adapter.{part}")
            x = self.graph.op("Gelu", x, name=f"adapter.{part}.gelu")
        return x

    def _linear(self, x: ir.Value, source: str, name: str, output: str = "") -> ir.Value:
        """``x`` times a matrix, plus a bias where there is one; ``output`` is what it is called, else ``name``."""
        matrix, bias, last = self._tensors[f"{source}.weight"], self._tensors.get(f"{source}.bias"), output or name
        if bias is None:
            return self._product(x, matrix, name, last)
        return self._ops.biased(self._product(x, matrix, name, f"{name}.product"), bias, name, last)

    def _product(self, x: ir.Value, matrix: Tensor, name: str, output: str) -> ir.Value:
        form, hp = self._form, self.hp
        if self._rounds:
            return self._in_integers(x, matrix, name, output)
        if not isinstance(form, Grid) or not form.fits(matrix.columns):
            weight = self.graph.weight(
                f"{name}.weight", matrix, F16 if isinstance(form, Grid) else form, transpose=True
            )
            return self.graph.op("MatMul", x, weight, name=output)
        places = hp.grid**2 + 1 if name.startswith("vision.") else (hp.grid // hp.scale) ** 2
        # For operators of Microsoft's ONNX infers no shape.
        x.shape, x.type = ir.Shape((self._tiles, places, matrix.columns)), ir.TensorType(FLOAT)
        product = self._ops.product(x, matrix, form, name, name if output == VISION_OUTPUT else output)
        product.name = output
        return product

    def _in_integers(self, x: ir.Value, matrix: Tensor, name: str, output: str) -> ir.Value:
        """The same by a product of integers: ``x`` is rounded to 8 bits by its own range, the matrix row by row.

        Twice as fast as floats, where a product of blocks, each with a scale, is slower than they are.
        """
        graph = self.graph
        numbers, scale, zero = self._rounded(x)
        integers = Integers(matrix, RowForm(8))
        stored = transposed(integers.numbers)
        weight = graph.stored(f"{name}.weight", stored, _I8, stored.shape, INT8)
        scales = graph.stored(f"{name}.scales", integers.scales, F32, (matrix.rows,), FLOAT)
        product = graph.op("MatMulInteger", numbers, weight, zero, name=f"{name}.integers")
        product = graph.op("Cast", product, name=f"{name}.floats", to=int(FLOAT))
        steps = graph.op("Mul", scale, scales, name=f"{name}.steps")
        return graph.op("Mul", product, steps, name=output)

    def _rounded(self, x: ir.Value) -> list[ir.Value]:
        """Numbers, scale and zero point; the same for all matrices that multiply a value."""
        name = str(x.name)
        if name not in self._integers:
            parts = (f"{name}.rounded", f"{name}.step", f"{name}.zero")
            self._integers[name] = self.graph.ops("DynamicQuantizeLinear", x, names=parts)
        return self._integers[name]

    def _norm(self, x: ir.Value, source: str, name: str) -> ir.Value:
        weight, bias = (
            self.graph.weight(f"{name}.{part}", self._tensors[f"{source}.{part}"], F32) for part in ("weight", "bias")
        )
        return self.graph.op("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=EPS)

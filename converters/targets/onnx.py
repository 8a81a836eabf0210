"""ONNX: today the vision tower of Llama 4, in standard operators, for any number of tiles.

The graph reads as transformers' ``modeling_llama4.py`` computes: :class:`_Tower` is the whole of it. It computes in
float32 whatever the weights are stored in: on a CPU, f16 throughout takes a third longer (1.04 against 0.81 s a tile,
12 layers of 512, 2 threads, ONNX Runtime 1.32) and is half as exact.
"""

import onnx_ir as ir

from converters.architectures import llama4_vision
from converters.architectures.llama4_vision import EPS, PROJECTOR, Hyperparameters
from converters.checkpoint import Checkpoint, Tensor
from converters.targets.layout import Part
from converters.targets.onnx_graph import Graph
from converters.transposed import transposed
from edge_llama.artifact import VISION_INPUT, VISION_OUTPUT
from edge_llama.formats import F32, Format


def vision_parts(checkpoint: Checkpoint, format_: Format, folder: str) -> list[Part]:
    """The vision tower as ``folder``/model.onnx and its data beside it, matrices in ``format_``: f32 or f16.

    It takes float32 pixels and gives float32 embeddings, in shapes that :mod:`edge_llama.artifact` names.
    CheckpointError if the checkpoint is not whole.
    """
    hp = llama4_vision.hyperparameters(checkpoint)
    tower = _Tower(hp, llama4_vision.tensors(checkpoint, hp), format_)
    return tower.parts(folder)


class _Tower:
    def __init__(self, hp: Hyperparameters, tensors: dict[str, Tensor], format_: Format) -> None:
        self.hp = hp
        self.graph = Graph("llama4_vision", "model.onnx.data")
        self._tensors = tensors
        self._format = format_
        cos, sin = (table[:, None, :, None] for table in llama4_vision.rotary(hp))
        self._cos = self.graph.constant("vision.rotary.cos", cos)
        self._sin = self.graph.constant("vision.rotary.sin", sin)
        self._scale = self.graph.constant("vision.attention.scale", hp.head_dim**-0.5)

    def parts(self, folder: str) -> list[Part]:
        hp, graph = self.hp, self.graph
        x = self._patches(graph.input(VISION_INPUT, ("tiles", 3, hp.image_size, hp.image_size)))
        x = self._norm(x, "layernorm_pre", "vision.norm_pre")
        for layer in range(hp.n_layer):
            x = self._layer(x, f"model.layers.{layer}", f"vision.layers.{layer}")
        x = self._norm(x, "layernorm_post", "vision.norm_post")
        x = self._adapter(self._shuffled(x))
        output = self._linear(x, PROJECTOR.removesuffix(".weight"), "projector", output=VISION_OUTPUT)
        shape = ("tiles", (hp.grid // hp.scale) ** 2, hp.n_text)
        graph.output(output, shape)
        return graph.parts(folder)

    def _patches(self, pixels: ir.Value) -> ir.Value:
        """Patches in rows, the class token after them, with their places."""
        hp, graph = self.hp, self.graph
        name = "vision.patches"
        cut = self._reshape(pixels, f"{name}.cut", 0, 3, hp.grid, hp.patch_size, hp.grid, hp.patch_size)
        cut = graph.op("Transpose", cut, name=f"{name}.in_rows", perm=[0, 2, 4, 1, 3, 5])
        flat = self._reshape(cut, f"{name}.flat", 0, hp.grid**2, 3 * hp.patch_size**2)
        x = self._linear(flat, "patch_embedding.linear", "vision.patch_embedding")
        count = graph.op("Shape", pixels, name="vision.tiles", start=0, end=1)
        one = graph.constant("vision.class.shape", [1, hp.n_embd])
        shape = graph.op("Concat", count, one, name="vision.class.full_shape", axis=0)
        token = graph.weight("vision.class.embedding", self._tensors["class_embedding"], F32)
        tokens = graph.op("Expand", token, shape, name="vision.class.tokens")
        x = graph.op("Concat", x, tokens, name="vision.embedded", axis=1)
        places = graph.weight("vision.positions.embedding", self._tensors["positional_embedding_vlm"], F32)
        return graph.op("Add", x, places, name="vision.positions")

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
        q, k = self._turned(q, f"{name}.q"), self._turned(k, f"{name}.k")
        q = graph.op("Transpose", q, name=f"{name}.q.heads", perm=[0, 2, 1, 3])
        k = graph.op("Transpose", k, name=f"{name}.k.heads", perm=[0, 2, 3, 1])
        v = self._reshape(v, f"{name}.v.split", 0, 0, hp.n_head, hp.head_dim)
        v = graph.op("Transpose", v, name=f"{name}.v.heads", perm=[0, 2, 1, 3])
        scores = graph.op("MatMul", q, k, name=f"{name}.scores")
        scores = graph.op("Mul", scores, self._scale, name=f"{name}.scaled")
        weights = graph.op("Softmax", scores, name=f"{name}.weights", axis=-1)
        mixed = graph.op("MatMul", weights, v, name=f"{name}.mixed")
        mixed = graph.op("Transpose", mixed, name=f"{name}.mixed.in_rows", perm=[0, 2, 1, 3])
        mixed = self._reshape(mixed, f"{name}.joined", 0, 0, hp.n_embd)
        return self._linear(mixed, f"{source}.self_attn.o_proj", f"{name}.o")

    def _turned(self, x: ir.Value, name: str) -> ir.Value:
        """Rotary embedding of neighbouring pairs, as a product of complex numbers: (tiles, places, heads, head_dim)."""
        hp, graph = self.hp, self.graph
        cos, sin = self._cos, self._sin
        pairs = self._reshape(x, f"{name}.pairs", 0, 0, hp.n_head, hp.head_dim // 2, 2)
        real, imaginary = graph.ops("Split", pairs, names=(f"{name}.real", f"{name}.imaginary"), axis=-1, num_outputs=2)
        turned_real = graph.op(
            "Sub",
            graph.op("Mul", real, cos, name=f"{name}.real_cos"),
            graph.op("Mul", imaginary, sin, name=f"{name}.imaginary_sin"),
            name=f"{name}.turned_real",
        )
        turned_imaginary = graph.op(
            "Add",
            graph.op("Mul", real, sin, name=f"{name}.real_sin"),
            graph.op("Mul", imaginary, cos, name=f"{name}.imaginary_cos"),
            name=f"{name}.turned_imaginary",
        )
        joined = graph.op("Concat", turned_real, turned_imaginary, name=f"{name}.turned_pairs", axis=-1)
        return self._reshape(joined, f"{name}.turned", 0, 0, hp.n_head, hp.head_dim)

    def _shuffled(self, x: ir.Value) -> ir.Value:
        """Pixel shuffle without the class token: ``scale`` x ``scale`` neighbouring patches become one row."""
        hp, graph, side = self.hp, self.graph, self.hp.grid // self.hp.scale
        first, last, axis = (
            graph.constant(f"vision.shuffle.{what}", [at]) for what, at in (("first", 0), ("last", -1), ("axis", 1))
        )
        x = graph.op("Slice", x, first, last, axis, name="vision.shuffle.patches")
        x = self._reshape(x, "vision.shuffle.cut", 0, side, hp.scale, side, hp.scale, hp.n_embd)
        x = graph.op("Transpose", x, name="vision.shuffle.in_rows", perm=[0, 1, 3, 2, 4, 5])
        return self._reshape(x, "vision.shuffled", 0, side**2, hp.scale**2 * hp.n_embd)

    def _adapter(self, x: ir.Value) -> ir.Value:
        for part in ("fc1", "fc2"):
            x = self._linear(x, f"vision_adapter.mlp.{part}", f"adapter.{part}")
            x = self.graph.op("Gelu", x, name=f"adapter.{part}.gelu")
        return x

    def _linear(self, x: ir.Value, source: str, name: str, output: str = "") -> ir.Value:
        """``x`` times a matrix, plus a bias where there is one."""
        matrix = transposed(self._tensors[f"{source}.weight"])
        weight = self.graph.weight(f"{name}.weight", matrix, self._format)
        bias = self._tensors.get(f"{source}.bias")
        if bias is None:
            return self.graph.op("MatMul", x, weight, name=output or name)
        product = self.graph.op("MatMul", x, weight, name=f"{name}.product")
        return self.graph.op("Add", product, self.graph.weight(f"{name}.bias", bias, F32), name=name)

    def _norm(self, x: ir.Value, source: str, name: str) -> ir.Value:
        weight, bias = (
            self.graph.weight(f"{name}.{part}", self._tensors[f"{source}.{part}"], F32) for part in ("weight", "bias")
        )
        return self.graph.op("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=EPS)

    def _reshape(self, x: ir.Value, name: str, *shape: int) -> ir.Value:
        """0 keeps a size."""
        return self.graph.op("Reshape", x, self.graph.constant(f"{name}.shape", shape), name=name)

"""A Llama as a folder that onnxruntime-genai reads, in float32, made by hand from a Hugging Face checkpoint.

It owes nothing to our converter: weights and angles are those of transformers' model, the graph is written with onnx's
own helpers. ``shared`` appends to the cache in place (GroupQueryAttention); else standard operators give a longer one.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from one_sequence import OneSequence
from onnx import TensorProto, helper, numpy_helper

from edge_llama.backends.onnxruntime.text import OnnxTower
from edge_llama.backends.towers import locate
from edge_llama.files.onnx_text import OnnxArtifact, read_onnx_text

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "generation_config.json")
LONGEST = 4096


def write(
    source: Path, folder: Path, *, shared: bool = True, images: bool = False, every_row: bool = False, **config: Any
) -> Path:
    """The checkpoint at ``source`` in ``folder``; ``every_row`` of logits is given, not the last alone.

    With ``images`` the graph takes embeddings; ``config`` goes into genai_config.json's ``model``.
    """
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - torch takes seconds to load

    model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    folder.mkdir(parents=True)
    graph = _Graph(model, shared=shared, images=images, every_row=every_row)
    onnx.save(
        graph.finished(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=64,
    )
    for name in FILES:
        if (source / name).exists():
            shutil.copy(source / name, folder)
    described = _genai(model.config, shared) | {"search": {"past_present_share_buffer": shared, "max_length": LONGEST}}
    described["model"] |= config
    (folder / "genai_config.json").write_text(json.dumps(described, indent=1), "utf-8")
    return folder


def _genai(config: Any, shared: bool) -> dict[str, Any]:
    return {
        "model": {
            "type": "llama",
            "vocab_size": config.vocab_size,
            "context_length": LONGEST,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "decoder": {
                "filename": "model.onnx",
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        }
    }


def text(folder: Path) -> OnnxArtifact:
    """What is known of the folder before it is opened."""
    return read_onnx_text(locate(folder))


@contextmanager
def opened(folder: Path, n_ctx: int = 256, n_batch: int = 512) -> Iterator[OneSequence]:
    """Its tower alone, in the thread that asks: ``with opened(folder) as tower``."""
    with closing(OnnxTower(text(folder), n_ctx=n_ctx, threads=1, n_batch=n_batch)) as tower:
        yield OneSequence(tower)


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


class _Graph:
    def __init__(self, model: Any, *, shared: bool, images: bool, every_row: bool) -> None:
        self.config = model.config
        self.weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
        self.shared, self.images, self.every_row = shared, images, every_row
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        angles = np.outer(np.arange(LONGEST), model.model.rotary_emb.inv_freq.numpy())
        scale = model.model.rotary_emb.attention_scaling
        self.cos = self.constant("cos", (np.cos(angles) * scale).astype(np.float32))
        self.sin = self.constant("sin", (np.sin(angles) * scale).astype(np.float32))

    def constant(self, name: str, values: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def op(
        self, kind: str, *inputs: str, out: str, domain: str = "", more: tuple[str, ...] = (), **attributes: Any
    ) -> str:
        node = helper.make_node(kind, list(inputs), [out, *more], name=out, domain=domain, **attributes)
        self.nodes.append(node)
        return out

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def linear(self, x: str, name: str, out: str) -> str:
        matrix = self.weights.get(name, self.weights["model.embed_tokens.weight"])
        return self.op("MatMul", x, self.constant(f"{out}.weight", matrix.T), out=out)

    def norm(self, x: str, name: str, out: str) -> str:
        return self.op("RMSNormalization", x, self.weight(name), out=out, epsilon=self.config.rms_norm_eps)

    def finished(self) -> Any:
        c = self.config
        self.inputs += [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", size])
            for name, size in (("input_ids", "sequence"), ("attention_mask", "total"))
        ]
        self.prepare()
        x = self.embedded()
        for layer in range(c.num_hidden_layers):
            x = self.layer(x, layer)
        x = self.norm(x, "model.norm.weight", "norm")
        rows: Any = "sequence"
        if not self.every_row:
            x, rows = self.op("Gather", x, self.constant("last", np.array([-1], np.int64)), out="last.row", axis=1), 1
        self.linear(x, "lm_head.weight", "logits")
        self.outputs.insert(
            0, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", rows, c.vocab_size])
        )
        graph = helper.make_graph(self.nodes, "llama", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="by hand")

    def prepare(self) -> None:
        """The lengths, positions and mask that every layer uses."""
        one, zero = self.constant("one", np.array([1], np.int64)), self.constant("zero", np.array([0], np.int64))
        self.op("Shape", "attention_mask", out="total.length", start=1, end=2)
        if self.shared:
            self.op("ReduceSum", "attention_mask", one, out="ones", keepdims=0)
            self.op("Sub", "ones", one, out="last.position")
            self.op("Cast", "last.position", out="seqlens_k", to=TensorProto.INT32)
            self.op("Cast", "total.length", out="total.int32", to=TensorProto.INT32)
            return
        self.op("Shape", "input_ids", out="new.length", start=1, end=2)
        scalar = self.constant("no.shape", np.array([], np.int64))
        for name in ("total", "new"):
            self.op("Reshape", f"{name}.length", scalar, out=f"{name}.scalar")
        steps = [self.op("Squeeze", value, out=f"{value}.scalar") for value in (zero, one)]
        self.op("Range", steps[0], "total.scalar", steps[1], out="columns")
        self.op("Sub", "total.scalar", "new.scalar", out="past.scalar")
        self.op("Range", "past.scalar", "total.scalar", steps[1], out="rows")
        self.op("Unsqueeze", "rows", zero, out="positions")
        self.op("Unsqueeze", "rows", one, out="rows.column")
        self.op("LessOrEqual", "columns", "rows.column", out="visible")

    def embedded(self) -> str:
        table = self.weight("model.embed_tokens.weight")
        if not self.images:
            return self.op("Gather", table, "input_ids", out="embedded")
        width = self.config.hidden_size
        self.constant("image_features", np.zeros((1, width), np.float32))
        self.inputs.append(helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["images", width]))
        zero, axis = (
            self.constant("zero.id", np.array(0, np.int64)),
            self.constant("last.axis", np.array([-1], np.int64)),
        )
        self.op("Less", "input_ids", zero, out="is.image")
        self.op("Cast", "is.image", out="is.image.int", to=TensorProto.INT64)
        self.op(
            "CumSum", "is.image.int", self.constant("axis.1", np.array(1, np.int64)), out="image.count", exclusive=1
        )
        self.op("Mul", "image.count", "is.image.int", out="image.row")
        self.op("Gather", "image_features", "image.row", out="images.there")
        self.op("Max", "input_ids", zero, out="token.ids")
        self.op("Gather", table, "token.ids", out="tokens.there")
        self.op("Unsqueeze", "is.image", axis, out="is.image.column")
        return self.op("Where", "is.image.column", "images.there", "tokens.there", out="embedded")

    def layer(self, x: str, index: int) -> str:
        source, name = f"model.layers.{index}.", f"layers.{index}"
        normed = self.norm(x, source + "input_layernorm.weight", f"{name}.attention.norm")
        q, k, v = (self.linear(normed, f"{source}self_attn.{part}_proj.weight", f"{name}.{part}") for part in "qkv")
        attended = self.attention(q, k, v, index)
        x = self.op("Add", x, self.linear(attended, source + "self_attn.o_proj.weight", f"{name}.o"), out=f"{name}.mid")
        normed = self.norm(x, source + "post_attention_layernorm.weight", f"{name}.ffn.norm")
        gate = self.linear(normed, source + "mlp.gate_proj.weight", f"{name}.gate")
        up = self.linear(normed, source + "mlp.up_proj.weight", f"{name}.up")
        gate = self.op("Mul", gate, self.op("Sigmoid", gate, out=f"{name}.sigmoid"), out=f"{name}.silu")
        hidden = self.op("Mul", gate, up, out=f"{name}.hidden")
        return self.op("Add", x, self.linear(hidden, source + "mlp.down_proj.weight", f"{name}.down"), out=name)

    def attention(self, q: str, k: str, v: str, index: int) -> str:
        c = self.config
        past = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
        present = (f"present.{index}.key", f"present.{index}.value")
        for names, values, size in ((past, self.inputs, "past"), (present, self.outputs, "present")):
            shape = ["batch", c.num_key_value_heads, size, c.head_dim]
            values += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
        out, heads, kv_heads = f"layers.{index}.attention", c.num_attention_heads, c.num_key_value_heads
        if self.shared:
            inputs = (q, k, v, *past, "seqlens_k", "total.int32", self.cos, self.sin)
            sizes = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1}
            return self.op("GroupQueryAttention", *inputs, out=out, more=present, domain="com.microsoft", **sizes)
        positions = (self.cos, self.sin)
        for at, (name, count) in enumerate(((q, heads), (k, kv_heads))):
            rotated = self.op("RotaryEmbedding", name, *positions, "positions", out=f"{name}.rotated", num_heads=count)
            q, k = (rotated, k) if at == 0 else (q, rotated)
        sizes = {"q_num_heads": heads, "kv_num_heads": kv_heads}
        return self.op("Attention", q, k, v, "visible", *past, out=out, more=present, **sizes)

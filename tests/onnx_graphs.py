"""Text graphs run by plain ONNX Runtime, as any program would run them: no code of ours but the file."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import llama4
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from quant.nbits import Grid

_PLACES = {"MatMulNBits": [(1, 2, 3)], "GatherBlockQuantized": [(0, 2, 3)], "QMoE": [(2, 3, 11), (5, 6, 12)]}
"""Where an operator has numbers, scales and zero points."""


class TextGraph:
    """``model.onnx`` of a folder, with its cache."""

    def __init__(self, folder: Path, model: onnx.ModelProto | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if model is not None:
            path = folder / "changed.onnx"
            onnx.save(model, path)
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        self.session = ort.InferenceSession(path if model is not None else folder / "model.onnx", options)
        if model is not None:
            path.unlink()
            (folder / "changed.data").unlink(missing_ok=True)  # mapped: the next must not be written over it
        self.cache: dict[str, NDArray[np.float32]] = {}
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        for node in self.session.get_inputs():
            if node.name.startswith("past_key_values."):
                self.cache[node.name] = np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32)

    @property
    def length(self) -> int:
        return next(iter(self.cache.values())).shape[2]

    def feed(self, ids: Sequence[int], features: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The logits after ``ids``, ``(n_vocab,)``."""
        return self.feed_all(ids, features)[-1]

    def feed_all(self, ids: Sequence[int], features: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The logits after each of ``ids``, ``(n, n_vocab)``, if the graph is one ``with_all_logits``."""
        feeds: dict[str, Any] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self.length + len(ids)), np.int64),
            **self.cache,
        }
        if features is not None:
            feeds["image_features"] = features
        outputs = dict(
            zip([node.name for node in self.session.get_outputs()], self.session.run(None, feeds), strict=True)
        )
        for name in self.cache:
            self.cache[name] = outputs[name.replace("past_key_values", "present")]
        return outputs["logits"][0]

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation."""
        found = [int(self.feed(ids).argmax())]
        while len(found) < count:
            found.append(int(self.feed(found[-1:]).argmax()))
        return found


def stored(folder: Path) -> Mapping[str, NDArray[Any]]:
    """All initializers."""
    model = onnx.load(folder / "model.onnx")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def without_rounded_activations(folder: Path) -> onnx.ModelProto:
    """The model with accuracy_level 0: activations stay float32."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    return model


def with_all_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the nodes that leave but the last position, so that one prefill gives the logits of all."""
    for node in model.graph.node:
        if "last.index" in node.input:
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output, node.name))
    (logits,) = (output for output in model.graph.output if output.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "sequence"
    return model


def matrices(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Every quantized matrix ``(rows, columns)`` by the name of its numbers, as floats."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    weights, found = stored(folder), {}
    for node in model.graph.node:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "DequantizeLinear":
            numbers, scales = (weights[name].astype(np.float32) for name in node.input)
            found[node.input[0]] = (numbers * scales.repeat(attributes["block_size"], axis=0)).T
        bits = attributes.get("bits", attributes.get("expert_weight_bits"))
        for at in _PLACES.get(node.op_type, ()):
            numbers, scales, zeros = (weights.get(node.input[i]) if i < len(node.input) else None for i in at)
            grid = Grid(bits, attributes["block_size"], has_zero_points=zeros is not None)
            rows = prod(scales.shape[:-1])
            parts = [None if part is None else part.reshape(rows, -1) for part in (numbers, scales, zeros)]
            found[node.input[at[0]]] = dequantize(*parts[:2], grid, parts[2])
    if "embedding.scales" in weights:  # rows of bytes that are dequantized once they are gathered
        numbers, scales = weights["embedding.weight"], weights["embedding.scales"][..., 0]
        grid = Grid(8, numbers.shape[1] // scales.shape[1])
        found["embedding.weight"] = dequantize(numbers, scales, grid)
    return found


def dequantize(
    numbers: NDArray[np.uint8], scales: NDArray[np.float32], grid: Grid, zero_points: NDArray[np.uint8] | None = None
) -> NDArray[np.float32]:
    """Weights ``(rows, columns)`` of the arrays as they lie in the file: a row's bytes, scales, zero points' bytes."""
    n_blocks = scales.shape[1]
    blocks = _unpacked(numbers, grid.bits).reshape(len(numbers), n_blocks, grid.block).astype(np.float32)
    zero: Any = np.float32(2 ** (grid.bits - 1))
    if zero_points is not None:
        zero = _unpacked(zero_points, grid.bits)[:, :n_blocks, None].astype(np.float32)
    return ((blocks - zero) * scales[..., None]).reshape(len(numbers), -1)


def _unpacked(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return raw if bits == 8 else np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)


def with_weights(folder: Path, quantized: Path) -> onnx.ModelProto:
    """The float model in ``folder`` with the weights of ``quantized``, which lie beside it in a file of their own."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    weights: dict[str, NDArray[np.float32]] = {}
    for name, matrix in (matrices(quantized) | halves(quantized)).items():
        weights |= experts(name, matrix) or {name.replace("embedding.rows", "embedding"): matrix}
    for name in list(weights):  # the float graph keeps q, k and v as one
        if ".attention.q." in name:
            parts = [weights.get(name.replace(".q.", f".{part}.")) for part in "qkv"]
            if f"{name.removesuffix('.q.weight')}.qkv.weight" in {tensor.name for tensor in model.graph.initializer}:
                weights[name.replace(".q.", ".qkv.")] = np.concatenate([part for part in parts if part is not None])
    replaced = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in weights}
    with (folder / "changed.data").open("wb") as file:
        for name, tensor in replaced.items():
            start = file.tell()
            file.write(weights[name].astype("<f4").tobytes())
            tensor.raw_data = b""  # where they lay before
            onnx.external_data_helper.set_external_data(tensor, "changed.data", start, file.tell() - start)
            tensor.ClearField("raw_data")
    large = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2 and "rotary" not in tensor.name}
    assert {name for name in large if "router" not in name and name != "image_features"} <= replaced.keys()
    return model


def halves(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Matrices that are stored in float16."""
    model = onnx.load(folder / "model.onnx")
    found = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float32) for tensor in found}


def experts(name: str, matrix: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Of all experts' matrices each one's own, by the float graph's names."""
    if ".experts.gate_up." not in name and not name.endswith(".experts.down.weight"):
        return {}
    prefix = name.split(".experts.", maxsplit=1)[0] + ".experts"
    found = {}
    for index, one in enumerate(matrix.reshape(llama4.SCOUT["num_local_experts"], -1, matrix.shape[-1])):
        if "gate_up" in name:
            found |= {f"{prefix}.{index}.gate.weight": one[::2], f"{prefix}.{index}.up.weight": one[1::2]}
        else:
            found[f"{prefix}.{index}.down.weight"] = one
    return found


def kl(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    p, q = (np.float64(logits) - np.logaddexp.reduce(np.float64(logits)) for logits in (expected, found))
    return float((np.exp(p) * (p - q)).sum())

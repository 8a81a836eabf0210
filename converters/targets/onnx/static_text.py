"""A text tower for NPUs, in the layout of onnxruntime-genai's ``decoder-pipeline``: three graphs and their weights.

``inputs.onnx`` runs on the CPU: it turns ids into embeddings, places into cosines and sines, and says what is seen.
``prompt.onnx`` reads a window of tokens, ``token.onnx`` one (:mod:`converters.targets.onnx.static_llama`). Of a large
tower both are several, by layers: ``prompt_1.onnx``, ``prompt_2.onnx``, ...
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converters.architectures import for_config
from converters.architectures.hyperparameters import Hyperparameters
from converters.architectures.rope import attention_factor
from converters.architectures.rotary import frequencies
from converters.checkpoint import Checkpoint, Tensor
from converters.evidence.given import ranges_for
from converters.folder_files import encoded, end_ids, generation
from converters.metadata import generation_config
from converters.metadata.vocabulary import Vocabulary
from converters.options import Options
from converters.target import TowerFiles
from converters.targets.onnx import genai
from converters.targets.onnx.graph import FLOAT, INT32, DataFile, Graph
from converters.targets.onnx.integer_weights import RowForm, read_floats
from converters.targets.onnx.llama import rope_factors
from converters.targets.onnx.qdq import QdqGraph
from converters.targets.onnx.static_llama import Shape, StaticLlama
from converters.targets.onnx.static_llama4 import StaticLlama4, check_context
from converters.targets.onnx.text import token_ids
from converters.tokenizers.writer import write_files
from edge_llama.errors import CheckpointError, OptionError
from edge_llama.files.formats import F16
from edge_llama.files.onnx_static import COS, EMBEDS, HIDDEN, MASK, SIN
from quant.onnx_recipe import STATIC
from quant.ranges import Ranges, fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = "inputs.onnx"
PART_BYTES = 1_900_000_000
"""Weights that a graph has at most unless asked otherwise: what an NPU's engine compiles to is 2 GB at most."""
_NORMS = ("model.layers.0.input_layernorm.weight", "model.norm.weight")
_GRAPHS: Mapping[str, type[StaticLlama]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), StaticLlama),
    "llama4": StaticLlama4,
}
"""By ``Architecture.name``."""
_BLOCK = 32
N_CTX = 2048
"""Positions that graphs see unless another number is asked for, or the model has less."""
_WINDOW, _WINDOWS = 64, range(8, 257)
_KV_BITS = (8, 16)


@dataclass(frozen=True, slots=True)
class _Static:
    """What the three graphs have in common."""

    graph: type[StaticLlama]
    hp: Hyperparameters
    tensors: Mapping[str, Tensor]
    ranges: Ranges
    form: RowForm
    window: int
    n_ctx: int
    kv_bits: int
    is_portable: bool


def static_files(checkpoint: Checkpoint, options: Options) -> TowerFiles:
    """The text tower in integers, by ``options.quant`` of :data:`quant.onnx_recipe.STATIC` and measured ranges.

    CheckpointError for a checkpoint that is not whole or has no such form, OptionError if ``options`` don't fit it.
    """
    hp, tensors = tower_of(checkpoint)
    check_static(checkpoint, hp)
    static = _Static(
        *(graph_of(checkpoint), hp, tensors, _ranges(checkpoint, hp, tensors, options)),
        *(_form(options), *_sizes(hp, options), _kv_bits(options)),
        is_portable=options.portable,
    )
    if hp.layer_types:
        check_context(checkpoint, hp, static.n_ctx)
    data, inputs = DataFile("decoder.onnx.data"), _inputs(static)
    layers = _parts(static, options.max_shard_bytes or PART_BYTES)
    named = [(part.prompt, part.layers, static.window) for part in layers]
    named += [(part.token, part.layers, 1) for part in layers]
    parts = [_decoder(static, which, rows, name, data).part(name) for name, which, rows in named]
    parts += [data.part(), inputs.part(INPUTS), inputs.data.part()]
    config = genai.pipeline(
        *(hp, _token_ids(checkpoint), checkpoint.generation),
        window=static.window,
        n_ctx=static.n_ctx,
        kv_bits=static.kv_bits,
        inputs=INPUTS,
        parts=layers,
    )
    files = {
        "genai_config.json": config,
        "generation_config.json": generation(checkpoint),
        **write_files(checkpoint.vocabulary, checkpoint.path),
    }
    return TowerFiles(tuple(parts), {name: encoded(content, name, checkpoint) for name, content in files.items()})


def _token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """As in other folders, but for the pad."""
    vocabulary = checkpoint.vocabulary
    pad = genai.padding(vocabulary, [*generation_config.end_ids(checkpoint.generation), *end_ids(vocabulary)])
    return {**token_ids(checkpoint), **({} if pad is None else {"pad_token_id": pad})}


def tower_of(checkpoint: Checkpoint) -> tuple[Hyperparameters, Mapping[str, Tensor]]:
    """The text tower's hyperparameters, and its tensors under Hugging Face's names."""
    architecture = for_config(checkpoint)
    return architecture.hyperparameters(checkpoint), architecture.tower_tensors(checkpoint)


def check_static(checkpoint: Checkpoint, hp: Hyperparameters) -> None:
    """CheckpointError for a family whose graph in integers is not known."""
    others = {
        "attention in a sliding window": any(hp.window_layers),
        "norms after attention": hp.post_norms,
        "scaled embeddings": hp.embedding_scale != 1.0,
        "bent logits": hp.final_softcap is not None,
        "biases in feed-forward layers": hp.mlp_bias,
        f"{hp.n_expert_used} experts for a row": hp.n_expert_used > 1,
        f"the activation {hp.activation}": hp.activation not in ("silu", "swish"),
    }
    why = next((what for what, has in others.items() if has), None)
    if why is None and for_config(checkpoint).name not in _GRAPHS:
        why = f"an architecture that is none of {', '.join(_GRAPHS)}"
    if why is not None:
        raise CheckpointError(
            f"{checkpoint.path}: has {why}, for which there is no graph in integers",
            remedy="convert it with --quant int4, or to GGUF",
        )


def graph_of(checkpoint: Checkpoint) -> type[StaticLlama]:
    """What writes the graphs of this family."""
    return _GRAPHS[for_config(checkpoint).name]


def rotary_rates(hp: Hyperparameters, tensors: Mapping[str, Tensor]) -> "tuple[NDArray[np.float32], np.float32]":
    """By what positions are multiplied to give angles, (head_dim / 2,), and cosines and sines of these."""
    rates = frequencies(hp.head_dim, hp.rope.theta, hp.rope.scaling, rope_factors(tensors))
    return rates, np.float32(attention_factor(hp.rope))


def tower_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """What tells this text tower from every other: norms, and the first row of each matrix.

    Who trains a model further often leaves its norms alone, or all matrices but a few.
    """
    matrices = sorted(name for name, tensor in tensors.items() if len(tensor.shape) > 1)
    return fingerprint(_first_row(tensors[name]) for name in (*_NORMS, *matrices))


def _first_row(tensor: Tensor) -> "NDArray[np.float32]":
    row: NDArray[np.float32] = read_floats(tensor, 0, min(tensor.step, tensor.rows), check=False)[0]  # step: by heads
    return row


def first_token(vocabulary: Vocabulary) -> int | None:
    """The token that every text begins with: bos, if the chat template writes it or it is added; else None."""
    bos = vocabulary.special.get("bos")
    if bos is None or not 0 <= bos < len(vocabulary.tokens):
        return None
    template = vocabulary.chat_templates.get("default", "")
    is_written = "bos_token" in template or vocabulary.tokens[bos] in template
    return bos if is_written or (not template and vocabulary.add.get("bos", False)) else None


def _ranges(checkpoint: Checkpoint, hp: Hyperparameters, tensors: Mapping[str, Tensor], options: Options) -> Ranges:
    ranges = ranges_for(options, "text", checkpoint.path)
    if ranges.tower != tower_fingerprint(tensors):
        raise OptionError(
            f"--calibration {ranges.path}: of another text tower than {checkpoint.path}",
            remedy=f"calibrate this one: edge-llama calibrate {checkpoint.path} TEXT ranges.json",
        )
    token, shape = first_token(checkpoint.vocabulary), (hp.n_layer, hp.n_head_kv, hp.head_dim)
    first = ranges.first
    if (first and first.token) != token or (first and first.keys.shape != shape):
        raise OptionError(
            f"--calibration {ranges.path}: its texts begin with token {first and first.token}, those of "
            f"{checkpoint.path} with {token}, or its layers are others",
            remedy=f"calibrate this one: edge-llama calibrate {checkpoint.path} TEXT ranges.json",
        )
    return ranges


def _form(options: Options) -> RowForm:
    bits = STATIC[options.quant or ""]
    return RowForm(bits, _BLOCK if bits == 4 and not options.portable else 0)


def _sizes(hp: Hyperparameters, options: Options) -> tuple[int, int]:
    """The window and the context."""
    n_ctx = min(N_CTX, hp.n_ctx) if options.n_ctx is None else options.n_ctx
    if not 0 < n_ctx <= hp.n_ctx:
        raise OptionError(
            f"--n-ctx {n_ctx:,}: the model was trained with {hp.n_ctx:,}", remedy=f"take one of 16 to {hp.n_ctx:,}"
        )
    window = min(_WINDOW, n_ctx // 2) if options.window is None else options.window
    if window not in _WINDOWS or 2 * window > n_ctx:
        most = min(_WINDOWS[-1], n_ctx // 2)
        raise OptionError(
            f"--window {window:,}: a graph reads {_WINDOWS[0]} to {_WINDOWS[-1]} tokens, at most half of --n-ctx",
            remedy=f"take one of up to {most:,}, or a larger --n-ctx",
        )
    return window, n_ctx


def _kv_bits(options: Options) -> int:
    bits = _KV_BITS[0] if options.kv_bits is None else options.kv_bits
    if bits not in _KV_BITS:
        raise OptionError(f"--kv-bits {bits:,}: unknown", remedy=f"known: {' and '.join(map(str, _KV_BITS))}")
    return bits


def _parts(static: _Static, most: int) -> list[genai.Part]:
    """The graphs' layers: as many together as have weights of at most ``most`` bytes, and at least one."""
    hp = static.hp
    sizes = [0] * hp.n_layer
    for name, tensor in static.tensors.items():
        if name.startswith("model.layers."):
            form, count = static.form.of(tensor), prod(tensor.shape)
            sizes[int(name.split(".")[2])] += count * form.bits // 8 + (count // form.block if form.block else 0)
    sizes[-1] += hp.n_vocab * hp.n_embd  # what gives logits has 8 bits
    starts, filled = [0], 0
    for layer, size in enumerate(sizes):
        if layer > starts[-1] and filled + size > most:
            starts.append(layer)
            filled = 0
        filled += size
    ranges = [range(start, stop) for start, stop in pairwise([*starts, hp.n_layer])]
    numbers = [f"_{number}" for number in range(1, len(ranges) + 1)] if len(ranges) > 1 else [""]
    return [
        genai.Part(part, f"prompt{number}.onnx", f"token{number}.onnx")
        for part, number in zip(ranges, numbers, strict=True)
    ]


def _decoder(static: _Static, layers: range, rows: int, name: str, data: DataFile) -> Graph:
    norm_is_one = not static.is_portable
    opset = 23 if norm_is_one else 21
    graph = QdqGraph(name.removesuffix(".onnx"), data, static.ranges, opset, kept_bits=static.kv_bits)
    return static.graph(
        *(static.hp, static.tensors, graph, Shape(rows, static.n_ctx), static.form, static.ranges.first),
        norm_is_one=norm_is_one,
        layers=layers,
    ).write()


def _inputs(static: _Static) -> Graph:
    """The first stage: what follows from ids and places alone, in float32, for any number of rows."""
    hp, graph = static.hp, Graph("inputs", DataFile("inputs.onnx.data"))
    ids = graph.input("input_ids", (1, "rows"), INT32)
    known = graph.input("attention_mask", (1, static.n_ctx), INT32)
    places = graph.input("position_ids", (1, "rows"), INT32)
    table = graph.weight("embedding", static.tensors["model.embed_tokens.weight"], F16)
    graph.output(graph.op("Gather", table, ids, name=EMBEDS, axis=0), (1, "rows", hp.n_embd))
    graph.output(_mask(graph, ids, known, static), (1, 1, "rows", static.n_ctx + (static.ranges.first is not None)))
    for values in _turns(graph, places, static):
        graph.output(values, (1, 1, "rows", hp.head_dim // 2))
    return graph


def _turns(graph: Graph, places: ir.Value, static: _Static) -> list[ir.Value]:
    rates, strength = rotary_rates(static.hp, static.tensors)
    numbers = graph.op("Cast", places, name="places", to=int(FLOAT))
    column = graph.op("Unsqueeze", numbers, graph.constant("places.axes", [1, 3]), name="places.column")
    angles = graph.op("Mul", column, graph.constant("rates", rates[None, None, None]), name="angles")
    found = []
    for kind, name in (("Cos", COS), ("Sin", SIN)):
        if strength == 1:
            found.append(graph.op(kind, angles, name=name))
        else:
            exact = graph.op(kind, angles, name=f"{name}.plain")
            found.append(graph.op("Mul", exact, graph.constant(f"{name}.strength", float(strength)), name=name))
    return found


def _mask(graph: Graph, ids: ir.Value, known: ir.Value, static: _Static) -> ir.Value:
    """0 where a row sees a column, and a number far below 0 elsewhere.

    Columns are right-aligned: a row is its own last one. The token of position 0 has a column of its own before all
    others; that which the prompt's has, the first that is known, is hidden.
    """
    n_ctx = static.n_ctx
    one = graph.constant("one", np.array(1))
    count = graph.op("Squeeze", graph.op("Shape", ids, name="rows.shape", start=1, end=2), name="rows")
    number = graph.op("Range", graph.constant("zero", np.array(0)), count, one, name="row")
    first = graph.op("Sub", graph.constant("columns.count", np.array(n_ctx)), count, name="columns.before")
    own = graph.op("Add", number, first, name="row.column")
    own = graph.op("Unsqueeze", own, graph.constant("row.axis", [1]), name="row.own")
    columns = graph.constant("columns", np.arange(n_ctx)[None])
    is_before = graph.op("LessOrEqual", columns, own, name="is_before")
    is_known = graph.op("Cast", known, name="is_known", to=int(ir.DataType.BOOL))
    if static.ranges.first is not None:
        numbers = graph.op("Cast", known, name="known", to=int(ir.DataType.INT64))
        so_far = graph.op("CumSum", numbers, one, name="so_far")
        is_known = graph.op("And", is_known, graph.op("Greater", so_far, one, name="is_later"), name="is_known_later")
    is_seen = graph.op("And", is_before, is_known, name="is_seen")
    nothing, hidden = graph.constant("seen", 0.0), graph.constant("hidden", HIDDEN)
    rows = graph.op("Where", is_seen, nothing, hidden, name="mask.rows")
    if static.ranges.first is not None:
        left = graph.constant("mask.pads", [0, 1, 0, 0])
        rows = graph.op("Pad", rows, left, nothing, name="mask.with_first")
    return graph.op("Unsqueeze", rows, graph.constant("mask.axes", [0, 1]), name=MASK)

"""How fast a model will be, measured without it: by some layers of its shapes and formats whose weights are all zero.

A kernel takes as long for zeros as for other numbers, and a file of zeros is a hole: it costs neither disk nor time.
Experts are one dense part as wide as those that a token goes to. Two stand-ins of few and of more layers tell what a
layer takes and what a step does; a third, of few layers below a vocabulary of many tokens, what the head takes.
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from edge_llama.backends.base import CacheSize, OneSequence, Setting
from edge_llama.backends.estimates import Pace
from edge_llama.backends.llama_cpp import build_probe
from edge_llama.backends.llama_cpp.text import LlamaCppTower
from edge_llama.files.formats import F16, F32, FORMATS, Format
from edge_llama.files.gguf import ALIGNMENT, ValueType, array, encode_header, f32, string, u32
from edge_llama.files.gguf_text import read_gguf_text
from edge_llama.files.shape import TextShape, nearest_multiple
from edge_llama.host import devices, user_cache

_KIND = "stand-in-speed"
_VOCABULARY = 256
_BYTES = 192 << 20
"""Of weights in the larger stand-in, and of a head: more than caches hold, little enough to be loaded in a moment."""
_CHOICE = 0.05e-3
"""Seconds between a token's logits and the next decode: our own part, measured on a Xeon of 2 GHz."""
_ROUTING, _ROUTER = 0.04e-3, "ffn_gate_inp"
"""Seconds that a layer takes to choose a token's experts, which no stand-in has; by the tensor that does so."""
_PROMPT, _DEPTH, _DECODES, _PREFILLS = 512, 512, 9, 3
_ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_CLOSEST = FORMATS["q8_0"]
"""In place of a format whose blocks don't fit the rows of a stand-in."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """What was measured of a stand-in, a median each: a token at the beginning and at a depth, and a prompt's token."""

    decode: float
    decode_deep: float
    prefill: float


def pace(shape: TextShape, setting: Setting, threads: int) -> Pace:
    """How fast a model of this shape is here with so many threads; what was measured is remembered.

    EngineError if llama.cpp does not work here.
    """
    few, more = _counts(shape)
    found = [_seconds(shape, count, setting, threads) for count in (few, more)]
    rows = _head_rows(shape)
    with_head = _seconds(shape, few, setting, threads, rows)
    layers = shape.n_layer / more if few == more else (shape.n_layer - few) / (more - few)

    def whole(name: str) -> float:
        first, last = (getattr(each, name) for each in found)
        return float(last * layers if few == more else first + max(0.0, last - first) * layers)

    decode, prefill = whole("decode"), whole("prefill")
    head = max(0.0, with_head.decode - found[0].decode) * shape.n_vocab / rows
    deeper = max(0.0, whole("decode_deep") - decode) / _DEPTH
    decode += _CHOICE + _ROUTING * sum(_ROUTER in tensor.name for tensor in shape.tensors)
    return Pace(decode + head, deeper, prefill)  # of a prompt only the last token's logits are computed


def _counts(shape: TextShape) -> tuple[int, int]:
    """Layers of the two stand-ins."""
    more = max(1, min(shape.n_layer, -(-_BYTES // max(_layer_bytes(shape), 1))))
    return max(1, more // 3), more


def _layer_bytes(shape: TextShape) -> int:
    """Bytes of a layer that a token is multiplied by, on average."""
    return max(0, shape.active_bytes - _head_bytes(shape)) // max(shape.n_layer, 1)


def _head_bytes(shape: TextShape) -> int:
    return sum(tensor.nbytes for tensor in shape.tensors if tensor.name == _head_name(shape))


def _head_name(shape: TextShape) -> str:
    return "output.weight" if shape.has_output else "token_embd.weight"


def _head_format(shape: TextShape) -> Format:
    found = (tensor.format for tensor in shape.tensors if tensor.name == _head_name(shape))
    return _fitting(next((each for each in found if each.block_size), F16), (shape.n_embd,))


def _head_rows(shape: TextShape) -> int:
    """Tokens of the stand-in's larger vocabulary."""
    return max(_VOCABULARY, min(shape.n_vocab, _BYTES // _head_format(shape).row_bytes(shape.n_embd)))


def _seconds(shape: TextShape, n_layer: int, setting: Setting, threads: int, n_vocab: int = _VOCABULARY) -> Seconds:
    """Those of a stand-in of so many layers."""
    header = _header(shape, n_layer, n_vocab)
    key = {
        "header": hashlib.sha256(header).hexdigest(),
        "setting": asdict(setting),
        "threads": threads,
        "build": build_probe.build(),
        "cpu": asdict(devices.cpu()),
    }
    if found := user_cache.recall(_KIND, key):
        return Seconds(**found)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stand-in.gguf"
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + _data_bytes(shape, n_layer, n_vocab))
        measured = _measured(path, setting, threads)
    if devices.free_threads() == devices.cpu_threads():  # else others had a part of the time
        user_cache.remember(_KIND, key, asdict(measured))
    return measured


def _measured(path: Path, setting: Setting, threads: int) -> Seconds:
    tower = LlamaCppTower(
        read_gguf_text(path),
        cache=CacheSize.of_one(_PROMPT + _DEPTH),
        threads=threads,
        flash_attention=bool(setting.flash_attention),
        kv_format=setting.kv_format,
        n_batch=setting.n_batch,
    )
    with closing(tower):
        sequence = OneSequence(tower)
        prefill = statistics.median(_timed(sequence, 0, _PROMPT, setting.n_batch) for _ in range(_PREFILLS))
        deep = statistics.median(_timed(sequence, _DEPTH - 1, 1, 1) for _ in range(_DECODES))
        near = statistics.median(_timed(sequence, 1, 1, 1) for _ in range(_DECODES))
    return Seconds(near, deep, prefill / _PROMPT)


def _timed(sequence: OneSequence, depth: int, count: int, step: int) -> float:
    """Seconds for ``count`` tokens after ``depth`` others that are there."""
    sequence.cut(depth)
    begun = time.perf_counter()
    for at in range(0, count, step):
        sequence.decode([3] * min(step, count - at))
    return time.perf_counter() - begun


def _header(shape: TextShape, n_layer: int, n_vocab: int) -> bytes:
    fields = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(n_layer),
        "llama.context_length": u32(_PROMPT + _DEPTH),
        "llama.embedding_length": u32(shape.n_embd),
        "llama.feed_forward_length": u32(_n_ff(shape)),
        "llama.attention.head_count": u32(shape.n_head),
        "llama.attention.head_count_kv": u32(shape.n_head_kv),
        "llama.attention.key_length": u32(shape.head_dim),
        "llama.attention.value_length": u32(shape.head_dim),
        "llama.rope.dimension_count": u32(shape.head_dim),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.vocab_size": u32(n_vocab),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, [f"{token}" for token in range(n_vocab)]),
    }
    return encode_header(fields, _tensors(shape, n_layer, n_vocab))[0]


def _data_bytes(shape: TextShape, n_layer: int, n_vocab: int) -> int:
    """Of all tensors, each padded."""
    sizes = (
        prod(dims[:-1]) * format_.row_bytes(dims[-1]) for _name, dims, format_ in _tensors(shape, n_layer, n_vocab)
    )
    return sum(nearest_multiple(size, ALIGNMENT) for size in sizes)


def _tensors(shape: TextShape, n_layer: int, n_vocab: int) -> list[tuple[str, tuple[int, ...], Format]]:
    n_embd, n_ff = shape.n_embd, _n_ff(shape)
    query, key = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    sizes = {
        "attn_q": (query, n_embd),
        "attn_k": (key, n_embd),
        "attn_v": (key, n_embd),
        "attn_output": (n_embd, query),
        "ffn_gate": (n_ff, n_embd),
        "ffn_up": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
    }
    formats = _formats(shape)
    found: list[tuple[str, tuple[int, ...], Format]] = [
        ("token_embd.weight", (n_vocab, n_embd), F16 if n_vocab == _VOCABULARY else _head_format(shape)),
        ("output_norm.weight", (n_embd,), F32),
    ]
    for layer in range(n_layer):
        source = layer * shape.n_layer // n_layer  # spread over the model's own: recipes differ by layer
        found += [(f"blk.{layer}.{norm}.weight", (n_embd,), F32) for norm in ("attn_norm", "ffn_norm")]
        found += [
            (
                f"blk.{layer}.{role}.weight",
                dims,
                _fitting(formats.get((role, source), formats.get((role, -1), F16)), dims),
            )
            for role, dims in sizes.items()
        ]
    return found


def _fitting(format_: Format, dims: Sequence[int]) -> Format:
    """The format, if rows are whole blocks of it."""
    if dims[-1] % format_.block_size == 0:
        return format_
    return _CLOSEST if dims[-1] % _CLOSEST.block_size == 0 else F16


def _formats(shape: TextShape) -> Mapping[tuple[str, int], Format]:
    """By role and layer; at -1 that of any layer. Of experts the format is their role's."""
    found: dict[tuple[str, int], Format] = {}
    for tensor in shape.tensors:
        block, number, name, *_ = (*tensor.name.split("."), "", "")
        role = next((role for role in _ROLES if name.startswith(role)), "")
        if block == "blk" and number.isdigit() and role and tensor.format.block_size:
            found[role, int(number)] = found[role, -1] = tensor.format
    return found


def _n_ff(shape: TextShape) -> int:
    """As wide as makes a layer's feed-forward bytes those that a token is multiplied by; whole blocks of 256."""
    active = 0.0
    for tensor in shape.tensors:
        if ".ffn_" in tensor.name and len(tensor.shape) > 1 and _ROUTER not in tensor.name:
            weights = tensor.nbytes * tensor.format.block_size // tensor.format.block_bytes
            active += weights * shape.n_expert_used / shape.n_expert if "_exps." in tensor.name else weights
    width = round(active / max(3 * shape.n_layer * shape.n_embd, 1)) or shape.n_ff
    return max(32, width // 256 * 256 if width >= 256 else width // 32 * 32)

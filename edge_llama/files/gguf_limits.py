"""A sound GGUF header against what a text model needs, and against what llama.cpp would end the process on.

llama.cpp refuses much of what is wrong by itself, which becomes a typed error. What is checked here are the asserts,
aborts and uncaught exceptions that one wrong field of a Llama reaches (``tests/field_sweep.py`` finds them), and what
it takes in silence to compute nonsense. Limits are those of ``llama-hparams.h``, ``llama-model.cpp: load_hparams``
and ``llama-vocab.cpp: load`` in llama-cpp-python 0.3.36. For architectures whose graphs are not known here
``backends/llama_cpp/first_run.py`` is the net: it tries a file out in a child process.
"""

import math
from collections.abc import Sequence
from typing import Any

from edge_llama.errors import ArtifactError
from edge_llama.files.formats import F32, FORMATS
from edge_llama.files.gguf import DAMAGED, Header, TensorInfo, ValueType

_MAX_LAYERS, _MAX_EXPERTS = 512, 1024
_SCALINGS = ("none", "linear", "yarn", "longrope")
_WITHOUT_TEXT = ("none", "no_vocab", "test")  # vocabularies that turn no text into tokens
_WITHOUT_BYTES, _BYTE = ("bert", "rwkv", "plamo2"), 6
GRAPHS = ("llama", "llama4", "qwen2", "qwen3", "smollm3", "gemma3")
"""Architectures of which it is known here what their graphs assert: those that the converter writes."""
LLAMA4_NOPE_INTERVAL = 4
"""Every so many layers have no rotary embedding, which is built into llama.cpp."""
_WHOLE = {ValueType.UINT8, ValueType.INT8, ValueType.UINT16, ValueType.INT16}
_WHOLE |= {ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64}
NOT_MULTIPLIED = {FORMATS[name] for name in ("q8_1", "q8_k", "i8", "i16", "i32", "i64", "f64")}
"""Formats that no product takes: for use inside one, or for other things than weights."""


def check_model(headers: Sequence[Header]) -> None:
    """Check the model that lies in these files, its metadata in the first. ArtifactError names what is wrong."""
    header = headers[0]
    tensors = [tensor for header in headers for tensor in header.tensors]
    _check_vocabulary(header)
    _check_reals(header)
    _check_experts(header)
    scaling = header.get(f"{header.architecture}.rope.scaling.type", str, "linear")
    if scaling not in _SCALINGS:
        raise _wrong(header, "rope.scaling.type", f"is {scaling[:100]!r}", f"known: {', '.join(_SCALINGS)}")
    _check_blocks(header, tensors)
    if header.architecture in GRAPHS:
        _check_head_sizes(header)
        _check_formats(tensors, header)
    if header.architecture == "llama4":
        _check_llama4(header)


def numbers(header: Header, key: str) -> list[int]:
    """The whole numbers under ``key``, of which there may be one for all layers or one for each; none if absent."""
    value = header.fields.get(key)
    if value is None:
        return []
    if value.type is ValueType.ARRAY and value.item in _WHOLE:
        return [int(number) for number in value.data]
    return [header.get(key, int, 0)]


def _wrong(header: Header, key: str, problem: str, remedy: str = DAMAGED) -> ArtifactError:
    """The error about one of the architecture's own keys."""
    return ArtifactError(f"{header.path}: {header.architecture}.{key} {problem}", remedy=remedy)


def _check_vocabulary(header: Header) -> None:
    prefix = "tokenizer.ggml."
    kind = header.get(prefix + "model", str, "")
    if kind in _WITHOUT_TEXT:
        raise ArtifactError(
            f"{header.path}: tokenizer.ggml.model is {kind!r}: the file has no vocabulary for text",
            remedy="convert the model again with its tokenizer",
        )
    tokens = items(header, prefix + "tokens", ValueType.STRING)
    if tokens is None:
        raise ArtifactError(
            f"{header.path}: tokenizer.ggml.tokens is missing", remedy="convert the model again with its tokenizer"
        )
    for key, kinds in (("scores", (ValueType.FLOAT32, ValueType.INT32)), ("token_type", (ValueType.INT32,))):
        values = items(header, prefix + key, *kinds)
        if values is not None and len(values) != len(tokens):
            raise ArtifactError(
                f"{header.path}: tokenizer.ggml.{key} has {len(values):,} entries for {len(tokens):,} tokens",
                remedy=DAMAGED,
            )
    if kind in _WITHOUT_BYTES and _BYTE in items(header, prefix + "token_type", ValueType.INT32, default=()):
        raise ArtifactError(
            f"{header.path}: tokenizer.ggml.token_type has tokens for bytes, which a {kind!r} vocabulary has not",
            remedy=DAMAGED,
        )
    _check_unique(header, tokens)
    _check_ids(header, len(tokens))


def items(header: Header, key: str, *kinds: ValueType, default: Any = None) -> Any:
    """The array under ``key``, checked to hold values of one of ``kinds``; ``default`` if absent."""
    value = header.fields.get(key)
    if value is None:
        return default
    if value.item not in kinds:
        expected = " or ".join(kind.name.lower() for kind in kinds)
        raise ArtifactError(
            f"{header.path}: {key} is {str(value.data)[:100]!r}, expected an array of {expected}", remedy=DAMAGED
        )
    return value.data


def _check_unique(header: Header, tokens: Sequence[str]) -> None:
    """llama.cpp asserts that no text has two ids; it calls an empty one ``[EMPTY_n]``."""
    texts = [text or f"[EMPTY_{index}]" for index, text in enumerate(tokens)] if "" in tokens else tokens
    if len(set(texts)) == len(texts):
        return
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        first = seen.setdefault(text, index)
        if first != index:
            raise ArtifactError(
                f"{header.path}: tokenizer.ggml.tokens gives {text[:100]!r} the ids {first:,} and {index:,}",
                remedy=DAMAGED,
            )


def _check_ids(header: Header, n_tokens: int) -> None:
    for key in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        token = header.get(f"tokenizer.ggml.{key}_token_id", int, 0)
        if not 0 <= token < n_tokens:
            raise ArtifactError(
                f"{header.path}: tokenizer.ggml.{key}_token_id is {token}, past the {n_tokens:,} tokens",
                remedy=DAMAGED,
            )


def _check_blocks(header: Header, tensors: Sequence[TensorInfo]) -> None:
    n_layer = header.get(f"{header.architecture}.block_count", int, 0)
    names = (tensor.name.split(".") for tensor in tensors)
    blocks = {name[1] for name in names if name[0] == "blk" and len(name) > 1}
    if n_layer > len(blocks):
        raise _wrong(
            header,
            "block_count",
            f"is {n_layer:,}, but there are tensors of {len(blocks):,} blocks",
            "the file is incomplete: download or convert it again",
        )
    if n_layer > _MAX_LAYERS:
        raise _wrong(header, "block_count", f"is {n_layer:,}, llama.cpp takes at most {_MAX_LAYERS}")
    if (more := header.get(f"{header.architecture}.nextn_predict_layers", int, 0)) > n_layer:
        raise _wrong(header, "nextn_predict_layers", f"is {more:,} of {n_layer:,} layers")


def _check_reals(header: Header) -> None:
    """What no assert catches: NaN and infinity make every answer nonsense."""
    for key in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base"):
        number = header.get(f"{header.architecture}.{key}", float, 1.0)
        if not 0 <= number < math.inf:
            raise _wrong(header, key, f"is {number}, expected a positive number")


def _check_experts(header: Header) -> None:
    n_expert, groups, used_groups = (
        header.get(f"{header.architecture}.{key}", int, 0)
        for key in ("expert_count", "expert_group_count", "expert_group_used_count")
    )
    used = max(numbers(header, f"{header.architecture}.expert_used_count"), default=0)
    if not 0 <= n_expert <= _MAX_EXPERTS:
        raise _wrong(header, "expert_count", f"is {n_expert:,}, llama.cpp takes at most {_MAX_EXPERTS:,}")
    if not min(n_expert, 1) <= used <= n_expert:
        raise _wrong(header, "expert_used_count", f"is {used:,} of {n_expert:,} experts")
    if not 0 <= groups < max(n_expert, 1) or (groups > 1 and n_expert % groups):
        raise _wrong(header, "expert_group_count", f"is {groups:,} for {n_expert:,} experts")
    if groups > 1 and not 0 < used_groups < groups:
        raise _wrong(header, "expert_group_used_count", f"is {used_groups:,} of {groups:,} groups")


def _check_head_sizes(header: Header) -> None:
    prefix = header.architecture
    heads = max(numbers(header, f"{prefix}.attention.head_count"), default=1)
    default = header.get(f"{prefix}.embedding_length", int, 0) // max(heads, 1)
    key, value = (header.get(f"{prefix}.attention.{which}_length", int, default) for which in ("key", "value"))
    if key != value:
        raise _wrong(header, "attention.value_length", f"is {value:,}, expected {key:,} as key_length")
    rotary = header.get(f"{prefix}.rope.dimension_count", int, key)
    if prefix != "llama" and rotary != key and key:  # llama.cpp itself refuses it for a llama
        raise _wrong(header, "rope.dimension_count", f"is {rotary:,}, expected {key:,} as key_length")


def _check_llama4(header: Header) -> None:
    """What the graph feeds with positions must be in it: the attention of the layers without rotary embedding."""
    n_layer = header.get("llama4.block_count", int, 0)
    if n_layer < LLAMA4_NOPE_INTERVAL:
        raise _wrong(header, "block_count", f"is {n_layer:,}, llama.cpp needs {LLAMA4_NOPE_INTERVAL} or more")
    if header.get("llama4.attention.sliding_window", int, 1) == 0:
        raise _wrong(header, "attention.sliding_window", "is 0, which llama.cpp can't compute with", "leave it out")


def _check_formats(tensors: Sequence[TensorInfo], header: Header) -> None:
    """A Llama's vectors (norms, biases, frequencies, scales) are taken as f32; its matrices are multiplied."""
    for tensor in tensors:
        is_vector = math.prod(tensor.shape[:-1]) == 1
        if (is_vector and tensor.format is not F32) or tensor.format in NOT_MULTIPLIED:
            raise ArtifactError(
                f"{header.path}: tensor {tensor.name!r} is stored as {tensor.format}, "
                f"{'expected f32' if is_vector else 'which no product takes'}",
                remedy="convert the model again",
            )

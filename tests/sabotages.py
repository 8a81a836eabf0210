"""Converted files that were wronged in one place, drawn at random: what a wrong conversion does, and which part it is.

A GGUF file goes in and another comes out, as a converter with that fault would have written it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ggufs import quantized, read_tensor, rewritten
from numpy.typing import NDArray

from edge_llama.files.formats import F32
from edge_llama.files.gguf import Header, TensorInfo, Value, ValueType, array, read_header
from quant.reference import ggml

Raw = NDArray[np.uint8]
Data = Callable[[TensorInfo, Raw], Raw]


@dataclass(frozen=True, slots=True)
class Wronged:
    """What was done: the part that is wrong by the names of :mod:`converters.evidence.faults`, and what exactly."""

    part: str
    told: str


Sabotage = Callable[[np.random.Generator, Path, Path], Wronged]


def rows_of_q_permuted(rng: np.random.Generator, source: Path, output: Path) -> Wronged:
    """Some rows of one layer's q, two at least, in another order; k stays."""
    info = _drawn(rng, source, "attn_q.weight")
    rows = info.shape[0]
    chosen = rng.choice(rows, int(rng.integers(2, rows + 1)), replace=False)
    order = np.arange(rows)
    order[chosen] = np.roll(chosen, 1)
    _changed(source, output, info, lambda raw: raw[order])
    return Wronged(_layer(info), f"{len(chosen)} rows of {info.name}")


def heads_of_v_swapped(rng: np.random.Generator, source: Path, output: Path) -> Wronged:
    """Two heads of one layer's v; o stays."""
    header = read_header(source)
    info = _drawn(rng, source, "attn_v.weight")
    heads = header.get(f"{header.architecture}.attention.head_count_kv", int, 0)
    one, other = (int(head) for head in rng.choice(heads, 2, replace=False))

    def swapped(raw: Raw) -> Raw:
        by_head = raw.reshape(heads, -1, raw.shape[1]).copy()
        by_head[[one, other]] = by_head[[other, one]]
        return by_head.reshape(raw.shape)

    _changed(source, output, info, swapped)
    return Wronged(_layer(info), f"heads {one} and {other} of {info.name}")


def rope_scaling_dropped(_rng: np.random.Generator, source: Path, output: Path) -> Wronged:
    """Neither the factors of frequencies nor the keys that say how they are scaled."""
    header = read_header(source)
    dropped = {key: None for key in header.fields if ".rope.scaling." in key}
    assert dropped or any(info.name == "rope_freqs.weight" for info in header.tensors), "nothing is scaled"
    rewritten(source, output, fields=dropped, names=lambda info: info.name != "rope_freqs.weight")
    return Wronged("RoPE", "scaling dropped")


def expert_transposed(rng: np.random.Generator, source: Path, output: Path) -> Wronged:
    """The numbers of one expert's matrix as those of its transpose lie."""
    info = _drawn(rng, source, "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
    experts, rows, columns = info.shape
    expert = int(rng.integers(experts))

    def transposed(raw: Raw) -> Raw:
        numbers = ggml.dequantize(np.ascontiguousarray(raw), info.format).reshape(experts, rows, columns).copy()
        numbers[expert] = numbers[expert].T.reshape(rows, columns)
        again = quantized(numbers.reshape(-1, columns).view(np.uint8), F32, info.format).reshape(raw.shape)
        whole = raw.copy()
        whole[expert * rows : (expert + 1) * rows] = again[expert * rows : (expert + 1) * rows]
        return whole

    _changed(source, output, info, transposed)
    return Wronged(_layer(info), f"expert {expert} of {info.name}")


def routers_rows_swapped(rng: np.random.Generator, source: Path, output: Path) -> Wronged:
    """Two rows of one layer's router: two experts answer for each other."""
    info = _drawn(rng, source, "ffn_gate_inp.weight")
    one, other = (int(row) for row in rng.choice(info.shape[0], 2, replace=False))

    def swapped(raw: Raw) -> Raw:
        found = raw.copy()
        found[[one, other]] = raw[[other, one]]
        return found

    _changed(source, output, info, swapped)
    return Wronged(f"router of {_layer(info)}", f"rows {one} and {other} of {info.name}")


def another_tokenizer(rng: np.random.Generator, source: Path, output: Path) -> Wronged:
    """Two tokens that stand for each other, merges or scores in another order, or another way to split text."""
    fields = read_header(source).fields
    kinds = ["tokens", "merges" if "tokenizer.ggml.merges" in fields else "scores", "pre"]
    kind = str(rng.choice(kinds))
    changed = _tokenizer(rng, fields, kind)
    rewritten(source, output, fields=changed)
    return Wronged("tokenizer", kind)


def _tokenizer(rng: np.random.Generator, fields: Mapping[str, Value], kind: str) -> dict[str, Value | None]:
    key = f"tokenizer.ggml.{kind}"
    if kind == "pre":
        now = fields[key].data if key in fields else ""
        return {key: Value(ValueType.STRING, "gpt-2" if now != "gpt-2" else "llama-bpe")}
    values: list[Any] = list(fields[key].data)
    while True:
        one, other = (int(at) for at in rng.choice(len(values), 2, replace=False))
        if values[one] != values[other]:
            break
    values[one], values[other] = values[other], values[one]
    item = fields[key].item
    assert item is not None
    return {key: array(item, values if item is ValueType.STRING else np.asarray(values, np.float32))}


def norm_left_out(rng: np.random.Generator, source: Path, output: Path) -> Wronged:
    """Ones in place of one norm's weights."""
    info = _drawn(rng, source, "attn_norm.weight", "ffn_norm.weight", "output_norm.weight")
    assert info.format is F32
    _changed(source, output, info, lambda raw: np.ones(info.shape, np.float32).reshape(1, -1).view(np.uint8))
    return Wronged("final norm" if info.name == "output_norm.weight" else _layer(info), info.name)


def head_is_the_embedding(rng: np.random.Generator, source: Path, output: Path) -> Wronged:
    """The embedding's numbers in place of the head's own, or no head, so that the embedding serves."""
    tensors = {info.name: info for info in read_header(source).tensors}
    if rng.integers(2):
        rewritten(source, output, names=lambda info: info.name != "output.weight")
        return Wronged("head", "left out")
    head, table = tensors["output.weight"], tensors["token_embd.weight"]
    raw = quantized(read_tensor(source, table), table.format, head.format)
    _changed(source, output, head, lambda _: raw)
    return Wronged("head", "the embedding's numbers")


EVERYWHERE: Mapping[str, Sabotage] = {
    "rows of q permuted": rows_of_q_permuted,
    "two heads of v swapped": heads_of_v_swapped,
    "rope scaling dropped": rope_scaling_dropped,
    "another tokenizer": another_tokenizer,
    "a norm left out": norm_left_out,
    "own head replaced by the embedding": head_is_the_embedding,
}
OF_MIXTURES: Mapping[str, Sabotage] = {
    "an expert transposed": expert_transposed,
    "a router's rows swapped": routers_rows_swapped,
}


def of_file(path: Path) -> Iterator[tuple[str, Sabotage]]:
    """Those that can be done to a file, by name."""
    header: Header = read_header(path)
    yield from EVERYWHERE.items()
    if any(info.name.endswith("_exps.weight") for info in header.tensors):
        yield from OF_MIXTURES.items()


def _drawn(rng: np.random.Generator, source: Path, *endings: str) -> TensorInfo:
    found = [info for info in read_header(source).tensors if info.name.endswith(endings)]
    return found[int(rng.integers(len(found)))]


def _layer(info: TensorInfo) -> str:
    return f"layer {info.name.split('.')[1]}"


def _changed(source: Path, output: Path, changed: TensorInfo, change: Callable[[Raw], Raw]) -> None:
    rewritten(source, output, data=lambda info, raw: change(raw) if info.name == changed.name else raw)

"""Whole files equal llama.cpp's quantizer: tables, bytes and metadata, on shapes drawn anew each run.

The other half, that our float files equal llama.cpp's converter, needs its source: benchmarks/converter_parity.py.
"""

import ctypes
from pathlib import Path

import checkpoints
import llama_cpp
import numpy as np
import pytest

import converters
from edge_llama.gguf import Header, read_header
from quant.recipe import RECIPES


def quantized_by_llama_cpp(source: Path, output: Path, ftype: int) -> Path:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(params)) == 0
    return output


def table(header: Header) -> list[tuple[str, tuple[int, ...], str, int]]:
    return [(tensor.name, tensor.shape, tensor.format.name, tensor.offset) for tensor in header.tensors]


def random_shape(rng: np.random.Generator) -> checkpoints.Shape:
    """Rows that are whole super-blocks, and rows that are not; from one KV head to as many as query heads."""
    heads = int(rng.choice([4, 6, 8]))
    head_dim = int(rng.choice([32, 64]))
    kv_heads = int(rng.choice([divisor for divisor in range(1, heads + 1) if heads % divisor == 0]))
    return checkpoints.Shape(
        hidden=heads * head_dim,
        ffn=int(rng.choice([256, 288, 512, 544, 768])),
        layers=int(rng.integers(2, 12)),
        heads=heads,
        kv_heads=kv_heads,
    )


@pytest.mark.parametrize("quant", RECIPES)
@pytest.mark.parametrize("family", ["llama2", "llama3"])
def test_files_equal_llama_cpps(family: str, quant: str, rng: np.random.Generator, tmp_path: Path) -> None:
    shape = random_shape(rng)
    dtype = str(rng.choice(["F32", "BF16", "F16"]))
    tied = bool(rng.integers(2))
    print(f"{family} {shape} {dtype} tied={tied}")
    options = {"tied": tied} if family == "llama3" else {}
    folder = getattr(checkpoints, family)(
        tmp_path / "checkpoint",
        shape=shape,
        dtype=dtype,
        shards=int(rng.integers(1, 4)),
        seed=int(rng.integers(1000)),
        **options,
    )
    # An intermediate of f16 weights in bf16 would lose bits, so those go through f32 (as in llama.cpp's own advice).
    floats, ours = tmp_path / "floats.gguf", tmp_path / "ours.gguf"
    converters.convert(folder, floats, quant="bf16" if dtype == "BF16" else "f32")
    converters.convert(folder, ours, quant=quant)
    theirs = quantized_by_llama_cpp(floats, tmp_path / "theirs.gguf", RECIPES[quant].ftype)
    assert table(read_header(ours)) == table(read_header(theirs))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_built_in_model_equals_llama_cpps(smollm2: Path, converted: Path, tmp_path: Path) -> None:
    floats = tmp_path / "floats.gguf"
    converters.convert(smollm2, floats, quant="bf16")
    theirs = quantized_by_llama_cpp(floats, tmp_path / "theirs.gguf", RECIPES["q4_k_m"].ftype)
    assert converted.read_bytes() == theirs.read_bytes()

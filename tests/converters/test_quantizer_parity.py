"""Whole files equal llama.cpp's quantizer: tables, bytes and metadata, on shapes drawn anew each run.

The other half, that our float files equal llama.cpp's converter, needs its source: benchmarks/converter_parity.py.
"""

from pathlib import Path

import checkpoints
import numpy as np
import pytest
from quantizer import FORMATS_WITHOUT_IMPORTANCE, WITHOUT_IMPORTANCE, differences, quantized_by_llama_cpp

import converters
from edge_llama.files.gguf import read_header
from quant.recipe import RECIPES, ROLES


def random_shape(rng: np.random.Generator) -> checkpoints.Shape:
    """Rows that are whole super-blocks, and rows that are not; from one KV head to as many as query heads."""
    heads = int(rng.choice([4, 8]))
    hidden = int(rng.choice([128, 256, 288]))
    kv_heads = int(rng.choice([divisor for divisor in range(1, heads + 1) if heads % divisor == 0]))
    return checkpoints.Shape(
        hidden=hidden,
        ffn=int(rng.choice([256, 288, 352, 512])),
        layers=int(rng.integers(2, 12)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=None if hidden % (2 * heads) == 0 else 32,
    )


def random_checkpoint(family: str, rng: np.random.Generator, folder: Path) -> tuple[Path, str]:
    """A checkpoint, and the recipe of floats that loses nothing: an intermediate of f16 weights in bf16 would."""
    shape = random_shape(rng)
    dtype = str(rng.choice(["F32", "BF16", "F16"]))
    tied = bool(rng.integers(2))
    print(f"{family} {shape} {dtype} tied={tied}")
    options = {"tied": tied} if family == "llama3" else {}
    make = getattr(checkpoints, family)
    shards, seed = int(rng.integers(1, 4)), int(rng.integers(1000))
    make(folder, shape=shape, dtype=dtype, shards=shards, seed=seed, **options)
    return folder, "bf16" if dtype == "BF16" else "f32"


@pytest.mark.parametrize("quant", WITHOUT_IMPORTANCE)
@pytest.mark.parametrize("family", ["llama2", "llama3"])
def test_files_equal_llama_cpps(family: str, quant: str, rng: np.random.Generator, tmp_path: Path) -> None:
    folder, lossless = random_checkpoint(family, rng, tmp_path / "checkpoint")
    floats, ours = tmp_path / "floats.gguf", tmp_path / "ours.gguf"
    converters.convert(folder, floats, quant=lossless)
    converters.convert(folder, ours, quant=quant)
    theirs = quantized_by_llama_cpp(floats, tmp_path / "theirs.gguf", RECIPES[quant].ftype)
    assert not list(differences(read_header(ours), read_header(theirs)))


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m", "q3_k_m"])
def test_files_with_overridden_tensors_equal_llama_cpps(quant: str, rng: np.random.Generator, tmp_path: Path) -> None:
    folder, lossless = random_checkpoint("llama2", rng, tmp_path / "checkpoint")
    tensor_types = {
        str(role): str(rng.choice(FORMATS_WITHOUT_IMPORTANCE)) for role in rng.choice(ROLES, 3, replace=False)
    }
    print(tensor_types)
    floats, ours = tmp_path / "floats.gguf", tmp_path / "ours.gguf"
    converters.convert(folder, floats, quant=lossless)
    converters.convert(folder, ours, quant=quant, tensor_types=tensor_types)
    theirs = quantized_by_llama_cpp(floats, tmp_path / "theirs.gguf", RECIPES[quant].ftype, tensor_types)
    assert not list(differences(read_header(ours), read_header(theirs)))


def test_the_built_in_model_equals_llama_cpps(smollm2: Path, converted: Path, tmp_path: Path) -> None:
    floats = tmp_path / "floats.gguf"
    converters.convert(smollm2, floats, quant="bf16")
    theirs = quantized_by_llama_cpp(floats, tmp_path / "theirs.gguf", RECIPES["q4_k_m"].ftype)
    assert not list(differences(read_header(converted), read_header(theirs)))

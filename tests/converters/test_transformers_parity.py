"""What we convert answers as transformers does in float32.

Tolerance 1e-3 on the last logits (measured: about 2e-5), with an f32 KV cache and no flash attention.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import numpy as np
import pytest
import torch
from engines import greedy, last_logits
from ggufs import rewritten
from transformers import AutoModelForCausalLM

import converters

PROMPT_LENGTH, CONTINUATION = 40, 32
VOCABULARY = [f"tokenizer.ggml.{part}" for part in ("tokens", "token_type", "merges")]


def reference_logits(model: Any, tokens: list[int]) -> Any:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1].numpy()


def greedy_by_transformers(model: Any, tokens: list[int]) -> list[int]:
    """Plain argmax, so that no end token stops it early."""
    tokens = list(tokens)
    for _ in range(CONTINUATION):
        tokens.append(int(reference_logits(model, tokens).argmax()))
    return tokens[-CONTINUATION:]


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "llama 2": checkpoints.llama2,
    "llama 2, sharded, new config": lambda folder: checkpoints.llama2(folder, shards=3, old_spelling=False, seed=1),
    "llama 3.2": lambda folder: checkpoints.llama3(folder, dtype="F32"),
    "llama 3, untied, no scaling, old config": lambda folder: checkpoints.llama3(
        folder, dtype="F32", tied=False, rope_scaling=False, old_spelling=True, seed=2
    ),
    "llama 3.2, bf16, sharded": lambda folder: checkpoints.llama3(folder, dtype="BF16", shards=2, seed=3),
    "llama 3.2, f16": lambda folder: checkpoints.llama3(folder, dtype="F16", seed=4),
    "smollm": checkpoints.smollm,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_continuations_equal_transformers(variant: str, tmp_path: Path, rng: np.random.Generator) -> None:
    folder = VARIANTS[variant](tmp_path / "checkpoint")
    output = tmp_path / "model.gguf"
    converters.convert(folder, output, quant="f32")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = [int(token) for token in rng.integers(3, 500, PROMPT_LENGTH)]
    assert np.abs(last_logits(output, tokens) - reference_logits(reference, tokens)).max() < 1e-3
    assert greedy(output, tokens, CONTINUATION) == greedy_by_transformers(reference, tokens)


def test_a_gguf_written_out_as_a_checkpoint_is_the_same_model(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2's Q4_1 file to an f32 checkpoint: transformers' own GGUF reader is the witness for the weights.

    It is given them without the vocabulary, of which each word costs gguf-py a dozen views of an array, and spared
    asking gguf-py for the same names 397 times.
    """
    folder = tmp_path / "checkpoint"
    converters.convert(packaged, folder, to="safetensors", quant="f32")
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rewritten(packaged, tmp_path / "weights.gguf", fields=dict.fromkeys(VOCABULARY))
    monkeypatch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="weights.gguf", dtype=torch.float32)
    tokens = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4591, 47, 2, 198, 1, 520, 9531, 198]
    expected = reference_logits(theirs, tokens)
    assert np.array_equal(reference_logits(ours, tokens), expected)
    back = tmp_path / "back.gguf"
    converters.convert(folder, back, quant="f32")
    assert np.abs(last_logits(back, tokens) - expected).max() < 1e-3

"""Adapters for other families: llama.cpp's bytes, and beside the base the answers of the merged model.

Tolerance as in ``tests/test_adapters.py``; 1e-2 for Gemma 3, whose GELU llama.cpp looks up in a table of float16.
"""

from collections.abc import Callable
from pathlib import Path

import families
import llama4
import meta_folders
import numpy as np
import pytest
from adapters import LINEAR, in_training, saved, trained
from checkpoints import llama2
from engines import last_logits, logits_with
from ggufs import weights
from llama_cpp_converter import adapters_by_llama_cpp
from quantizer import differences

import converters
import edge_llama
from edge_llama.files.gguf import read_header

ATTENTION = LINEAR[:4]
FAMILIES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "Mistral": (families.mistral, LINEAR),
    "Mixtral": (families.mixtral, ATTENTION),
    "Qwen2.5": (families.qwen2, LINEAR),
    "Qwen3": (families.qwen3, LINEAR),
    "SmolLM3": (families.smollm3, LINEAR),
    "Gemma 3": (families.gemma3, LINEAR),
    "Llama 4": (llama4.text_only, [*ATTENTION, "router", "shared_expert.up_proj", "shared_expert.down_proj"]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_is_llama_cpps_and_answers_as_the_merged_model(name: str, tmp_path: Path) -> None:
    """Rows of queries and keys are in the family's own order."""
    make, targets = FAMILIES[name]
    base = make(tmp_path / "base")
    model = in_training(families.reference(base), r=4, lora_alpha=8, target_modules=targets)
    adapter = saved(model, tmp_path / "adapter")
    adapters_by_llama_cpp([(base, adapter, tmp_path / "theirs.gguf", "f32")])
    converters.convert(adapter, tmp_path / "ours.gguf", base=base)
    assert list(differences(read_header(tmp_path / "ours.gguf"), read_header(tmp_path / "theirs.gguf"))) == []
    converters.convert(base, tmp_path / "base.gguf", quant="f32")
    converters.convert(base, tmp_path / "merged.gguf", quant="f32", lora=adapter)
    tokens = [int(token) for token in np.random.default_rng(0).integers(3, 250, 30)]
    merged = last_logits(tmp_path / "merged.gguf", tokens)
    with edge_llama.open(
        tmp_path / "base.gguf", n_ctx=512, kv_format="f32", adapters=[tmp_path / "ours.gguf"]
    ) as opened:
        beside, alone = logits_with(opened, tokens, ["ours"]), logits_with(opened, tokens, None)
    assert np.abs(beside - merged).max() < (1e-2 if name == "Gemma 3" else 1e-3)
    assert np.abs(beside - alone).max() > 1e-2


def test_metas_folder_is_base_as_hugging_faces_is(tmp_path: Path) -> None:
    base, meta = llama2(tmp_path / "hf"), meta_folders.llama2(tmp_path / "meta", shards=2)
    adapter = trained(base, tmp_path / "adapter", r=2, target_modules=LINEAR)
    for name, given in (("hf", base), ("meta", meta)):
        converters.convert(adapter, tmp_path / f"{name}.gguf", base=given)
    ours, theirs = weights(tmp_path / "hf.gguf"), weights(tmp_path / "meta.gguf")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)

"""No single wrong field of a model file ends the process or comes out as anything but a typed error."""

from pathlib import Path

import checkpoints
import field_sweep
import llama4
import numpy as np
import pytest

import converters
from edge_llama.files.gguf import read_header


def _check(source: Path, numbers: list[int]) -> dict[str, str]:
    """The verdicts by the cases' labels."""
    found = field_sweep.cases(read_header(source))
    verdicts = field_sweep.sweep(source, numbers)
    named = {found[number].label: text for number, text in verdicts.items()}
    assert len(verdicts) == len(numbers)
    assert not {label: text for label, text in named.items() if text.startswith("died")}
    return named


def test_every_field_of_the_built_in_model(packaged: Path, tmp_path: Path) -> None:
    small = field_sweep.small(packaged, tmp_path / "small.gguf")
    assert read_header(small).fields.keys() == read_header(packaged).fields.keys()
    named = _check(small, list(range(len(field_sweep.cases(read_header(small))))))
    assert named["nothing edited"] == "runs 2"
    assert all(text.startswith("runs") for label, text in named.items() if label.endswith(" as it is"))
    for label, expected in {
        "tokenizer.ggml.model = none": "ArtifactError: FILE: tokenizer.ggml.model is 'none'",
        "tokenizer.ggml.tokens two the same": "ArtifactError: FILE: tokenizer.ggml.tokens gives",
        "llama.expert_count added 1": "ArtifactError: FILE: llama.expert_used_count is 0 of 1 experts",
        "blk.0.attn_norm.weight format 1": "ArtifactError: FILE: tensor 'blk.0.attn_norm.weight' is stored as f16",
        "blk.0.ffn_down.weight format 12": "runs",  # q4_k
        "blk.0.ffn_down.weight format 26": "ArtifactError: FILE: tensor 'blk.0.ffn_down.weight' is stored as i32",
    }.items():
        assert named[label].startswith(expected), (label, named[label])


def tiny_llama4(folder: Path) -> Path:
    """Layers with and without experts, as small as llama.cpp takes it."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "intermediate_size_mlp": 64, "num_local_experts": 2}
    return llama4.text_only(folder, interleave_moe_layer_step=2, **sizes)


@pytest.mark.parametrize(
    ("family", "sample"), [(checkpoints.llama2, 500), (checkpoints.llama3, 500), (tiny_llama4, 200)]
)
def test_fields_of_other_models(family: object, sample: int, rng: np.random.Generator, tmp_path: Path) -> None:
    converters.convert(family(tmp_path / "checkpoint"), tmp_path / "a.gguf", quant="q8_0")  # type: ignore[operator]
    count = len(field_sweep.cases(read_header(tmp_path / "a.gguf")))
    _check(tmp_path / "a.gguf", sorted(rng.choice(count, sample, replace=False).tolist()))

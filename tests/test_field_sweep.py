"""No single wrong field of a model file ends the process or comes out as anything but a typed error."""

from pathlib import Path

import checkpoints
import field_sweep
import numpy as np
import pytest

import converters
from edge_llama.gguf import read_header

_SAMPLE = 500


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


@pytest.mark.parametrize("family", [checkpoints.llama2, checkpoints.llama3])
def test_fields_of_other_vocabularies(family: object, rng: np.random.Generator, tmp_path: Path) -> None:
    converters.convert(family(tmp_path / "checkpoint"), tmp_path / "a.gguf", quant="q8_0")  # type: ignore[operator]
    count = len(field_sweep.cases(read_header(tmp_path / "a.gguf")))
    _check(tmp_path / "a.gguf", sorted(rng.choice(count, _SAMPLE, replace=False).tolist()))

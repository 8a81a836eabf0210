"""Where llama.cpp's converter is wrong exactly the named keys differ; ours are proved by test_tokenizer_proof.py."""

from pathlib import Path

import pytest
from llama_cpp_converter import converted_by_llama_cpp
from parity_differences import DIFFERENCES
from quantizer import differing_fields
from suite import shared

import converters
from edge_llama.files.gguf import read_header


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints, and beside each what llama.cpp's converter makes of it."""

    def make(at: Path) -> None:
        at.mkdir()
        jobs = [
            (maker(at / name / "checkpoint"), at / name / "theirs.gguf", pre)
            for name, (pre, maker, _) in DIFFERENCES.items()
        ]
        converted_by_llama_cpp(jobs)

    return shared(tmp_path_factory, "differences", make)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_only_what_is_named_differs(name: str, folders: Path, tmp_path: Path) -> None:
    source = folders / name / "checkpoint"
    converters.convert(source, tmp_path / "ours.gguf", quant="f32")
    ours, theirs = read_header(tmp_path / "ours.gguf"), read_header(folders / name / "theirs.gguf")
    assert {line.partition(" is ")[0] for line in differing_fields(ours, theirs)} == set(DIFFERENCES[name][2])

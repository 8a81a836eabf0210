"""The context's size: what is asked if it fits, else what is useful and fits."""

from pathlib import Path

import pytest
from ggufs import rewritten
from refusals import refusal

import edge_llama
from edge_llama.backends.registry import open_artifact
from edge_llama.errors import OptionError
from edge_llama.files.formats import F16, F32
from edge_llama.files.gguf import encode_header, read_header, u32
from edge_llama.planning.memory import context_size

GIB = 1 << 30


def test_kv_size_is_that_of_the_architecture(packaged: Path) -> None:
    artifact = open_artifact(packaged)
    assert artifact.kv_values_per_token == 30 * 3 * (64 + 64)  # layers x KV heads x (key + value)
    assert context_size(artifact, 1000, F16, 8 * GIB).bytes == 1000 * 30 * 3 * 128 * 2
    assert context_size(artifact, 1000, F32, 8 * GIB).bytes == 1000 * 30 * 3 * 128 * 4


def test_the_default_is_what_the_model_was_trained_for_if_it_fits(packaged: Path) -> None:
    size = context_size(open_artifact(packaged), None, F16, 8 * GIB)
    assert (size.n_ctx, size.reason) == (8192, "all it was trained for")


def test_the_default_shrinks_with_the_memory(packaged: Path) -> None:
    artifact = open_artifact(packaged)
    size = context_size(artifact, None, F16, GIB // 2)
    assert 256 <= size.n_ctx < 8192
    assert size.reason == "what fits"
    assert size.bytes < GIB // 2 - artifact.weight_bytes


def test_too_little_memory_is_an_error_with_both_numbers(packaged: Path) -> None:
    with pytest.raises(OptionError, match=r"96,576,768 bytes, 100,000,000 are available"):
        context_size(open_artifact(packaged), None, F16, 100_000_000)


def test_a_request_that_does_not_fit_names_the_largest_that_does(packaged: Path) -> None:
    artifact = open_artifact(packaged)
    with pytest.raises(OptionError, match="at most") as caught:
        context_size(artifact, 8192, F16, GIB // 2)
    largest = int(str(caught.value).split("at most ")[1].split(" ")[0].replace(",", ""))
    assert context_size(artifact, largest, F16, GIB // 2).n_ctx == largest


def test_a_model_or_a_context_larger_than_the_memory_is_refused_before_it_is_loaded(
    packaged: Path, tmp_path: Path
) -> None:
    """A file with a hole of a terabyte, and a model that was trained for two billion tokens."""
    long = rewritten(packaged, tmp_path / "long.gguf", fields={"llama.context_length": u32(2**31 - 1)})
    with refusal(OptionError, r"n_ctx 1,000,000,000 needs 23,040,000,000,000 bytes .* at most [\d,]+ fit"):
        edge_llama.open(long, n_ctx=10**9)
    large = tmp_path / "large.gguf"
    header = read_header(packaged)
    tensors = [(info.name, info.shape, info.format) for info in header.tensors]
    large.write_bytes(encode_header(header.fields, [*tensors, ("hole.weight", (2**20, 2**18), F32)])[0])
    with large.open("r+b") as file:
        file.truncate(2**40 + 2**30)
    with refusal(OptionError, r"not enough memory: the model takes 1,099,6[\d,]+ bytes, [\d,]+ are available", large):
        edge_llama.open(large)


@pytest.mark.parametrize("bad", [0, 1, -5, 8193, 1 << 40, 2.5, True])
def test_an_impossible_request_is_an_error(packaged: Path, bad: object) -> None:
    with pytest.raises(OptionError, match="n_ctx is"):
        context_size(open_artifact(packaged), bad, F16, 8 * GIB)  # type: ignore[arg-type]

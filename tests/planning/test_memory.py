"""The context's size: what is asked if it fits, else what is useful and fits."""

from dataclasses import replace
from pathlib import Path

import pytest
from ggufs import rewritten
from refusals import refusal

import converters
import edge_llama
from edge_llama.backends.base import CacheSize, Setting
from edge_llama.backends.registry import engine_of, open_artifact
from edge_llama.errors import OptionError
from edge_llama.files.artifact import Artifact
from edge_llama.files.formats import F16, F32, Format
from edge_llama.files.gguf import encode_header, read_header, u32
from edge_llama.host import devices
from edge_llama.planning.memory import ContextSize, context_size
from edge_llama.planning.plan import needed, plan_context

GIB = 1 << 30
CELL_BYTES = 150
"""What llama.cpp keeps of a cell beside keys and values."""


def sized(artifact: Artifact, requested: int | None, kv_format: Format, available: int) -> ContextSize:
    need = needed(engine_of(artifact), artifact.shape, Setting(kv_format=kv_format.name), max_running=1)
    return context_size(artifact, requested, need, available)


def test_kv_size_is_that_of_the_architecture(packaged: Path) -> None:
    artifact = open_artifact(packaged)
    assert artifact.kv_values_per_token == 30 * 3 * (64 + 64)  # layers x KV heads x (key + value)
    assert sized(artifact, 1000, F16, 8 * GIB).bytes == 1024 * (30 * 3 * 128 * 2 + CELL_BYTES)
    assert sized(artifact, 1000, F32, 8 * GIB).bytes == 1024 * (30 * 3 * 128 * 4 + CELL_BYTES)


def test_the_default_is_what_the_model_was_trained_for_if_it_fits(packaged: Path) -> None:
    size = sized(open_artifact(packaged), None, F16, 8 * GIB)
    assert (size.n_ctx, size.reason) == (8192, "all it was trained for")


def test_the_default_shrinks_with_the_memory(packaged: Path) -> None:
    artifact = open_artifact(packaged)
    size = sized(artifact, None, F16, GIB // 2)
    assert 256 <= size.n_ctx < 8192
    assert size.reason == "what fits"
    assert size.bytes < GIB // 2 - artifact.weight_bytes


def test_too_little_memory_is_an_error_with_both_numbers(packaged: Path) -> None:
    with pytest.raises(OptionError, match=r"96,576,768 bytes .* 100,000,000 are available"):
        sized(open_artifact(packaged), None, F16, 100_000_000)


def test_a_request_that_does_not_fit_names_the_largest_that_does(packaged: Path) -> None:
    artifact = open_artifact(packaged)
    with pytest.raises(OptionError, match="at most") as caught:
        sized(artifact, 8192, F16, GIB // 2)
    largest = int(str(caught.value).split("at most ")[1].split(" ")[0].replace(",", ""))
    assert sized(artifact, largest, F16, GIB // 2).n_ctx == largest


def test_a_model_or_a_context_larger_than_the_memory_is_refused_before_it_is_loaded(
    packaged: Path, tmp_path: Path
) -> None:
    """A file with a hole of a terabyte, and a model that was trained for two billion tokens."""
    long = rewritten(packaged, tmp_path / "long.gguf", fields={"llama.context_length": u32(2**31 - 1)})
    with refusal(OptionError, r"n_ctx 1,000,000,000 needs 5[\d,]+ bytes .* at most [\d,]+ fit"):
        edge_llama.open(long, n_ctx=10**9)
    large = tmp_path / "large.gguf"
    header = read_header(packaged)
    tensors = [(info.name, info.shape, info.format) for info in header.tensors]
    large.write_bytes(encode_header(header.fields, [*tensors, ("hole.weight", (2**20, 2**18), F32)])[0])
    with large.open("r+b") as file:
        file.truncate(2**40 + 2**30)
    with refusal(OptionError, r"not enough memory: the model takes 1,099,6[\d,]+ bytes .* [\d,]+ are available", large):
        edge_llama.open(large)


@pytest.mark.parametrize("bad", [0, 1, -5, 8193, 1 << 40, 2.5, True])
def test_an_impossible_request_is_an_error(packaged: Path, bad: object) -> None:
    with pytest.raises(OptionError, match="n_ctx is"):
        sized(open_artifact(packaged), bad, F16, 8 * GIB)  # type: ignore[arg-type]


def test_a_model_that_does_not_fit_is_opened_by_force_alone(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_memory", lambda: 150_000_000)
    with refusal(OptionError, r"n_ctx 8,192 needs [\d,]+ bytes beside the model's .* at most [\d,]+ fit|--force-fit"):
        edge_llama.open(packaged, n_ctx=8192)
    with edge_llama.open(packaged, n_ctx=8192, force_fit=True) as model:
        assert model.generate("Hello", max_tokens=2, temperature=0).result().text
    monkeypatch.setattr(devices, "available_memory", lambda: 50_000_000)
    with refusal(OptionError, r"not enough memory: the model takes 96,576,768 bytes .*--force-fit"):
        edge_llama.open(packaged)


def test_mapped_weights_answer_as_those_that_were_read(packaged: Path, onnx_folder: Path) -> None:
    texts = []
    for mmap in (False, True):
        with edge_llama.open(packaged, n_ctx=512, mmap=mmap, threads=1) as model:
            assert model.choice.setting.is_mapped is mmap
            texts.append(model.generate("Once upon a time", max_tokens=24, temperature=0).result().text)
    assert texts[0] == texts[1]
    with refusal(OptionError, "mmap: .* is run by onnxruntime, which has no such choice"):
        edge_llama.open(onnx_folder, n_ctx=256, mmap=True)


def test_of_experts_that_are_mapped_only_the_active_ones_must_fit(llama4_digits: Path, tmp_path: Path) -> None:
    converters.convert(llama4_digits, tmp_path / "text.gguf", quant="q8_0", tower="text")
    artifact = open_artifact(tmp_path / "text.gguf")
    engine, setting = engine_of(artifact), Setting()
    cache = CacheSize.of_one(256)
    whole = engine.need(artifact.shape, setting, cache)
    mapped = engine.need(artifact.shape, replace(setting, is_mapped=True), cache)
    assert whole.weights >= artifact.weight_bytes  # AMX's layout takes more
    assert mapped.weights == artifact.shape.active_bytes < whole.weights
    assert mapped.beside_weights == whole.beside_weights
    available = mapped.weights + 2 * mapped.beside_weights
    assert plan_context(artifact, {"mmap": True, "max_running": 1}, available).n_ctx == 256

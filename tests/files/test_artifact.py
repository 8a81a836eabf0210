"""Finding and checking model files."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refusal

import edge_llama
from edge_llama import ArtifactError
from edge_llama.backends.towers import locate
from edge_llama.files.artifact import MODEL_VARIABLE, converted_path, packaged_path
from edge_llama.files.gguf import Value, ValueType, array, encode_header, f32, read_header, string, u32


def test_the_default_is_the_variable_then_the_built_in_model(monkeypatch: pytest.MonkeyPatch, packaged: Path) -> None:
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    expected = converted_path() if converted_path().is_file() else packaged_path()
    assert locate() == locate("smollm2") == expected
    monkeypatch.setenv(MODEL_VARIABLE, str(packaged))
    assert locate() == packaged
    assert locate("smollm2") == expected


def test_a_folder_with_one_file_means_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert locate(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ArtifactError, match=r"a\.gguf, b\.gguf"):
        locate(tmp_path)


def test_a_checkpoint_folder_says_to_convert_it(smollm2: Path) -> None:
    with pytest.raises(ArtifactError, match="edge-llama convert"):
        locate(smollm2)


def test_what_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        locate(tmp_path / "nothing.gguf")


def removed(key: str) -> Callable[[dict[str, Value]], None]:
    return lambda fields: fields.pop(key) and None


def changed(key: str, value: Value) -> Callable[[dict[str, Value]], None]:
    return lambda fields: fields.update({key: value})


PREFIX = "tokenizer.ggml."
BAD = {
    "no architecture": (removed("general.architecture"), "general.architecture is missing"),
    "a vision tower": (changed("general.architecture", string("clip")), "mmproj"),
    "no block count": (removed("llama.block_count"), "block_count is missing"),
    "block count 0": (changed("llama.block_count", u32(0)), "block_count is 0"),
    "block count of a wrong type": (changed("llama.block_count", string("30")), "block_count is '30'"),
    "block count as a float": (changed("llama.block_count", f32(30.0)), "block_count is 30.0"),
    "no context length": (removed("llama.context_length"), "context_length is missing"),
    "heads 0": (changed("llama.attention.head_count", u32(0)), "head_count is 0"),
    "heads that do not divide": (
        changed("llama.attention.head_count", u32(7)),
        "head_count is 7, expected a divisor of 576",
    ),
    "KV heads that do not divide": (changed("llama.attention.head_count_kv", u32(2)), "does not divide"),
    "NaN eps": (changed("llama.attention.layer_norm_rms_epsilon", f32(math.nan)), "rms_epsilon is nan"),
    "negative eps": (changed("llama.attention.layer_norm_rms_epsilon", f32(-1.0)), "rms_epsilon is -1.0"),
    "infinite rotary base": (changed("llama.rope.freq_base", f32(math.inf)), "freq_base is inf"),
    "more blocks than tensors": (changed("llama.block_count", u32(31)), "block_count is 31, but there are tensors of"),
    "no tokens": (removed(PREFIX + "tokens"), "tokens is missing"),
    "token types of another length": (changed(PREFIX + "token_type", array(ValueType.INT32, [1])), "1 entries"),
    "scores of another length": (changed(PREFIX + "scores", array(ValueType.FLOAT32, [0.5])), "scores has 1 entries"),
    "a bos id past the vocabulary": (changed(PREFIX + "bos_token_id", u32(49152)), "bos_token_id is 49152"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_header_that_no_text_tower_can_have_is_a_typed_error(name: str, packaged: Path, tmp_path: Path) -> None:
    spoil, expected = BAD[name]
    header = read_header(packaged)
    fields = dict(header.fields)
    spoil(fields)
    path = tmp_path / "bad.gguf"
    path.write_bytes(encode_header(fields, [])[0])
    with refusal(ArtifactError, expected, path):
        edge_llama.open(path)

"""GGUF written back as a Hugging Face folder: the same weights, settings, tokens and answers."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import last_logits
from ggufs import all_in, rewritten
from ggufs import weights as gguf_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal
from safetensors.numpy import load_file
from sentencepiece import SentencePieceProcessor
from texts import TORTURE
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from variants import CODE_LLAMA_TOKENS, VARIANTS

import converters
import edge_llama
from edge_llama import ArtifactError, CheckpointError
from edge_llama.errors import InputError
from edge_llama.files.gguf import Value, ValueType, read_header, string


class Trip:
    """A checkpoint, its f32 GGUF, the folder written from that, and the f32 GGUF of that folder."""

    def __init__(self, name: str, at: Path) -> None:
        self.name = name
        self.folder, self.gguf = VARIANTS[name](at / "first" / "Model"), at / "first.gguf"
        self.back, self.again = at / "second" / "Model", at / "again.gguf"
        converters.convert(self.folder, self.gguf, quant="f32")
        converters.convert(self.gguf, self.back, to="safetensors", quant="f32")
        converters.convert(self.back, self.again, quant="f32")


@pytest.fixture(scope="module", params=VARIANTS)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trip:
    return Trip(request.param, tmp_path_factory.mktemp("trip"))


def comparable(path: Path) -> dict[str, tuple[Any, ...]]:
    return {
        key: (value.type, value.item, list(value.data) if value.item is not None else value.data)
        for key, value in read_header(path).fields.items()
        if key != "general.name" and not key.startswith("edge_llama.")
    }


def test_the_weights_are_the_originals_bit_by_bit(trip: Trip) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (trip.folder, trip.back))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.tobytes() == second[name].tobytes(), name


def test_there_and_back_and_there_gives_the_same_file(trip: Trip) -> None:
    first, again = read_header(trip.gguf), read_header(trip.again)
    assert comparable(trip.gguf) == comparable(trip.again)
    assert first.tensors[0].shape == again.tensors[0].shape
    assert trip.gguf.read_bytes()[first.data_offset :] == trip.again.read_bytes()[again.data_offset :]


def test_transformers_answers_as_llama_cpp_does(trip: Trip) -> None:
    """Within 1e-3 in f32 (measured: about 2e-5)."""
    model = AutoModelForCausalLM.from_pretrained(trip.back, dtype=torch.float32)
    tokens = [int(token) for token in np.random.default_rng(0).integers(3, 500, 40)]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.abs(last_logits(trip.gguf, tokens) - expected).max() < 1e-3


def test_ids_of_the_torture_list_are_the_sources(trip: Trip) -> None:
    """llama.cpp on the source, and the original's own tokenizer, against the tokenizer.json that was written."""
    written = tokenizer_of(trip.back / "tokenizer.json")
    with edge_llama.open(trip.gguf, n_ctx=64) as model:
        for text in TORTURE:
            ids = written.encode(text, add_special_tokens=False).ids
            assert ids == model.tokenizer.encode(text), text
    if (trip.back / "tokenizer.model").exists():
        pieces = pieces_of(trip.back / "tokenizer.model")
        for text in TORTURE:
            assert written.encode(text, add_special_tokens=False).ids == pieces.encode(text), text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("abcdeilmnorst  .,-=_\n\t(){}AÜéя東🦙▁0123"), max_size=80))
def test_a_sentencepiece_vocabulary_splits_any_text_alike(text: str, sentencepiece_trip: Trip) -> None:
    """tokenizer.json's ranked merges against sentencepiece itself, on the tokenizer.model that was trained."""
    back, original = sentencepiece_trip.back, sentencepiece_trip.folder
    written = tokenizer_of(back / "tokenizer.json")
    assert written.encode(text, add_special_tokens=False).ids == pieces_of(original / "tokenizer.model").encode(text)


@pytest.fixture(scope="module")
def sentencepiece_trip(tmp_path_factory: pytest.TempPathFactory) -> Trip:
    return Trip("Llama 2", tmp_path_factory.mktemp("trip"))


@cache
def tokenizer_of(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


@cache
def pieces_of(path: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(path))


def test_transformers_finds_tokens_templates_and_ends(trip: Trip) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trip.back)
    original = json.loads((trip.folder / "tokenizer_config.json").read_text("utf-8"))
    assert tokenizer.bos_token == original["bos_token"]
    assert tokenizer.eos_token == original["eos_token"]
    assert tokenizer.chat_template == original["chat_template"]
    written = Tokenizer.from_file(str(trip.back / "tokenizer.json"))
    for text in ("Hello, world!", " a", "x\n"):
        assert tokenizer(text).input_ids == written.encode(text).ids
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    config = json.loads((trip.back / "config.json").read_text("utf-8"))
    generation = json.loads((trip.back / "generation_config.json").read_text("utf-8"))
    ends = generation["eos_token_id"]
    assert config["eos_token_id"] == ends
    if trip.name.startswith("Llama 3"):
        assert sorted(tokenizer.convert_ids_to_tokens(ends)) == ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
        assert (generation["temperature"], generation["top_p"], generation["do_sample"]) == (0.6, 0.9, True)


def test_infill_tokens_of_code_llama_are_there(tmp_path: Path) -> None:
    trip = Trip("CodeLlama", tmp_path)
    written = Tokenizer.from_file(str(trip.back / "tokenizer.json"))
    assert {index: written.id_to_token(index) for index in CODE_LLAMA_TOKENS} == CODE_LLAMA_TOKENS
    assert written.encode("▁<PRE>x", add_special_tokens=False).ids[0] == 32007
    assert read_header(trip.again).fields["tokenizer.ggml.prefix_token_id"].data == 32007


def test_rotary_scaling_comes_back_as_published(tmp_path: Path) -> None:
    config = json.loads((Trip("Llama 3.2", tmp_path).back / "config.json").read_text("utf-8"))
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@pytest.fixture(scope="module")
def llama3_gguf(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama3") / "model.gguf"
    converters.convert(llama3, path, quant="f32")
    return path


def test_factors_that_no_scaling_explains_are_refused_for_a_folder_and_kept_in_gguf(
    llama3_gguf: Path, tmp_path: Path
) -> None:
    factors = np.linspace(1, 8, 16, dtype=np.float32)
    odd = rewritten(
        llama3_gguf,
        tmp_path / "odd.gguf",
        data=lambda info, raw: factors.view(np.uint8).reshape(1, -1) if info.name == "rope_freqs.weight" else raw,
    )
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight': no rope scaling of a config.json reproduces"):
        converters.convert(odd, tmp_path / "folder", to="safetensors")
    converters.convert(odd, tmp_path / "again.gguf", quant="q8_0")
    assert np.array_equal(gguf_weights(tmp_path / "again.gguf")["rope_freqs.weight"], factors)


def test_a_folder_of_a_folder_keeps_its_settings(llama3: Path, tmp_path: Path) -> None:
    """As a LoRA merge writes it: the lists of end tokens are the publisher's."""
    converters.convert(llama3, tmp_path / "folder", to="safetensors", quant="f32")
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((folder / name).read_text("utf-8")) for folder in (llama3, tmp_path / "folder"))
        assert before.items() <= after.items()


def test_a_quantized_file_gives_its_own_numbers(llama3_gguf: Path, tmp_path: Path) -> None:
    """bf16 and f16 folders round what the file holds; f32 ones hold it exactly."""
    source = all_in(llama3_gguf, tmp_path / "source.gguf", "q5_1")
    converters.convert(source, tmp_path / "folder", to="safetensors", quant="f32")
    ours = load_file(tmp_path / "folder" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert np.array_equal(ours, gguf_weights(source)["blk.1.ffn_down.weight"])


BAD: dict[str, tuple[dict[str, Value | None], str]] = {
    "an unknown splitting rule": ({"tokenizer.ggml.pre": string("chameleon")}, "'chameleon'"),
    "another kind of vocabulary": ({"tokenizer.ggml.model": string("bert")}, "'bert'"),
    "longrope scaling": (
        {"llama.rope.scaling.type": string("longrope"), "llama.rope.scaling.factor": Value(ValueType.FLOAT32, 4.0)},
        "llama.rope.scaling.type 'longrope': no rope scaling of a config.json reproduces",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_folder_cannot_hold_is_a_typed_error(name: str, llama3_gguf: Path, tmp_path: Path) -> None:
    fields, expected = BAD[name]
    source = rewritten(
        llama3_gguf, tmp_path / "bad.gguf", fields=fields, names=lambda info: info.name != "rope_freqs.weight"
    )
    with pytest.raises(CheckpointError, match=expected):
        converters.plan(source, tmp_path / "folder", to="safetensors")


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("a", ArtifactError, r"tokens gives 'a' the ids 64 and 500"),
        ("\udcff", CheckpointError, r"token 500 is .* not valid UTF-8"),
    ],
)
def test_tokens_that_json_cannot_hold_are_named(
    text: str, kind: type[InputError], expected: str, llama3_gguf: Path, tmp_path: Path
) -> None:
    """Two tokens of one text, and a token that is no UTF-8."""
    tokens = read_header(llama3_gguf).fields["tokenizer.ggml.tokens"]
    changed = Value(tokens.type, [*tokens.data[:500], text, *tokens.data[501:]], tokens.item)
    source = rewritten(llama3_gguf, tmp_path / "bad.gguf", fields={"tokenizer.ggml.tokens": changed})
    with refusal(kind, expected, source):
        converters.plan(source, tmp_path / "folder", to="safetensors")

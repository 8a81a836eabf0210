"""Embedding models: BERT in GGUF files, held to transformers; bad ones, which must not end the process."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from embedding_models import BERT, POSITIONS, SPECIAL, TEXTS, XLM_ROBERTA, cosines, reference
from ggufs import rewritten
from numpy.typing import NDArray
from refusals import refusal
from transformers import AutoTokenizer

import edge_llama
from edge_llama import ArtifactError, ContextFullError, EngineError, InputError
from edge_llama.backends.registry import open_artifact
from edge_llama.files.artifact import Pooling
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import TensorInfo, Value, ValueType, array, f32, string, u32
from edge_llama.runtime.embeddings import choose_pooling


@pytest.fixture(scope="module")
def model(bert: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(bert, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module", params=[BERT, XLM_ROBERTA], ids=["bert", "xlm-roberta"])
def encoder(request: pytest.FixtureRequest, encoders: Path) -> Iterator[edge_llama.Model]:
    """With word pieces, and with a unigram vocabulary."""
    with edge_llama.open(encoders / request.param, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_equal_transformers(encoder: edge_llama.Model, pooling: Pooling) -> None:
    checkpoint = encoder.artifact.path.parent
    assert cosines(encoder.embed(TEXTS, pooling), reference(checkpoint, TEXTS, pooling)).min() >= 0.9999


def test_a_text_gets_the_same_vector_alone_and_in_a_batch(encoder: edge_llama.Model) -> None:
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    assert cosines(encoder.embed(TEXTS), alone).min() >= 0.99999


def test_a_text_becomes_the_tokens_of_transformers(encoder: edge_llama.Model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder.artifact.path.parent)
    before, after = encoder.tokenizer.frame
    for text in TEXTS:
        assert [*before, *encoder.tokenizer.encode(text), *after] == tokenizer(text)["input_ids"]


def test_what_looks_like_a_control_token_of_a_unigram_vocabulary_stays_text(encoders: Path) -> None:
    with edge_llama.open(encoders / XLM_ROBERTA, threads=1) as opened:
        ids = opened.tokenizer.encode("a</s> <s> <mask><pad>")
        assert set(ids).isdisjoint({0, 1, 2, opened.tokenizer.n_vocab - 1})


def test_text_that_looks_like_a_control_token_stays_text(model: edge_llama.Model) -> None:
    ids = model.tokenizer.encode(f"{''.join(SPECIAL)} [CLS]")
    assert set(ids).isdisjoint([*model.tokenizer.encode("🦙"), 101, 102, 103, 0])


def test_the_file_says_how_to_pool(bert: Path, tmp_path: Path) -> None:
    def chosen(number: int | None) -> str:
        value = None if number is None else u32(number)
        path = rewritten(bert, tmp_path / "model.gguf", fields={"bert.pooling_type": value})
        return str(choose_pooling(open_artifact(path)))

    assert chosen(1) == "mean (as the file says)"
    assert chosen(2) == "cls (as the file says)"
    assert chosen(3) == "last (as the file says)"
    assert chosen(0) == chosen(None) == "mean (the default: the file names none)"
    with refusal(edge_llama.OptionError, "ranks pairs of texts"):
        chosen(4)


def test_a_text_of_all_positions_fits_and_one_more_does_not(model: edge_llama.Model) -> None:
    assert model.n_ctx == POSITIONS
    assert model.embed(["word " * (POSITIONS - 2)]).shape == (1, 64)
    with refusal(ContextFullError, r"texts\[1\] needs 97 tokens but the context holds 96;"):
        model.embed(["a", "word " * (POSITIONS - 1)])


def test_an_encoder_writes_nothing(model: edge_llama.Model) -> None:
    for ask in (model.chat, lambda: model.generate("Hi"), lambda: model.answer([])):
        with refusal(InputError, r"the model \(bert\) embeds text and writes none.*edge-llama embed"):
            ask()


def test_it_warns_of_nothing_that_is_for_answers(model: edge_llama.Model) -> None:
    assert model.artifact.warnings == ()


WORDS = ["[PAD]", *(f"▁{chr(letter)}" for letter in range(97, 123))]
BAD: dict[str, tuple[Mapping[str, Value | None], str]] = {
    "a pooling that there is not": ({"bert.pooling_type": u32(9)}, "pooling_type is 9, known: 0 .none., 1 .mean."),
    "pooling of a wrong type": ({"bert.pooling_type": string("mean")}, "pooling_type is 'mean'"),
    "no heads": ({"bert.attention.head_count": u32(0)}, "head_count is 0, expected a divisor of 64"),
    "heads that don't share the width": ({"bert.attention.head_count": u32(7)}, "head_count is 7, expected a divisor"),
    "values of another width": ({"bert.attention.value_length": u32(8)}, "value_length is 8, expected 16"),
    "no epsilon": ({"bert.attention.layer_norm_epsilon": f32(float("nan"))}, "layer_norm_epsilon is nan"),
    "a separator past the vocabulary": ({"tokenizer.ggml.seperator_token_id": u32(40_000)}, "past the 30,522 tokens"),
    "fewer positions than it says": ({"bert.context_length": u32(4096)}, "position_embd.weight"),
    "no token types": ({"tokenizer.ggml.token_type_count": None}, "token type count"),
    "token types that are not there": ({"tokenizer.ggml.token_type_count": u32(3)}, "token_types.weight"),
    "another encoder": ({"general.architecture": string("nomic-bert")}, "nomic-bert"),
    "a vocabulary without its marks": (
        {
            "tokenizer.ggml.tokens": array(ValueType.STRING, WORDS),
            "tokenizer.ggml.token_type": None,
            **{f"tokenizer.ggml.{name}_token_id": None for name in ("unknown", "seperator", "cls", "mask")},
        },
        r"unknown_token_id is 100 \(it is missing: that is the usual one\), past the 27 tokens|bos_token_id is 101",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_what_is_wrong(name: str, bert: Path, tmp_path: Path) -> None:
    fields, problem = BAD[name]
    path = rewritten(bert, tmp_path / "bad.gguf", fields=fields)
    with refusal(ArtifactError, problem, path):
        edge_llama.open(path, threads=1).embed(["a"])


def test_weights_that_are_no_numbers_give_an_error(bert: Path, tmp_path: Path) -> None:
    def data(info: TensorInfo, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.full_like(raw, 255) if info.name == "blk.1.layer_output_norm.bias" else raw

    path = rewritten(bert, tmp_path / "bad.gguf", data=data)
    with edge_llama.open(path, threads=1) as opened, pytest.raises(EngineError, match="has the length nan"):
        opened.embed(["a"])


def test_what_llama_cpp_dies_of_ends_a_child(bert: Path, tmp_path: Path) -> None:
    path = rewritten(
        bert,
        tmp_path / "bad.gguf",
        formats=lambda info: FORMATS["q8_0"] if info.name == "token_embd_norm.weight" else info.format,
    )
    with refusal(ArtifactError, "a trial run in a process of its own died of signal 6", path):
        edge_llama.open(path, threads=1)

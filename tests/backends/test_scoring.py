"""Logits of many rows of a decode are those that the rows have one by one, in whatever steps they are asked for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_llama
from edge_llama.backends.base import OneSequence
from edge_llama.certifying.model_logits import ModelLogits, check_same_vocabulary, pieces_of
from edge_llama.convert import convert
from edge_llama.errors import ContextFullError, OptionError
from edge_llama.model import Model

LENGTH = 50


@pytest.fixture(scope="module")
def last_only(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of ours, which gives the last row's logits alone."""
    folder = tmp_path_factory.mktemp("onnx") / "llama3"
    convert(llama3, folder, to="onnx", quant="f32")
    return folder


@pytest.fixture(scope="module", params=["small_talk", "onnx_folder", "last_only"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    path = request.getfixturevalue(request.param)
    with edge_llama.open(path, n_ctx=64, threads=1, tune=False) as opened:
        yield opened


def tokens(model: Model, seed: int = 0) -> NDArray[np.int64]:
    drawn = np.random.default_rng(seed).integers(10, model.tokenizer.n_vocab, LENGTH)
    return drawn if model.tokenizer.bos is None else np.concatenate(([model.tokenizer.bos], drawn[1:]))


def one_by_one(model: Model, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    def work() -> NDArray[np.float32]:
        model._engine.cache.clear()
        tower = OneSequence(model._engine.tower)
        rows = np.stack([tower.decode([token]).values.copy() for token in ids.tolist()])
        tower.cut(0)
        return rows

    return model._engine.call(work, is_alone=True)


@pytest.mark.parametrize("is_whole", [False, True])
def test_rows_are_the_same_as_one_by_one(model: Model, is_whole: bool) -> None:
    chunks = [tokens(model), tokens(model, 1)]
    wanted = [one_by_one(model, ids) for ids in chunks]
    source = ModelLogits(model, "model", is_whole=is_whole)
    source.prepare(chunks)
    for number, start, stop in ((0, 20, 30), (0, 30, 49), (1, 0, 1), (1, 1, 7), (1, 40, 48), (0, 0, 49)):
        found = source.logits(number, start, stop)
        assert found.shape == (stop - start, source.n_vocab)
        np.testing.assert_allclose(found, wanted[number][start:stop], rtol=2e-3, atol=2e-2)
    source.close()
    assert model._engine.tower.length(0) == 0


def test_a_model_that_was_measured_answers(small_talk: Path) -> None:
    with edge_llama.open(small_talk, n_ctx=256, threads=1) as model:
        asked = "What is the capital of Japan?"
        before = model.chat().send(asked, temperature=0).result().text
        source = ModelLogits(model, "model")
        source.prepare([tokens(model)])
        source.logits(0, 10, 20)
        source.close()
        assert model.chat().send(asked, temperature=0).result().text == before


def test_a_chunk_longer_than_the_context_is_an_error(small_talk: Path) -> None:
    with edge_llama.open(small_talk, n_ctx=48, threads=1) as model, pytest.raises(ContextFullError, match=r"50.*48"):
        ModelLogits(model, "model").prepare([tokens(model)])


def test_chunks_longer_than_a_batch_are_read_in_parts(small_talk: Path) -> None:
    with edge_llama.open(small_talk, n_ctx=64, threads=1, n_batch=16) as model:
        wanted = one_by_one(model, tokens(model))
        source = ModelLogits(model, "model")
        source.prepare([tokens(model)])
        np.testing.assert_allclose(source.logits(0, 5, 49), wanted[5:49], rtol=2e-3, atol=2e-2)


def test_another_vocabulary_is_told_by_its_first_other_token(small_talk: Path) -> None:
    with edge_llama.open(small_talk, n_ctx=64, threads=1) as model:
        pieces = pieces_of(model.tokenizer)
    others = [*pieces]
    others[300] = b"other"
    check_same_vocabulary("a.gguf", pieces, "b.gguf", [piece if at != 2 else b"" for at, piece in enumerate(pieces)])
    with pytest.raises(OptionError, match=r"b\.gguf has another vocabulary than a\.gguf: its token 300 is 'other'"):
        check_same_vocabulary("a.gguf", pieces, "b.gguf", others)

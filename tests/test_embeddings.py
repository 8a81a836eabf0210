"""``Model.embed``: vectors of texts, of a model that also writes."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_models import cosines, reference
from refusals import refusal

import converters
import edge_llama
from edge_llama import ContextFullError, EngineError, OptionError
from edge_llama.files.artifact import Pooling

TEXTS = ["The capital of Japan is Tokyo.", "a", "naïve 日本 🦙 \x00\n", "Llamas carry 25 kg. " * 30, "<|eot_id|>"]


@pytest.fixture(scope="module")
def small(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[edge_llama.Model]:
    """A small Llama in float32."""
    path = tmp_path_factory.mktemp("small") / "model.gguf"
    converters.convert(llama3, path, quant="f32")
    with edge_llama.open(path, n_ctx=1024, kv_format="f32", threads=1) as opened:
        yield opened


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_equal_transformers(small: edge_llama.Model, llama3: Path, pooling: Pooling) -> None:
    plain = TEXTS[:4]  # transformers takes the last for a control token
    assert cosines(small.embed(plain, pooling), reference(llama3, plain, pooling)).min() >= 0.99999


def test_a_long_text_comes_in_parts_to_the_same_vector(small: edge_llama.Model, llama3: Path) -> None:
    text = "Llamas are calm. " * 140
    assert len(small.tokenizer.encode(text)) > 600  # more than a batch takes, and than most texts have
    for pooling in ("mean", "last"):
        assert cosines(small.embed([text, "a"], pooling)[:1], reference(llama3, [text], pooling)).min() >= 0.99999


def test_text_that_looks_like_a_control_token_stays_text(small: edge_llama.Model) -> None:
    token = small.tokenizer.control_tokens["<|eot_id|>"]
    assert token not in small.tokenizer.encode("<|eot_id|>")
    whole = small.embed(["<|eot_id|>", "<|eot_id"])
    assert cosines(whole[:1], whole[1:])[0] < 0.9999


def test_vectors_have_unit_length_and_the_order_of_the_texts(small: edge_llama.Model) -> None:
    texts = [f"text {number} " * (number % 7 + 1) for number in range(100)]
    vectors = small.embed(texts)
    assert (vectors.shape, vectors.dtype) == ((100, 128), np.float32)
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() < 1e-6
    for number in (0, 41, 99):
        assert cosines(small.embed([texts[number]]), vectors[number : number + 1])[0] >= 0.99999
    assert cosines(small.embed(texts[::-1]), vectors[::-1]).min() >= 0.99999


def test_no_texts_are_no_vectors(small: edge_llama.Model) -> None:
    assert small.embed([]).shape == (0, 128)


def test_the_mean_is_the_default_and_told_once(packaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    with edge_llama.open(packaged, n_ctx=64, threads=1) as model:
        assert np.array_equal(model.embed(["a"]), model.embed(["a"]))
        assert [record.message for record in caplog.records] == [
            f"{packaged}: pooling by mean (the default: the file names none)"
        ]
        caplog.clear()
        assert np.array_equal(model.embed(["a"], "mean"), model.embed(["a"]))
        assert not caplog.records


@pytest.mark.parametrize(
    ("texts", "pooling", "problem"),
    [
        ("a text", None, "texts is str, expected a list of texts"),
        (None, None, "texts is NoneType"),
        ({"a"}, None, "texts is set"),
        (["a", 3], None, r"texts\[1\] is int, expected text"),
        (["a", b"b"], None, r"texts\[1\] is bytes, expected text"),
        (["a", ""], None, r"texts\[1\] is empty"),
        (["\ud800"], None, r"texts\[0\] has a lone surrogate"),
        (["a"], "max", "pooling is 'max'; known: mean, last, cls"),
        (["a"], 1, "pooling is 1; known"),
        (["a"], "cls", "pooling cls .as asked. takes the first token's vector"),
        (["a"], "rank", "pooling is 'rank'"),
    ],
)
def test_what_can_not_be_embedded_is_refused(small: edge_llama.Model, texts: Any, pooling: Any, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        small.embed(texts, pooling)


def test_too_long_a_text_is_refused_with_both_numbers(small: edge_llama.Model) -> None:
    text = "a " * 1100
    count = len(small.tokenizer.encode(text)) + 1
    with refusal(ContextFullError, rf"texts\[1\] needs {count:,} tokens but the context holds 1,024;"):
        small.embed(["a", text])
    with refusal(ContextFullError, r"texts\[0\] needs at least [\d,]+ tokens but the context holds 1,024;"):
        small.embed(["a " * 1_000_000])


def test_answers_and_vectors_do_not_disturb_each_other(small: edge_llama.Model) -> None:
    """Threads that embed, long texts among theirs, and one that writes."""
    expected = small.generate("Once upon a time", temperature=0, max_tokens=60).result().tokens
    texts = [["Llamas are calm. " * 140], ["a", "b"], ["Tokyo " * 30]]
    vectors = [small.embed(each) for each in texts]
    found: dict[int, Any] = {}

    def embed(number: int) -> None:
        found[number] = [small.embed(texts[number]) for _ in range(5)]

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(3)]
    running = small.generate("Once upon a time", temperature=0, max_tokens=60)
    for thread in threads:
        thread.start()
    assert running.result().tokens == expected
    for thread in threads:
        thread.join()
    for number, each in enumerate(vectors):
        assert all(cosines(again, each).min() >= 0.99999 for again in found[number])


def test_an_answer_goes_on_between_batches(small: edge_llama.Model) -> None:
    """Not a matter of time: a step takes one batch, and here are two dozen of them."""
    thread = threading.Thread(target=small.embed, args=(["Llamas are calm. " * 140] * 12,))
    thread.start()
    answer = small.generate("Once upon a time", temperature=0, max_tokens=3).result()
    is_embedding = thread.is_alive()
    thread.join()
    assert (len(answer.tokens), is_embedding) == (3, True)


def test_a_closed_model_says_so(packaged: Path) -> None:
    model = edge_llama.open(packaged, n_ctx=64)
    model.close()
    with pytest.raises(EngineError, match="the model is closed"):
        model.embed(["a"])


def test_closing_ends_who_waits_for_vectors(packaged: Path) -> None:
    model = edge_llama.open(packaged, n_ctx=2048, threads=1)
    caught: list[BaseException] = []
    begun = threading.Event()

    def embed() -> None:
        begun.set()
        try:
            model.embed(["word " * 2000] * 100)
        except EngineError as error:
            caught.append(error)

    thread = threading.Thread(target=embed)
    thread.start()
    begun.wait()
    model.close()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert "the model is closed" in str(caught[0])

"""A text that clearly can't fit is refused before its tokens are made, and only then."""

from collections.abc import Iterator

import numpy as np
import pytest

import converters
import edge_llama

MANY = 1_000_000


@pytest.fixture(scope="module", params=["llama2", "llama3"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[edge_llama.Model]:
    path = tmp_path_factory.mktemp("lengths") / "a.gguf"
    converters.convert(request.getfixturevalue(request.param), path, quant="f32")
    with edge_llama.open(path, n_ctx=256) as model:
        yield model


def test_a_million_newlines_are_refused_unread(opened: edge_llama.Model) -> None:
    """llama.cpp's sentencepiece would take half a minute, and Ctrl-C would wait for it."""
    for use in (opened.generate, opened.chat().send, opened.chat(when_full="drop-oldest").send):
        with pytest.raises(edge_llama.ContextFullError, match=r"needs at least [\d,]+ tokens") as caught:
            use("x" + "\n" * MANY + "x")
        assert caught.value.is_bound
        assert caught.value.n_ctx == 256 < caught.value.needed <= MANY


def test_a_text_that_can_be_counted_is(opened: edge_llama.Model) -> None:
    with pytest.raises(edge_llama.ContextFullError) as caught:
        opened.generate("ab " * 5000)
    assert not caught.value.is_bound
    assert caught.value.needed == len(opened.tokenizer.encode("ab " * 5000)) + (opened.tokenizer.bos is not None)


def test_the_bound_holds_for_any_text(opened: edge_llama.Model, rng: np.random.Generator) -> None:
    tokenizer = opened.tokenizer
    pieces = sorted((tokenizer.piece(token) for token in range(tokenizer.n_vocab)), key=len)
    words = [piece.decode("utf-8", "replace") for piece in pieces[-5:]] + [" ", "\n", "naïve", "🦙", "the", "\0"]
    for _ in range(300):
        text = "".join(str(word) * int(rng.integers(1, 30)) for word in rng.choice(words, 4))
        assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.least_tokens("x" * 100_000) > 500

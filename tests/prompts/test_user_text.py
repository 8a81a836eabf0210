"""Whatever a person types is plain text, or an error that says what is wrong with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ggufs import rewritten
from refusals import refusal

import converters
import edge_llama
from edge_llama import Message, OptionError
from edge_llama.errors import ContextFullError
from edge_llama.files.gguf import ValueType, array, read_header

MEGABYTES = 10_000_000
LONG_WORD = "a" * 4096


@pytest.fixture(scope="module")
def patient(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose vocabulary has the letter a doubled, twelve times: 10 MB of it fit into a context."""
    folder = tmp_path_factory.mktemp("patient")
    converters.convert(llama3, folder / "plain.gguf", quant="f16")
    fields = read_header(folder / "plain.gguf").fields
    tokens, merges = (list(fields[f"tokenizer.ggml.{key}"].data) for key in ("tokens", "merges"))
    last = len(tokens) - 1 - [not token.startswith("<|") for token in reversed(tokens)].index(True)
    for power in range(12):
        tokens[last - power] = "a" * 2 ** (12 - power)
    merges = [f"{'a' * 2**power} {'a' * 2**power}" for power in range(12)]
    texts = {"tokens": tokens, "merges": merges}
    arrays = {f"tokenizer.ggml.{key}": array(ValueType.STRING, value) for key, value in texts.items()}
    return rewritten(folder / "plain.gguf", folder / "patient.gguf", fields=arrays)


def test_ten_megabytes_work_if_the_context_holds_them(patient: Path) -> None:
    lines = (LONG_WORD + "\n") * (MEGABYTES // len(LONG_WORD) + 1)
    with edge_llama.open(patient, n_ctx=6144, threads=1, kv_format="f16") as model:
        answer = model.generate(lines, temperature=0, max_tokens=2).result()
    assert len(lines) > MEGABYTES
    assert answer.timings.prompt_tokens < 6144
    assert answer.tokens


def test_ten_megabytes_that_do_not_fit_are_refused_with_both_numbers(model: edge_llama.Model) -> None:
    text = "The quick brown fox. " * (MEGABYTES // 21 + 1)
    for use in (model.generate, model.chat().send):
        with refusal(ContextFullError, r"needs (at least )?[\d,]{6,} tokens but the context holds 4,096"):
            use(text)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\0" * 2000, "\0\n\0 <|im_end|>\0"])
def test_nul_is_a_character_like_any_other(text: str, llama2: Path, tmp_path: Path) -> None:
    converters.convert(llama2, tmp_path / "a.gguf", quant="f16")
    with edge_llama.open(tmp_path / "a.gguf", n_ctx=4096, threads=1) as model:
        ids = model.tokenizer.encode(text)
        assert b"".join(map(model.tokenizer.piece, ids)).decode().removeprefix(" ") == text
        assert model.chat().send(text, temperature=0, max_tokens=2).result().tokens


def test_a_character_that_the_vocabulary_lacks_is_named(model: edge_llama.Model) -> None:
    missing = [char for char in map(chr, range(32)) if char.encode() in model.tokenizer._missing_bytes]
    for char in missing:
        with refusal(OptionError, "can't express the character", ascii(char)):
            model.generate(f"a{char}b")


@pytest.fixture(scope="module")
def without_bytes(llama2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[edge_llama.Model]:
    """A sentencepiece vocabulary without byte fallback: llama.cpp ends the process on a character that is no token."""
    folder = tmp_path_factory.mktemp("without-bytes")
    converters.convert(llama2, folder / "whole.gguf", quant="f16")
    tokens = read_header(folder / "whole.gguf").fields["tokenizer.ggml.tokens"].data
    renamed = [f"unused{at}" if text.startswith("<0x") else text for at, text in enumerate(tokens)]
    fields = {"tokenizer.ggml.tokens": array(ValueType.STRING, renamed)}
    with edge_llama.open(rewritten(folder / "whole.gguf", folder / "a.gguf", fields=fields), n_ctx=256) as opened:
        yield opened


def test_what_a_vocabulary_without_byte_fallback_cannot_write_is_named(without_bytes: edge_llama.Model) -> None:
    for text, lost in (("a\nb", "\n"), ("Hello 🦙", "🦙"), ("\0", "\0")):
        with refusal(OptionError, "can't express the character", ascii(lost)):
            without_bytes.generate(text)
    assert without_bytes.generate("Hello there", temperature=0, max_tokens=2).result().tokens
    assert without_bytes.tokenizer._continue("Hello")


@pytest.mark.parametrize("text", ["\ud800", "good \udfff bad", "a\udcffb"])
def test_a_lone_surrogate_is_refused(text: str, model: edge_llama.Model) -> None:
    for use in (model.generate, model.chat().send, lambda text: Message("user", text)):
        with refusal(OptionError, f"lone surrogate.* at character {[*map(str.isascii, text)].index(False)}"):
            use(text)

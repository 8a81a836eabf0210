"""Answers of the real built-in model: streaming, ends, cancelling, threads, reuse."""

import gc
import logging
import math
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from engines import CAPITAL, Session, on_engine
from ggufs import rewritten

import converters
import edge_llama
from edge_llama import Message
from edge_llama.backends.base import TextTower
from edge_llama.files.gguf import Value, ValueType

LONG = "The quick brown fox jumps over the lazy dog. " * 150  # about 1,500 tokens, three batches


def test_the_answer_is_right_and_streams_in_whole_characters(model: edge_llama.Model) -> None:
    pieces = list(model.chat().send(CAPITAL, temperature=0))
    assert len(pieces) > 3
    assert "Tokyo" in "".join(piece.text for piece in pieces)
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]


def test_the_whole_answer_agrees_with_its_pieces(model: edge_llama.Model) -> None:
    generation = model.chat().send(CAPITAL, temperature=0)
    pieces = list(generation)
    answer = generation.result()
    assert answer.text == "".join(piece.text for piece in pieces)
    assert answer.tokens == tuple(token for piece in pieces for token in piece.token_ids)
    assert answer.timings.generated_tokens == len(answer.tokens)
    assert answer.text.encode() == b"".join(map(model.tokenizer.piece, answer.tokens))


def test_greedy_ids_equal_plain_llama_cpps(model: edge_llama.Model, converted: Path) -> None:
    """The reference: llama-cpp-python's high-level class on the same file, the same prompt ids and settings."""
    prompt = model.template.tokens([Message("user", "Name the planets of the solar system.")])
    on_engine(model, lambda session, tower: session.rewind(0))  # so that both read the prompt in one piece
    ours = model.answer(
        [Message("user", "Name the planets of the solar system.")], temperature=0, max_tokens=48
    ).result()
    plain = llama_cpp.Llama(str(converted), n_ctx=4096, n_threads=1, verbose=False, flash_attn=False)
    theirs = [token for token, _ in zip(plain.generate(prompt, temp=0.0, repeat_penalty=1.0), range(48), strict=False)]
    plain.close()
    end = next((at for at, token in enumerate(theirs) if model.tokenizer.is_end(token)), len(theirs))
    assert list(ours.tokens) == theirs[:end]


def test_characters_that_span_tokens_come_whole(model: edge_llama.Model) -> None:
    """Emoji are several byte tokens each; an expression leaves the model nothing else."""
    generation = model.generate("Llamas: ", regex="(🦙|🏔|🇯🇵){9}", temperature=0)
    pieces = list(generation)
    answer = generation.result()
    assert any(len(piece.token_ids) > 1 for piece in pieces), "no character spanned tokens: the test proves nothing"
    assert "\ufffd" not in "".join(piece.text for piece in pieces[:-1])
    whole = b"".join(map(model.tokenizer.piece, answer.tokens))
    assert answer.text == whole.decode("utf-8", "replace")


def test_a_stop_string_across_token_borders_ends_the_answer(exact: edge_llama.Model) -> None:
    whole = exact.generate("1 2 3 4 5 6 7 8 9 10 11", temperature=0, max_tokens=40).result()
    stop = whole.text[9:14]
    assert not any(stop in piece.decode() for piece in map(exact.tokenizer.piece, whole.tokens))
    answer = exact.generate("1 2 3 4 5 6 7 8 9 10 11", temperature=0, max_tokens=40, stop=[stop]).result()
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert (answer.stop_string, whole.stop_string) == (stop, None)


def test_max_tokens_ends_the_answer(model: edge_llama.Model) -> None:
    answer = model.generate("Once upon a time", temperature=0, max_tokens=5).result()
    assert (len(answer.tokens), answer.finish_reason) == (5, "length")


def test_a_full_context_ends_the_answer_and_says_so(converted: Path) -> None:
    with edge_llama.open(converted, n_ctx=64) as small:
        answer = small.generate("one two three four five six seven", temperature=0).result()
        assert answer.finish_reason == "length"
        # The last token needs no place in the cache: nothing follows it.
        assert answer.timings.prompt_tokens + len(answer.tokens) == 64 + 1


def test_a_prompt_that_does_not_fit_is_an_error_with_both_numbers(converted: Path) -> None:
    with edge_llama.open(converted, n_ctx=64) as small:
        tokens = len(small.tokenizer.encode(LONG))
        with pytest.raises(edge_llama.ContextFullError) as caught:
            small.generate(LONG)
        assert (caught.value.needed, caught.value.n_ctx) == (tokens, 64)
        assert f"{tokens:,}" in str(caught.value)
        with pytest.raises(edge_llama.ContextFullError):
            small.chat().send(LONG)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(exact: edge_llama.Model) -> None:
    def answer(seed: int) -> str:
        return exact.generate("My favourite", temperature=1.5, seed=seed, max_tokens=12).result().text

    assert answer(7) == answer(7)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_sampling_options_narrow_the_choice(exact: edge_llama.Model) -> None:
    def answer(**params: float) -> str:
        return exact.generate("My favourite colour is", max_tokens=12, seed=3, **params).result().text

    greedy = answer(temperature=0)
    assert answer(temperature=5.0, top_k=1) == greedy
    assert answer(temperature=5.0, top_p=0.0) == greedy
    assert answer(temperature=5.0, min_p=1.0) == greedy
    assert answer(temperature=5.0, top_k=0, top_p=1.0, min_p=0.0) != greedy


def test_a_repetition_penalty_ends_repetition(model: edge_llama.Model) -> None:
    prompt = " ".join(["Buffalo"] + ["buffalo"] * 7)
    plain = model.generate(prompt, temperature=0, max_tokens=16).result()
    penalized = model.generate(prompt, temperature=0, max_tokens=16, repetition_penalty=1.5).result()
    assert plain.text.count("buffalo") > 8
    assert penalized.text.count("buffalo") < 3


def test_frequency_and_presence_penalties_count_what_came(model: edge_llama.Model) -> None:
    prompt = " ".join(["Buffalo"] + ["buffalo"] * 7)
    for penalty in ("frequency_penalty", "presence_penalty"):
        answer = model.generate(
            prompt, temperature=0, max_tokens=16, penalty_window=2**31 - 1, **{penalty: 100.0}
        ).result()
        assert len(set(answer.tokens)) == len(answer.tokens)
        assert "buffalo" not in answer.text


def test_a_bias_bans_or_forces_a_token(model: edge_llama.Model) -> None:
    def first(**params: Any) -> int:
        return model.generate("The capital of Japan is", max_tokens=1, **params).result().tokens[0]

    tokyo = first(temperature=0)
    assert first(temperature=0, logit_bias={tokyo: -1e4}) != tokyo
    assert {first(temperature=2.0, seed=seed, logit_bias={1234: 1e4}) for seed in range(5)} == {1234}


def test_a_bias_for_no_token_is_an_error_that_names_the_range(model: edge_llama.Model) -> None:
    with pytest.raises(edge_llama.OptionError, match="no token 49152; ids are from 0 to 49,151"):
        model.generate("x", logit_bias={49152: 1.0})


def test_every_seed_can_be_repeated(exact: edge_llama.Model) -> None:
    """llama.cpp draws one for the largest number of 32 bits: that is no seed here."""
    answers = [
        exact.generate("My favourite", temperature=1.5, seed=2**32 - 2, max_tokens=12).result().text for _ in range(2)
    ]
    assert answers[0] == answers[1]


def test_a_second_turn_reads_only_what_is_new(model: edge_llama.Model) -> None:
    chat = model.chat()
    first = chat.send(CAPITAL, temperature=0).result()
    second = chat.send("And of Italy?", temperature=0).result()
    read = second.timings.prompt_tokens - second.timings.cached_tokens
    assert second.timings.cached_tokens >= first.timings.prompt_tokens + len(first.tokens)
    assert read < 30


def test_reuse_does_not_change_the_logits(llama3: Path, tmp_path: Path) -> None:
    """With float weights and cache: quantized kernels round differently for other numbers of tokens at once."""
    converters.convert(llama3, tmp_path / "a.gguf", quant="f32")
    prompt, other = list(range(40, 80)), [*range(40, 66), *range(90, 100)]

    def work(session: Session, tower: TextTower) -> tuple[Any, Any, int]:
        session.prefill(prompt)
        fresh = session.logits()
        session.prefill(other)
        reused = session.prefill(prompt)
        return fresh, session.logits(), reused

    with edge_llama.open(tmp_path / "a.gguf", n_ctx=128, kv_format="f32") as floats:
        fresh, again, reused = on_engine(floats, work)
    assert reused == 26
    assert np.abs(fresh - again).max() < 1e-4


def test_cancelling_within_a_long_prompt_ends_it_early(model: edge_llama.Model) -> None:
    on_engine(model, lambda session, tower: session.rewind(0))
    generation = model.generate(LONG, max_tokens=5)
    while not model.stats().used_cells:  # prefilling has begun
        time.sleep(0.001)
    generation.cancel()
    answer = generation.result()
    assert (answer.text, answer.finish_reason) == ("", "cancelled")
    read = on_engine(model, lambda session, tower: len(session.tokens))
    assert 0 < read < answer.timings.prompt_tokens
    again = model.generate(LONG, max_tokens=1).result()
    assert again.timings.cached_tokens == read, "what was read before the cancel is read no second time"


def test_cancelling_within_an_answer_keeps_what_was_generated(model: edge_llama.Model) -> None:
    chat = model.chat()
    generation = chat.send("Tell me a very long story about the sea.", temperature=0)
    first = next(generation)
    chat.cancel()
    answer = generation.result()
    assert answer.finish_reason == "cancelled"
    assert answer.text.startswith(first.text)
    assert [message.role for message in chat.messages] == ["user", "assistant"]


def test_a_generation_that_was_cancelled_before_its_turn_never_starts(model: edge_llama.Model) -> None:
    first = model.generate("Once upon a time", temperature=0, max_tokens=30)
    second = model.generate("Twice", temperature=0)
    second.cancel()
    assert second.result().timings.generated_tokens == 0
    assert second.result().finish_reason == "cancelled"
    assert len(first.result().tokens) == 30


def test_a_generation_that_nobody_holds_stops(model: edge_llama.Model) -> None:
    generation = model.generate("Count: 1 2 3 4 5 6 7 8", temperature=0)
    next(generation)
    timings = generation.timings
    del generation
    gc.collect()
    model.generate("x", max_tokens=1).result()  # would wait for the whole context otherwise
    assert timings.generated_tokens < 2000


def test_generations_of_one_thread_may_be_interleaved(exact: edge_llama.Model) -> None:
    prompts = ["The sun is", "The moon is"]
    alone = [exact.generate(prompt, temperature=0, max_tokens=12).result().text for prompt in prompts]
    running = [exact.generate(prompt, temperature=0, max_tokens=12) for prompt in prompts]
    texts = ["", ""]
    for _ in range(40):
        for at, generation in enumerate(running):
            texts[at] += next(generation, edge_llama.Piece("")).text
    assert texts == alone


def test_threads_share_a_model_and_get_the_answers_they_would_get_alone(exact: edge_llama.Model) -> None:
    questions = ["What is 2 + 2?", CAPITAL, "What colour is the sky?", "Who wrote Hamlet?"] * 3

    def ask(question: str) -> str:
        return exact.chat().send(question, temperature=0, max_tokens=4).result().text

    alone = {question: ask(question) for question in set(questions)}
    answers: dict[int, str] = {}

    def work(number: int) -> None:
        if number % 3 == 2:
            exact.chat().send("Tell me a long story.", temperature=0).cancel()
        answers[number] = ask(questions[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(len(questions))] == [alone[question] for question in questions]


def test_closing_a_model_ends_what_runs(converted: Path) -> None:
    model = edge_llama.open(converted, n_ctx=1024)
    generation = model.generate("Once upon a time", temperature=0)
    next(generation)
    model.close()
    assert generation.result().finish_reason == "cancelled"
    model.close()
    with pytest.raises(edge_llama.EngineError, match="closed"):
        model.generate("x")


@pytest.mark.parametrize("bad", ["", None, b"bytes", "\ud800"])
def test_a_prompt_that_is_no_text_is_an_error(model: edge_llama.Model, bad: object) -> None:
    with pytest.raises(edge_llama.OptionError):
        model.generate(bad)  # type: ignore[arg-type]


def test_an_unknown_option_is_an_error_that_names_the_nearest(model: edge_llama.Model) -> None:
    with pytest.raises(edge_llama.OptionError, match="did you mean temperature"):
        model.generate("x", temprature=1)


@pytest.mark.parametrize("temperature", [1e-30, 3.4e38, np.float32(0.7)])
def test_temperatures_at_the_ends_of_the_range_work(model: edge_llama.Model, temperature: float) -> None:
    assert model.generate("Once upon a time", temperature=temperature, seed=1, max_tokens=4).result().tokens


@pytest.mark.parametrize(
    "bad",
    [
        {"model": b"model.gguf"},
        {"model": 5},
        {"chat_template": 5},
        {"chat_template": "\ud800"},
        {"threads": 1.5},
        {"threads": 10**5000},
        {"n_ctx": 10**5000},
        {"n_ctx": True},
    ],
)
def test_opening_with_what_cannot_be_used_is_an_error_that_names_it(packaged: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(edge_llama.OptionError, match=next(iter(bad))):
        edge_llama.open(**{"model": packaged, **bad})


def test_sizes_may_be_numpys(packaged: Path) -> None:
    with edge_llama.open(packaged, n_ctx=np.int64(64), threads=np.uint8(1)) as opened:  # type: ignore[arg-type]
        assert opened.generate("x", temperature=0, max_tokens=np.int32(2)).result().tokens


def test_a_files_own_defaults_that_cannot_be_used_are_ignored_and_named(
    packaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {
        "temp": Value(ValueType.FLOAT32, math.nan),
        "top_k": Value(ValueType.INT32, -1),
        "top_p": Value(ValueType.STRING, "much"),
        "min_p": Value(ValueType.FLOAT32, 0.25),
    }
    path = rewritten(
        packaged, tmp_path / "odd.gguf", fields={f"general.sampling.{key}": value for key, value in fields.items()}
    )
    with edge_llama.open(path, n_ctx=64) as odd, caplog.at_level(logging.WARNING):
        assert odd.generate("x", seed=1, max_tokens=2).result().tokens
        assert odd.sampling_defaults == {"top_k": 0, "min_p": 0.25}
    for parts in (("general.sampling.temp ", "nan"), ("general.sampling.top_p ", "'much'")):
        assert [all(part in text for part in (str(path), *parts)) for text in caplog.messages].count(True) == 1


def test_a_model_file_that_is_cut_short_while_open_does_no_harm(converted: Path, tmp_path: Path) -> None:
    """A mapped file would end the process here, with SIGBUS."""
    copy = tmp_path / "copy.gguf"
    shutil.copy(converted, copy)
    with edge_llama.open(copy, n_ctx=256) as opened:
        os.truncate(copy, 4096)
        assert "Tokyo" in opened.chat().send(CAPITAL, temperature=0).result().text
    with pytest.raises(edge_llama.ArtifactError, match=r"cut short|can hold"):
        edge_llama.open(copy)

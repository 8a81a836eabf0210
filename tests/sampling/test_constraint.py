"""Answers by schema, regex and grammar are whole and valid."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import on_engine
from schemas import BOUNDED, UNBOUNDED, check, walk

import converters
import edge_llama
from edge_llama import Message
from edge_llama.sampling.constraint import constraint
from edge_llama.sampling.params import SamplingParams

QUESTION = [Message("user", "Make up an entry of an address book, as JSON.")]
MAX_TOKENS = 400


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("seed", range(3))
def test_the_models_answers_are_whole_and_valid(model: edge_llama.Model, name: str, seed: int) -> None:
    schema = BOUNDED[name]
    answer = model.answer(QUESTION, json_schema=schema, temperature=1, seed=seed, max_tokens=MAX_TOKENS).result()
    assert answer.finish_reason == "stop", answer.text
    check(answer.text, schema)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_an_answer_that_max_tokens_cuts_says_so_and_others_are_valid(model: edge_llama.Model, name: str) -> None:
    answer = model.answer(QUESTION, json_schema=UNBOUNDED[name], temperature=1, seed=1, max_tokens=24).result()
    if answer.finish_reason == "stop":
        check(answer.text, UNBOUNDED[name])
    else:
        assert (answer.finish_reason, len(answer.tokens)) == ("length", 24)


@pytest.mark.parametrize("name", [*BOUNDED, *UNBOUNDED])
def test_whatever_fits_is_valid(name: str, rng: np.random.Generator) -> None:
    schema = {**UNBOUNDED, **BOUNDED}[name]
    found = [walk(SamplingParams(json_schema=schema), rng) for _ in range(40)]
    whole = [text for text in found if text is not None]
    assert len(whole) > 10 or name == "search"  # which random letters seldom meet
    for text in whole:
        check(text, schema)


@pytest.mark.parametrize("number", [0, -1, 0.1, -0.25, 1e-7, 123.456, 2**53 - 1, -(2**53) + 1, 4.5e15, 1e15])
def test_numbers_come_back_exactly(number: float, rng: np.random.Generator) -> None:
    found = walk(SamplingParams(json_schema={"const": number}), rng)
    assert found is not None
    assert json.loads(found) == number


def test_any_vocabulary_will_do(llama2: Path, llama3: Path, tmp_path: Path) -> None:
    """Sentencepiece and byte-level BPE, with random weights: such models have no idea of JSON."""
    for checkpoint in (llama2, llama3):
        path = tmp_path / f"{checkpoint.name}.gguf"
        converters.convert(checkpoint, path, quant="f32")
        with edge_llama.open(path, n_ctx=512) as opened:
            for name in ("required", "unicode", "reference", "enum"):
                answer = opened.generate("x", json_schema=BOUNDED[name], temperature=1, seed=2, max_tokens=300).result()
                assert answer.finish_reason == "stop"
                check(answer.text, BOUNDED[name])
            fits = constraint(SamplingParams(regex="Once upon a time[0-9]"), opened.tokenizer)
            assert fits
            forced = b"".join(map(opened.tokenizer.piece, fits.forced()))
            assert forced
            assert b"Once upon a time".startswith(forced), "no space before it, as before a text of its own"


@pytest.mark.parametrize(
    "regex", [r"[0-9]{3}-[0-9]{4}", r"(yes|no)( really){0,2}", r"\d/\d", "a\nb", r"[ぁ-ん]{3}🦙?", ""]
)
def test_a_regex_holds_for_the_whole_answer(model: edge_llama.Model, regex: str) -> None:
    for seed in range(3):
        answer = model.generate("My number is ", regex=regex, temperature=1.5, seed=seed, max_tokens=60).result()
        assert answer.finish_reason == "stop"
        assert re.fullmatch(regex, answer.text)


def test_a_grammar_holds_for_the_whole_answer(model: edge_llama.Model) -> None:
    grammar = """
        start: sum "=" NUM      // a comment: with "quotes" | start
        sum: NUM ("+" NUM){1,3} | "(" NUM "-" NUM ")" "*" NUM
        NUM: /[1-9][0-9]?/
    """
    for seed in range(4):
        answer = model.generate("2+2=4, ", grammar=grammar, temperature=1, seed=seed, max_tokens=80).result()
        assert answer.finish_reason == "stop"
        left, right = answer.text.split("=")
        assert re.fullmatch(r"[1-9][0-9]?", right)
        assert isinstance(eval(left), int)


def test_a_schema_within_a_grammar_is_enforced(model: edge_llama.Model) -> None:
    schema = json.dumps(BOUNDED["required"])
    answer = model.generate(
        "x", grammar=f'start: "<tool>" %json {schema} "</tool>"', temperature=1, seed=1, max_tokens=100
    ).result()
    check(answer.text.removeprefix("<tool>").removesuffix("</tool>"), BOUNDED["required"])


def test_the_answer_ends_with_the_grammar_also_at_the_last_token_allowed(model: edge_llama.Model) -> None:
    def answer(count: int) -> edge_llama.Answer:
        return model.generate("x", regex="[0-9]{40}", temperature=0, max_tokens=count).result()  # a token each

    whole = answer(40)
    assert (whole.finish_reason, len(whole.text)) == ("stop", 40)
    assert answer(len(whole.tokens)).finish_reason == "stop"
    assert answer(len(whole.tokens) - 1).finish_reason == "length"


def test_other_settings_go_on_to_hold(model: edge_llama.Model) -> None:
    def answer(**params: Any) -> str:
        return model.generate("Colours: ", regex="(red|blue|green)", max_tokens=9, **params).result().text

    words = {answer(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed) for seed in range(12)}
    assert words == {"red", "blue", "green"}
    likeliest = answer(temperature=0)
    other = next(word for word in ("blue", "green") if word != likeliest)
    assert answer(temperature=0, logit_bias={model.tokenizer.encode(other)[0]: 1e4}) == other
    assert answer(temperature=0, logprobs=2) == likeliest


def test_masked_logits_are_whole_again_after_the_choice(model: edge_llama.Model) -> None:
    model.generate("Once upon a time", regex="[yz]{4}", temperature=0, max_tokens=1).result()
    logits = on_engine(model, lambda session, _tower: session.logits())
    assert np.isfinite(logits).all()


def test_logits_are_whole_again_for_the_next_answer(exact: edge_llama.Model) -> None:
    plain = exact.generate("Once upon a time", temperature=0, max_tokens=6).result()
    exact.generate("Once upon a time", regex="zz", max_tokens=6).result()
    again = exact.generate("Once upon a time", temperature=0, max_tokens=6, logprobs=1).result()
    assert again.tokens == plain.tokens

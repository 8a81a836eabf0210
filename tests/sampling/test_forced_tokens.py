"""Tokens that a schema, regex or grammar leaves no choice about are known without the model."""

import json
from typing import Any

import numpy as np
import pytest
from schemas import BOUNDED, BYTES, check, closed

import edge_llama
from edge_llama import Message
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.sampling.constraint import Constraint, constraint
from edge_llama.sampling.params import SamplingParams

NAMES = ("required", "enum", "const", "nested", "discriminator", "tuple", "unicode", "map", "date-time", "any integer")
PERSON = closed({"first_name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}, "good": {"const": True}})


def fitting(tokenizer: Tokenizer, **params: Any) -> Constraint:
    found = constraint(SamplingParams(**params), tokenizer)
    assert found
    return found


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> bytes:
    return b"".join(map(tokenizer.piece, tokens))


@pytest.mark.parametrize("name", NAMES)
def test_they_are_all_that_can_come(model: edge_llama.Model, name: str, rng: np.random.Generator) -> None:
    """A random walk: each fits, every token that could come in its place begins the same text, and asking is free."""
    tokenizer = model.tokenizer
    fits = fitting(tokenizer, json_schema=BOUNDED[name])
    for _ in range(60):
        if fits.is_complete:
            return
        before = fits.refused()
        tokens = fits.forced()
        np.testing.assert_array_equal(fits.refused(), before)
        allowed = np.flatnonzero(~before)
        text = text_of(tokenizer, tokens)
        for token in allowed if tokens else ():
            piece = tokenizer.piece(int(token))
            assert piece
            assert piece.startswith(text) or text.startswith(piece)
        if not tokens:
            tokens = [int(rng.choice(allowed))]
            if tokenizer.is_end(tokens[0]):
                return
        for token in tokens:
            fits.accept(token)


@pytest.mark.parametrize("text", ["Once upon a time there was", "naïve 🦙 llamas: 1,000 of them", "\n\n\tif x:\n"])
def test_text_is_cut_as_the_tokenizer_cuts_it_up_to_where_more_may_join(model: edge_llama.Model, text: str) -> None:
    tokenizer = model.tokenizer
    fits = fitting(tokenizer, grammar=f"start: {json.dumps(text, ensure_ascii=False)} /[a-z ]{{0,9}}/")
    forced, own = fits.forced(), tokenizer.encode(text)
    assert 0 < len(own) - len(forced) <= 2
    assert forced == own[: len(forced)]


def test_after_a_choice_the_rest_follows_from_it(model: edge_llama.Model) -> None:
    tokenizer = model.tokenizer
    fits = fitting(tokenizer, regex="(chrysanthemum|hippopotamus) in the garden\\.")
    assert fits.forced() == []
    fits.accept(tokenizer.encode("ch")[0])
    forced = fits.forced()
    assert text_of(tokenizer, forced) == b"rysanthemum in the garden."
    for token in forced:
        fits.accept(token)
    assert fits.is_complete
    assert fits.forced() == []


@pytest.mark.parametrize("regex", ["", "(yes|no)", "a?", "[ab]", "(ab)*"])
def test_where_there_is_a_choice_or_an_end_may_come_nothing_is_forced(model: edge_llama.Model, regex: str) -> None:
    assert fitting(model.tokenizer, regex=regex).forced() == []
    assert fitting(BYTES, regex=regex).forced() == []


def test_the_only_token_of_a_mask_is_forced_also_within_a_character() -> None:
    fits = fitting(BYTES, regex="(ü|ä|xyz)é{2}.")
    assert fits.forced() == []
    fits.accept(0xC3)
    assert fits.forced() == []
    fits.accept("ä".encode()[1])
    assert bytes(fits.forced()) == "éé".encode()


def test_an_end_token_is_left_to_the_model() -> None:
    fits = fitting(BYTES, regex="ab?")
    assert fits.forced() == [ord("a")]
    fits.accept(ord("a"))
    assert fits.forced() == []


class Forcing:
    """Forces tokens in an answer, by a function over its logits."""

    def __init__(self, fits: Constraint) -> None:
        self._fits = fits
        self._waiting: list[int] = []
        self._at: int | None = None
        self.count = 0

    def __call__(self, token_ids: Any, logits: Any) -> Any:
        if self._at is not None:
            self._fits.accept(token_ids[self._at])
        self._at = len(token_ids)
        if not self._waiting:
            self._waiting = self._fits.forced()
            self.count += len(self._waiting)
        if self._waiting:
            logits[:] = -np.inf
            logits[self._waiting.pop(0)] = 0
        return logits


def test_answers_with_them_are_valid_and_half_of_it_is_forced(model: edge_llama.Model) -> None:
    forcing = Forcing(fitting(model.tokenizer, json_schema=PERSON))
    answer = model.answer(
        [Message("user", "Make up a person, as JSON.")], json_schema=PERSON, temperature=0, logits_processor=forcing
    ).result()
    check(answer.text, PERSON)
    assert forcing.count > len(answer.tokens) / 2
    assert answer.text.startswith('{"first_name": "')

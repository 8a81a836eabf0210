"""Several conversations on one model: nothing that one prefilled is prefilled again, forks neither; room is bounded."""

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import CAPITAL, Session, decoded, on_engine

import converters
import edge_llama
from edge_llama import Chat, Message
from edge_llama.backends.base import TextTower
from edge_llama.generation import generate
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.session_file import State
from edge_llama.sampling.params import SamplingParams

STORY = "Tell me a story about the sea. " * 20


@pytest.fixture(autouse=True)
def _fresh(model: edge_llama.Model) -> None:
    """Nothing of other tests in the cache, and nothing in the store."""
    gc.collect()
    on_engine(model, lambda session, tower: session.rewind(0))


def say(chat: Chat, text: str, **params: Any) -> edge_llama.Answer:
    return chat.send(text, temperature=0, max_tokens=6, **params).result()


def new_tokens(*answers: edge_llama.Answer) -> int:
    return sum(answer.timings.prompt_tokens - answer.timings.cached_tokens for answer in answers)


def test_chats_that_alternate_prefill_only_what_is_new(model: edge_llama.Model) -> None:
    chats = [model.chat(system=f"You are number {number}. {STORY}") for number in range(3)]
    for chat in chats:
        say(chat, CAPITAL)
    before = decoded(model)[0]
    answers = [say(chat, f"Question {turn}") for turn in range(3) for chat in chats]
    assert all(answer.timings.cached_tokens > 150 for answer in answers)
    assert all(new_tokens(answer) < 25 for answer in answers)
    assert decoded(model)[0] - before == new_tokens(*answers)


def test_alternating_does_not_change_the_answers(exact: edge_llama.Model) -> None:
    def turns(chat: Chat) -> Iterator[str]:
        for text in (CAPITAL, "And of Italy?", "And of Egypt?"):
            yield say(chat, text).text

    alone = [list(turns(exact.chat(system=system))) for system in ("Be brief.", "Be kind.")]
    both = [turns(exact.chat(system=system)) for system in ("Be brief.", "Be kind.")]
    together = list(zip(*zip(*both, strict=True), strict=True))
    assert [list(each) for each in together] == alone


def test_a_prompt_without_a_chat_costs_a_chat_nothing(model: edge_llama.Model) -> None:
    chat = model.chat(system=STORY)
    say(chat, CAPITAL)
    model.generate("Once upon a time", max_tokens=4).result()
    assert new_tokens(say(chat, "Thanks")) < 20


def test_a_fork_prefills_nothing_again_and_neither_does_its_origin(model: edge_llama.Model) -> None:
    chat = model.chat(system=STORY)
    say(chat, CAPITAL)
    length = on_engine(model, lambda session, tower: len(session.tokens))
    before = decoded(model)[0]
    fork = chat.fork()
    assert fork.messages == chat.messages
    answers = [say(fork, "And of Italy?"), say(chat, "And of Egypt?"), say(fork, "Thanks"), say(chat, "Thanks")]
    assert all(answer.timings.cached_tokens >= length for answer in answers)
    assert decoded(model)[0] - before == new_tokens(*answers) < 100
    assert "Italy" in str(fork.messages)
    assert "Italy" not in str(chat.messages)


def test_a_fork_outlives_its_origin(model: edge_llama.Model) -> None:
    chat = model.chat(system=STORY)
    say(chat, CAPITAL)
    fork = chat.fork()
    del chat
    gc.collect()
    say(model.chat(system="Another."), "Hello")
    assert new_tokens(say(fork, "And of Italy?")) < 20


def test_a_fork_of_a_waiting_chat_prefills_nothing_again(model: edge_llama.Model) -> None:
    chat = model.chat(system=STORY)
    say(chat, CAPITAL)
    say(model.chat(system="Another."), "Hello")
    fork = chat.fork()
    assert new_tokens(say(fork, "And of Italy?")) < 20
    assert new_tokens(say(chat, "And of Egypt?")) < 20


def test_a_chat_with_the_beginning_of_one_that_waits_takes_it_over(model: edge_llama.Model) -> None:
    first = model.chat(system=STORY)
    say(first, CAPITAL)
    say(model.chat(system="Another."), "Hello")
    second = say(model.chat(system=STORY), "What is the sea?")
    assert new_tokens(second) < 20
    assert new_tokens(say(first, "And of Italy?")) < 20


def test_rewinding_takes_back_exchanges_and_prefills_nothing_again(model: edge_llama.Model) -> None:
    chat = model.chat(system=STORY)
    for text in (CAPITAL, "And of Italy?", "And of Egypt?"):
        say(chat, text)
    chat.rewind(2)
    assert [message.role for message in chat.messages] == ["system", "user", "assistant"]
    assert new_tokens(say(chat, "And of Spain?")) < 20
    chat.rewind(2)
    assert [message.role for message in chat.messages] == ["system"]
    for bad in (1, 0, -1, 1.5, True):
        with pytest.raises(edge_llama.OptionError, match="exchanges"):
            chat.rewind(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("use", ["fork", "rewind", "compact", "save"])
def test_while_an_answer_is_generated_nothing_else_is_done(model: edge_llama.Model, use: str, tmp_path: Path) -> None:
    chat = model.chat()
    with chat.send("Tell me a long story.", temperature=0) as running:
        next(running)
        with pytest.raises(edge_llama.EngineError, match="still being made"):
            getattr(chat, use)(*([tmp_path / "x"] if use == "save" else []))


def test_without_room_a_chat_prefills_again_and_the_log_says_so(
    converted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with edge_llama.open(converted, n_ctx=1024, cache_bytes=0) as model, caplog.at_level(logging.INFO):
        chats = [model.chat(system=f"{name}. {STORY * 2}") for name in ("One", "Two")]
        say(chats[0], CAPITAL)
        say(chats[1], CAPITAL)
        assert "no room to keep a conversation of" in caplog.text
        assert new_tokens(say(chats[0], "Thanks")) > 300
        assert model.stats().cached_bytes == 0


def test_a_dropped_chats_cache_is_there_for_who_begins_as_it_did(model: edge_llama.Model) -> None:
    chat = model.chat(system=STORY * 2)
    say(chat, CAPITAL)
    other = model.chat(system="Another. " * 150)
    say(other, "Hello")
    assert model.stats().cached_bytes > 1_000_000, "it was copied out: so many idle cells would slow the other"
    del chat
    gc.collect()
    assert new_tokens(say(model.chat(system=STORY * 2), CAPITAL)) < 10


@pytest.mark.parametrize("flash_attention", [False, True])
@pytest.mark.parametrize("kv_format", ["f16", "f32"])
def test_a_copied_cache_gives_the_same_logits(
    llama3: Path, tmp_path: Path, flash_attention: bool, kv_format: str, rng: np.random.Generator
) -> None:
    converters.convert(llama3, tmp_path / "a.gguf", quant="f32")
    prompts = [rng.integers(40, 200, int(rng.integers(30, 100))).tolist() for _ in range(2)]

    def run(session: Session, tower: TextTower) -> None:
        owners = [CacheOwner(), CacheOwner()]
        expected = []
        for prompt in prompts:  # each alone, in one piece and one token more
            session.rewind(0)
            session.prefill(prompt)
            session.append(50)
            expected.append(session.logits())
        session.rewind(0)
        for prompt, owner in zip(prompts, owners, strict=True):
            session.prefill(prompt, owner)
            assert session.cache.make_cells(tower.n_cells), "it is copied out"
        for prompt, owner, logits in zip(prompts, owners, expected, strict=True):
            assert session.prefill(prompt, owner) == len(prompt), "no token is read again, not even the last"
            session.append(50)
            assert np.array_equal(session.logits(), logits)
            assert session.cache.make_cells(tower.n_cells)

    with edge_llama.open(tmp_path / "a.gguf", n_ctx=512, kv_format=kv_format, flash_attention=flash_attention) as model:
        on_engine(model, run)


def test_a_state_that_the_engine_refuses_is_prefilled_again(llama3: Path, tmp_path: Path) -> None:
    converters.convert(llama3, tmp_path / "a.gguf", quant="f32")

    def run(session: Session, tower: TextTower) -> None:
        owner = CacheOwner()
        session.prefill(list(range(40, 80)), owner)
        good = session.state(owner)
        assert good is not None
        session.rewind(0)
        bad = State(good.tokens, good.kv[:-8], None)
        with pytest.raises(edge_llama.EngineError, match="read 0 of"):
            session.cache.adopt(bad, owner)
        assert session.tokens == []
        session.cache.copies.keep(bad)
        assert session.prefill(list(range(40, 90)), owner) == 0
        assert session.cache.copies.nbytes == 0
        fresh = session.logits()
        session.rewind(0)
        session.prefill(list(range(40, 90)))
        assert np.array_equal(fresh, session.logits())

    with edge_llama.open(tmp_path / "a.gguf", n_ctx=512) as model:
        on_engine(model, run)


@pytest.mark.parametrize("owner", [CacheOwner(), None])
def test_an_answer_to_messages_is_kept_with_and_without_an_owner(
    model: edge_llama.Model, owner: CacheOwner | None
) -> None:
    messages = [Message("system", STORY), Message("user", CAPITAL)]
    model.answer(messages, temperature=0, max_tokens=4, owner=owner).result()
    model.generate("Once upon a time", max_tokens=2).result()
    assert new_tokens(model.answer(messages, temperature=0, max_tokens=4, owner=owner).result()) < 10


def test_the_masks_of_a_grammar_do_not_reach_what_is_kept(model: edge_llama.Model) -> None:
    """They are written into the engine's logits: neither a waiting cache nor one that was loaded may have them."""
    chat = model.chat()
    say(chat, CAPITAL)
    kept = on_engine(model, lambda session, tower: session.state(chat.cache_owner))
    assert kept is not None
    assert kept.logits is not None
    logits = kept.logits.copy()
    prompt = kept.tokens.tolist()
    on_engine(model, lambda session, tower: session.cache.adopt(kept, chat.cache_owner))
    params = SamplingParams(temperature=0, max_tokens=1, regex="[0-9]{3}")
    answer = generate(model._engine, prompt, params, owner=chat.cache_owner).result()
    assert answer.text.isdigit()
    assert answer.timings.cached_tokens == len(prompt)
    assert np.array_equal(kept.logits, logits)
    masked = on_engine(model, lambda session, tower: session.state(chat.cache_owner))
    assert masked is not None
    assert masked.logits is not None
    assert np.array_equal(masked.logits, logits)

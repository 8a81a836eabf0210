"""Conversations that outgrow the context: refused, shortened or summarised as was chosen, and always told."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from engines import CAPITAL

import edge_llama
from edge_llama import Chat, Message, Shortened
from edge_llama.prompts.context_overflow import SUMMARY_REQUEST, Shortening, WhenFull, exchanges_of

N_CTX = 512
FACT = "My dog is called Bruno. " + "He likes long walks by the sea. " * 4


@pytest.fixture(scope="module")
def small(small_talk: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(small_talk, n_ctx=N_CTX) as opened:
        yield opened


@pytest.fixture(scope="module")
def built_in(converted: Path) -> Iterator[edge_llama.Model]:
    """Which can summarize, and takes its time."""
    with edge_llama.open(converted, n_ctx=N_CTX) as opened:
        yield opened


def filled(model: edge_llama.Model, when_full: WhenFull, told: list[Shortened] | None = None) -> Chat:
    """A chat that the next message finds full."""
    on_shortened: Callable[[Shortened], None] | None = None if told is None else told.append
    chat = model.chat(system="Answer briefly.", when_full=when_full, on_shortened=on_shortened)
    while model.count_tokens(chat.messages) < N_CTX - 60:
        chat.messages += [Message("user", FACT), Message("assistant", "Bruno sounds like a lovely dog.")]
    return chat


def test_a_message_that_does_not_fit_is_refused_by_default(small: edge_llama.Model) -> None:
    chat = filled(small, "error")
    before = list(chat.messages)
    with pytest.raises(edge_llama.ContextFullError) as caught:
        chat.send(FACT * 2)
    assert caught.value.n_ctx == N_CTX < caught.value.needed
    assert chat.messages == before
    assert chat.shortened is None


def test_the_oldest_exchanges_are_dropped_and_told(small: edge_llama.Model, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Shortened] = []
    chat = filled(small, "drop-oldest", told)
    before = list(chat.messages)
    with caplog.at_level(logging.INFO):
        answer = chat.send(CAPITAL, temperature=0, max_tokens=100).result()
    assert "Tokyo" in answer.text
    assert chat.messages[0] == Message("system", "Answer briefly.")
    assert chat.messages[1:-2] == before[len(before) - len(chat.messages) + 3 :]
    assert told == [chat.shortened]
    assert told[0].dropped == len(before) - len(chat.messages) + 2 > 0
    assert told[0].tokens_before > N_CTX - 100
    assert told[0].tokens_after == answer.timings.prompt_tokens <= N_CTX // 2
    assert str(told[0]) in caplog.text
    chat.send("Thanks", max_tokens=8).result()
    assert len(told) == 1, "half of the context is free: the next message fits"


def test_the_oldest_exchanges_are_summarised_and_told(built_in: edge_llama.Model) -> None:
    told: list[Shortened] = []
    chat = filled(built_in, "compact", told)
    before = list(chat.messages)
    answer = chat.send(CAPITAL, temperature=0, max_tokens=100).result()
    assert "Tokyo" in answer.text
    assert told == [chat.shortened]
    assert told[0].summarized > 0
    assert told[0].dropped == 0
    assert chat.messages[0] == before[0]
    assert chat.messages[1] == SUMMARY_REQUEST
    assert "Bruno" in chat.messages[2].content
    assert chat.messages[3:-2] == before[1 + told[0].summarized :]
    assert told[0].tokens_after == answer.timings.prompt_tokens < N_CTX - 100


def test_a_chat_can_go_on_for_as_long_as_one_likes(small: edge_llama.Model) -> None:
    for when_full in ("drop-oldest", "compact"):
        told: list[Shortened] = []
        chat = filled(small, when_full, told)  # type: ignore[arg-type]
        while len(told) < 3:
            answer = chat.send(FACT, temperature=0, max_tokens=40).result()
            assert answer.timings.prompt_tokens + len(answer.tokens) <= N_CTX
        roles = [message.role for message in chat.messages]
        assert roles == ["system"] + ["user", "assistant"] * ((len(roles) - 1) // 2)


def test_an_answer_that_fills_the_context_ends_and_the_next_message_makes_room(small: edge_llama.Model) -> None:
    told: list[Shortened] = []
    chat = filled(small, "drop-oldest", told)
    chat.when_full = "error"
    answer = chat.send("Tell me a very long story about the sea.", temperature=0)
    whole = answer.result()
    assert whole.finish_reason == "length"
    assert whole.timings.prompt_tokens + len(whole.tokens) == N_CTX + 1
    chat.when_full = "drop-oldest"
    assert "Tokyo" in chat.send(CAPITAL, temperature=0, max_tokens=40).result().text
    assert len(told) == 1


@pytest.mark.parametrize("when_full", ["drop-oldest", "compact"])
def test_a_message_that_never_fits_changes_nothing(small: edge_llama.Model, when_full: WhenFull) -> None:
    chat = filled(small, when_full)
    before = list(chat.messages)
    for text in (FACT * 40, "word " * 2_000_000):
        with pytest.raises(edge_llama.ContextFullError):
            chat.send(text)
    assert chat.messages == before
    assert chat.shortened is None


def test_retry_makes_room_and_replaces_the_answer(small: edge_llama.Model) -> None:
    chat = filled(small, "drop-oldest")
    chat.messages += [Message("user", CAPITAL), Message("assistant", "I don't know.")]
    answer = chat.retry(temperature=0).result()
    assert chat.shortened is not None
    assert chat.messages[-2:] == [Message("user", CAPITAL), Message("assistant", answer.text)]
    assert "don't know" not in str(chat.messages)


def test_compact_on_demand_keeps_the_last_exchange(small: edge_llama.Model) -> None:
    chat = small.chat(system="Answer briefly.")
    assert chat.compact() is None
    chat.messages += [Message("user", FACT), Message("assistant", "Good boy, Bruno!")]
    assert chat.compact() is None
    last = [Message("user", CAPITAL), Message("assistant", "Tokyo.")]
    chat.messages += last
    told = chat.compact()
    assert told is not None
    assert told == chat.shortened
    assert (told.summarized, told.dropped) == (2, 0)
    assert chat.messages[0] == Message("system", "Answer briefly.")
    assert chat.messages[1] == SUMMARY_REQUEST
    assert chat.messages[3:] == last
    assert told.tokens_after == small.count_tokens(chat.messages)


def test_a_summary_can_be_cancelled(built_in: edge_llama.Model) -> None:
    chat = filled(built_in, "compact")
    before = list(chat.messages)
    errors: list[Exception] = []

    def send() -> None:
        try:
            chat.send(CAPITAL)
        except edge_llama.EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    while chat._summary is None and thread.is_alive():
        time.sleep(0.0005)
    chat.cancel()
    thread.join()
    assert "cancelled" in str(errors)
    assert chat.messages == before


def test_another_choice_is_an_error(small: edge_llama.Model) -> None:
    with pytest.raises(edge_llama.OptionError, match=r"'never'.*error, compact, drop-oldest"):
        small.chat(when_full="never")  # type: ignore[arg-type]


def count(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


def conversation(rng: np.random.Generator) -> list[Message]:
    messages = [Message("system", "s" * int(rng.integers(1, 100)))] if rng.integers(2) else []
    for number in range(int(rng.integers(1, 12))):
        messages.append(Message("user", f"{number:02}" + "u" * int(rng.integers(0, 400))))
        messages += [Message("assistant", "a" * int(rng.integers(0, 600)))] * int(rng.integers(3))
    return messages


def test_whatever_the_conversation_its_end_stays_and_every_message_is_accounted_for(rng: np.random.Generator) -> None:
    """With counts that are plain lengths and a summary that says how much it was given."""
    for _ in range(300):
        asked: list[int] = []

        def summarize(messages: Sequence[Message], max_tokens: int, asked: list[int] = asked) -> str:
            asked.append(count(messages) + max_tokens)
            return "" if rng.integers(8) == 0 else "summary"

        shortening = Shortening(1024, count, summarize)
        messages = conversation(rng)
        head, exchanges = exchanges_of(messages)
        for shorten in (shortening.drop_oldest, shortening.compact):
            after, told = shorten(messages)
            kept = after[len(head) :]
            if kept[0] == SUMMARY_REQUEST:
                assert told.summarized
                kept = kept[2:]
            assert after[: len(head)] == head
            assert kept == messages[len(messages) - len(kept) :]
            assert kept[-len(exchanges[-1]) :] == exchanges[-1]
            assert told.summarized + told.dropped + len(kept) + len(head) == len(messages)
            assert (told.tokens_before, told.tokens_after) == (count(messages), count(after))
            assert told.tokens_after <= 512 or kept == exchanges[-1]
        assert all(size <= 1024 for size in asked), "what is to be summarised fits, and the summary after it"

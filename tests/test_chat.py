"""Chats: messages join as answers end, and nothing is lost or invented."""

from pathlib import Path

import pytest
from engines import CAPITAL

import edge_llama
from edge_llama import Message


def test_an_exchange_joins_the_messages(model: edge_llama.Model) -> None:
    chat = model.chat(system="Answer briefly.")
    answer = chat.send(CAPITAL, temperature=0).result()
    assert chat.messages == [
        Message("system", "Answer briefly."),
        Message("user", CAPITAL),
        Message("assistant", answer.text),
    ]


def test_retry_replaces_the_last_answer(model: edge_llama.Model) -> None:
    chat = model.chat()
    chat.send(CAPITAL, temperature=0).result()
    answer = chat.retry(temperature=1.2, seed=5).result()
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[-1].content == answer.text


def test_clear_keeps_the_system_message(model: edge_llama.Model) -> None:
    chat = model.chat(system="Be brief.")
    chat.send("Hello", max_tokens=4).result()
    chat.clear()
    assert chat.messages == [Message("system", "Be brief.")]
    chat.system = None
    assert chat.messages == []


def test_an_error_leaves_the_chat_as_it_was(converted: Path) -> None:
    with edge_llama.open(converted, n_ctx=128) as small:
        chat = small.chat()
        chat.send("Hi", temperature=0, max_tokens=4).result()
        before = list(chat.messages)
        with pytest.raises(edge_llama.ContextFullError):
            chat.send("word " * 500)
        assert chat.messages == before
        assert chat.send("Hi again", temperature=0, max_tokens=4).result().text


def test_a_second_message_while_an_answer_runs_is_refused(model: edge_llama.Model) -> None:
    chat = model.chat()
    with chat.send("Tell me a long story.", temperature=0) as running:
        next(running)
        with pytest.raises(edge_llama.EngineError, match="still being made"):
            chat.send("Hello?")
    assert chat.send(CAPITAL, temperature=0, max_tokens=4).result().text


def test_retry_without_a_message_is_an_error(model: edge_llama.Model) -> None:
    with pytest.raises(edge_llama.OptionError, match="nothing to answer"):
        model.chat(system="x").retry()


@pytest.mark.parametrize("bad", [None, 7, "\udc80"])
def test_a_message_that_is_no_text_is_an_error(model: edge_llama.Model, bad: object) -> None:
    with pytest.raises(edge_llama.OptionError):
        model.chat().send(bad)  # type: ignore[arg-type]


def test_messages_survive_json() -> None:
    message = Message("user", "naïve 🦙\n")
    assert Message.from_json(message.to_json()) == message
    with pytest.raises(edge_llama.OptionError, match="role"):
        Message("robot", "x")  # type: ignore[arg-type]
    with pytest.raises(edge_llama.OptionError):
        Message.from_json({"role": "user"})

"""Chats: messages join as answers end, and nothing is lost or invented."""

import gc
import os
import signal
import threading
import weakref
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


def test_an_answer_that_was_dropped_stays_as_far_as_it_was_taken(model: edge_llama.Model) -> None:
    chat = model.chat()
    seen = ""
    for piece in chat.send("Tell me a long story.", temperature=0):
        seen += piece.text
        if len(seen) > 5:
            break
    del piece
    assert chat.send(CAPITAL, temperature=0, max_tokens=4).result().text
    assert chat.messages[:2] == [Message("user", "Tell me a long story."), Message("assistant", seen)]
    assert len(chat.messages) == 4


def test_a_dropped_answer_of_which_nothing_was_taken_leaves_no_trace(model: edge_llama.Model) -> None:
    chat = model.chat()
    chat.send("Tell me a long story.")
    answer = chat.send(CAPITAL, temperature=0, max_tokens=4).result()
    assert chat.messages == [Message("user", CAPITAL), Message("assistant", answer.text)]


def test_a_cancelled_answer_is_settled_by_the_next_message(model: edge_llama.Model) -> None:
    chat = model.chat()
    running = chat.send("Tell me a long story.", temperature=0)
    first = next(running)
    chat.cancel()
    assert chat.send(CAPITAL, temperature=0, max_tokens=4).result().text
    assert running.is_finished
    assert chat.messages[1].content == running.result().text
    assert chat.messages[1].content.startswith(first.text)


def test_a_chat_goes_on_after_ctrl_c(model: edge_llama.Model) -> None:
    chat = model.chat()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))

    def iterate() -> None:
        timer.start()
        for _piece in chat.send("Tell me a very long story.", temperature=1.5, seed=1):
            pass
        timer.join()

    with pytest.raises(KeyboardInterrupt):
        iterate()
    assert chat.send(CAPITAL, temperature=0, max_tokens=4).result().text


def test_retry_after_a_dropped_answer_answers_the_same_message(model: edge_llama.Model) -> None:
    chat = model.chat()
    for _piece in chat.send(CAPITAL, temperature=0):
        break
    answer = chat.retry(temperature=0).result()
    assert chat.messages == [Message("user", CAPITAL), Message("assistant", answer.text)]


def test_what_was_cleared_while_an_answer_was_generated_does_not_come_back(model: edge_llama.Model) -> None:
    chat = model.chat(system="Be brief.")
    chat.send("Hello", max_tokens=4).result()
    with chat.send("Tell me a story.", temperature=0, max_tokens=8) as running:
        next(running)
        chat.clear()
        assert running.result().text
    assert chat.messages == [Message("system", "Be brief.")]


@pytest.mark.parametrize("is_retry", [False, True])
def test_a_system_message_that_was_set_while_an_answer_was_generated_stays(
    model: edge_llama.Model, is_retry: bool
) -> None:
    chat = model.chat(system="Be brief.")
    chat.send("Hello", max_tokens=4).result()
    brief = {"temperature": 0, "max_tokens": 4}
    with chat.retry(**brief) if is_retry else chat.send("Hello", **brief) as running:
        next(running)
        chat.system = "Be loud."
        answer = running.result()
    roles = ["system", "user", "assistant"] if is_retry else ["system", "user", "assistant", "user", "assistant"]
    assert [message.role for message in chat.messages] == roles
    assert chat.messages[0].content == "Be loud."
    assert chat.messages[-1].content == answer.text


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_dropped_chat_is_freed_without_the_collector(model: edge_llama.Model, is_taken: bool) -> None:
    gc.disable()
    try:
        chat = model.chat()
        running = chat.send("Hello", max_tokens=4)
        if is_taken:
            running.result()
        freed = [weakref.ref(chat), weakref.ref(running)]
        del chat, running
        assert [ref() for ref in freed] == [None, None]
    finally:
        gc.enable()


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


@pytest.mark.parametrize("bad", [None, 5, "x", ["role", "content"], {}, {1: 2, "role": "user"}])
def test_json_that_is_no_message_is_an_error(bad: object) -> None:
    with pytest.raises(edge_llama.OptionError, match="a message"):
        Message.from_json(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["x", None, 5, b"x", {"role": "user", "content": "x"}, [{"role": "user"}], ["x"]])
def test_a_conversation_that_is_none_is_an_error(model: edge_llama.Model, bad: object) -> None:
    with pytest.raises(edge_llama.OptionError, match="conversation"):
        model.answer(bad)  # type: ignore[arg-type]
    with pytest.raises(edge_llama.OptionError, match="conversation"):
        model.count_tokens(bad)  # type: ignore[arg-type]


def test_messages_may_come_from_a_generator(model: edge_llama.Model) -> None:
    messages = [Message("user", CAPITAL)]
    expected = model.answer(messages, temperature=0, max_tokens=2).result().timings.prompt_tokens
    answer = model.answer(iter(messages), temperature=0, max_tokens=2).result()  # type: ignore[arg-type]
    assert answer.timings.prompt_tokens == expected


def test_an_edited_message_and_its_answer_replace_the_last_exchange(model: edge_llama.Model) -> None:
    chat = model.chat(system="Answer briefly.")
    chat.send("Hello!", temperature=0, max_tokens=4).result()
    chat.send("What is the capital of Italy?", temperature=0).result()
    before = list(chat.messages)
    answer = chat.edit(CAPITAL, temperature=0).result()
    assert "Tokyo" in answer.text
    assert chat.messages == [*before[:3], Message("user", CAPITAL), Message("assistant", answer.text)]
    assert answer.timings.cached_tokens > 20, "what stands before is not read again"


def test_an_edit_that_fails_or_never_begins_leaves_the_conversation(converted: Path) -> None:
    with edge_llama.open(converted, n_ctx=128) as small:
        chat = small.chat()
        with pytest.raises(edge_llama.OptionError, match="there is no message to edit"):
            chat.edit("Hi")
        chat.send("Hi", temperature=0, max_tokens=4).result()
        before = list(chat.messages)
        with pytest.raises(edge_llama.ContextFullError):
            chat.edit("word " * 500)
        chat.edit("Hello").close()
        assert chat.messages == before or chat.messages[0].content == "Hello"
        with pytest.raises(edge_llama.OptionError, match="lone surrogate"):
            chat.edit("\ud800")


def test_an_edit_of_a_shortened_conversation_keeps_what_was_left(converted: Path) -> None:
    with edge_llama.open(converted, n_ctx=256) as small:
        chat = small.chat(when_full="drop-oldest", temperature=0, max_tokens=8)
        for number in range(3):
            chat.send(f"{number} " + "word " * 40).result()
        chat.edit("Hello " * 120).result()
        assert chat.shortened
        assert chat.messages[-2].content == "Hello " * 120
        assert [message.role for message in chat.messages[-2:]] == ["user", "assistant"]
        assert not any(message.content.startswith("2 word") for message in chat.messages)


def test_images_of_an_edited_message_stay() -> None:
    image = edge_llama.Image.open(Path(__file__).parent.parent / "docs" / "digits.png")
    message = Message("user", ["before ", image, "What is this?"])
    assert message.last_text == "What is this?"
    assert message.with_last_text("And?") == Message("user", ["before ", image, "And?"])
    assert Message("user", "one text").with_last_text("another") == Message("user", "another")

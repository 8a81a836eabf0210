"""A chat in the history: what was said stays, the model goes on from what it had before it, and reads nothing twice."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from engines import CAPITAL
from ggufs import rewritten

import edge_llama
from edge_llama import Chat, HistoryError, Message
from edge_llama.files.gguf import string
from edge_llama.history import database
from edge_llama.history.recorder import Recording
from edge_llama.history.store import Conversation, History

BRIEF = {"temperature": 0, "max_tokens": 8}


class Kept:
    """A model with a history of its own, and what people are told."""

    def __init__(self, model: edge_llama.Model, folder: Path) -> None:
        self.model = model
        self.told: list[str] = []
        self.history = History(folder, self.told.append)
        self.recording = self.begin()

    def begin(self) -> Recording:
        return Recording(self.history, self.told.append)

    def say(self, chat: Chat, text: str) -> edge_llama.Answer:
        answer = chat.send(text, **BRIEF).result()
        self.recording.keep(self.model, chat)
        return answer

    def read(self) -> Conversation:
        return self.history.latest()

    def questions(self) -> list[str]:
        return [message.content for message in self.read().messages if message.role == "user"]


Opened = Callable[..., edge_llama.Model]


@pytest.fixture
def opened(small_talk: Path, tmp_path: Path) -> Iterator[Opened]:
    """Open the model, or another, as the terminal's chat does: its KV caches lie beside the history."""
    with ExitStack() as stack:

        def opened(path: Path = small_talk) -> edge_llama.Model:
            folder = tmp_path / "history" / "kv"
            return stack.enter_context(edge_llama.open(path, n_ctx=4096, cache_dir=folder, cache_tagged_only=True))

        yield opened


@pytest.fixture
def other(opened: Opened, small_talk: Path, tmp_path: Path) -> edge_llama.Model:
    """Another model, by its name."""
    return opened(rewritten(small_talk, tmp_path / "other.gguf", fields={"general.name": string("other")}))


@pytest.fixture
def kept(opened: Opened, tmp_path: Path) -> Kept:
    return Kept(opened(), tmp_path / "history")


@pytest.fixture(scope="module")
def small(small_talk: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(small_talk, n_ctx=512) as opened:
        yield opened


def test_each_exchange_is_there_when_its_answer_has_ended(kept: Kept) -> None:
    chat = kept.model.chat(system="Answer briefly.")
    kept.recording.keep(kept.model, chat)
    assert kept.history.entries() == []
    for count, question in enumerate((CAPITAL, "And of Italy?"), 1):
        kept.say(chat, question)
        assert kept.read().context == chat.messages
        assert len(kept.read().messages) == 2 * count
    assert len(kept.history.entries()) == 1
    assert (kept.read().model, kept.read().identity) == (kept.model.artifact.name, kept.model.identity)


def test_an_answer_that_was_cancelled_is_there_as_far_as_it_came(kept: Kept) -> None:
    chat = kept.model.chat()
    generation = chat.send("Tell a very long story.", temperature=0)
    taken = [next(generation).text for _ in range(5)]
    generation.close()
    kept.recording.keep(kept.model, chat)
    assert kept.read().messages == tuple(chat.messages)
    assert kept.read().messages[1].content.startswith("".join(taken))


def test_nothing_is_written_when_nothing_was_said(kept: Kept) -> None:
    chat = kept.model.chat()
    kept.say(chat, CAPITAL)
    revision = kept.read().revision
    kept.recording.keep(kept.model, chat)
    assert kept.read().revision == revision


def test_another_answer_and_what_is_taken_back_replace_what_was(kept: Kept) -> None:
    chat = kept.model.chat()
    kept.say(chat, CAPITAL)
    kept.say(chat, "And of Italy?")
    chat.retry(temperature=2, seed=5, max_tokens=8).result()
    kept.recording.keep(kept.model, chat)
    assert kept.read().messages == tuple(chat.messages)
    chat.rewind()
    kept.recording.keep(kept.model, chat)
    assert kept.questions() == [CAPITAL]
    kept.say(chat, "And of Egypt?")
    assert kept.questions() == [CAPITAL, "And of Egypt?"]
    chat.system = "Answer in one word."
    kept.recording.keep(kept.model, chat)
    assert kept.read().system == "Answer in one word."
    assert len(kept.history.entries()) == 1


@pytest.mark.parametrize("is_kept_between", [True, False])
def test_a_chat_that_was_cleared_goes_on_as_a_new_conversation(kept: Kept, is_kept_between: bool) -> None:
    chat = kept.model.chat()
    kept.say(chat, CAPITAL)
    chat.clear()
    if is_kept_between:
        kept.recording.keep(kept.model, chat)
    kept.say(chat, "Hello!")
    assert kept.questions() == ["Hello!"]
    assert [entry.title for entry in kept.history.entries()] == ["Hello!", CAPITAL]


WORDS = "Please remember this list of words: " + "apple, river, stone, " * 30


@pytest.mark.parametrize("choice", ["drop-oldest", "compact"])
def test_what_no_longer_fits_the_context_stays_in_the_history(
    choice: str, small: edge_llama.Model, tmp_path: Path
) -> None:
    kept = Kept(small, tmp_path)
    chat = small.chat(system="Answer briefly.", when_full=choice)  # type: ignore[arg-type]
    questions = [f"{at}: {WORDS}" for at in range(5)]
    for question in questions:
        kept.say(chat, question)
        assert kept.read().context == chat.messages
    assert chat.shortened
    assert len(chat.messages) < 2 * len(questions)
    assert kept.questions() == questions
    assert len(kept.history.entries()) == 1
    chat.retry(**BRIEF).result()
    kept.recording.keep(small, chat)
    assert kept.read().context == chat.messages
    assert kept.questions() == questions

    kept.recording = kept.begin()
    again = kept.recording.resume(small, kept.read(), when_full=choice)
    assert again.messages == chat.messages
    for question in questions:
        kept.say(again, f"again {question}")
    assert kept.questions() == questions + [f"again {question}" for question in questions]
    assert kept.read().context == again.messages


def test_a_conversation_that_is_all_replaced_by_a_long_question_stays(small: edge_llama.Model, tmp_path: Path) -> None:
    kept = Kept(small, tmp_path)
    chat = small.chat(when_full="drop-oldest")
    kept.say(chat, WORDS)
    kept.say(chat, "apple, river, stone, " * 60)
    assert len(chat.messages) == 2
    assert len(kept.read().messages) == 4
    assert kept.read().context == chat.messages


def test_what_was_prefilled_is_not_prefilled_again(kept: Kept, opened: Opened) -> None:
    chat = kept.model.chat(system="Answer briefly.")
    kept.say(chat, CAPITAL)
    kept.recording.leave(kept.model, chat)
    expected = kept.model.count_tokens([*chat.messages, Message("user", "And of Italy?")])
    before = chat.send("And of Italy?", **BRIEF).result()

    again, recording = opened(), kept.begin()
    resumed = recording.resume(again, kept.read())
    assert recording.reread_reason is None
    after = resumed.send("And of Italy?", **BRIEF).result()
    assert after.tokens == before.tokens
    assert after.timings.cached_tokens == before.timings.cached_tokens > 0
    assert after.timings.prompt_tokens == expected


def test_a_kv_cache_that_does_not_fit_is_told_and_the_messages_go_on(
    kept: Kept, other: edge_llama.Model, opened: Opened
) -> None:
    chat = kept.model.chat()
    kept.say(chat, CAPITAL)
    kept.recording.leave(kept.model, chat)
    path = kept.history.kv_file(kept.read().id)
    saved = path.read_bytes()

    kept.say(chat, "And of Italy?")  # killed before its KV cache was saved
    assert path.read_bytes() == saved

    def reason(model: edge_llama.Model) -> str:
        recording = kept.begin()
        resumed = recording.resume(model, kept.read())
        assert resumed.messages == chat.messages
        recording.leave(model, resumed)
        return str(recording.reread_reason)

    assert "older than the last message" in reason(opened())
    assert "it was with" in reason(other)
    other.close()
    assert path.read_bytes() == saved, "nothing was said to the other model, so its cache is not kept"

    path.write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
    assert "not as they were written" in reason(again := opened())
    assert not path.exists()
    assert "not as they were written" in reason(again)
    assert "not kept any more" in reason(opened())
    path.write_bytes(saved[:100])
    assert "cut short" in reason(opened())


def test_a_conversation_goes_on_where_it_was_after_others_of_the_same_process(kept: Kept, opened: Opened) -> None:
    chat = kept.model.chat(system="Answer briefly.")
    kept.say(chat, CAPITAL)
    first = kept.read()
    chat.clear()
    kept.recording.keep(kept.model, chat)
    kept.say(chat, "Hello!")
    second = kept.read()
    kept.recording.leave(kept.model, chat)
    kept.model.close()
    assert {path.name for path in kept.history.kv_folder.iterdir()} == {f"{one.id}.session" for one in (first, second)}
    for conversation in (first, second):
        recording = kept.begin()
        recording.resume(opened(), conversation)
        assert recording.reread_reason is None


def test_with_another_model_the_conversation_is_that_ones_from_then_on(kept: Kept, other: edge_llama.Model) -> None:
    chat = kept.model.chat()
    kept.say(chat, CAPITAL)
    kept.recording.leave(kept.model, chat)
    kept.recording = recording = kept.begin()
    resumed = recording.resume(other, kept.read())
    resumed.send("And of Italy?", **BRIEF).result()
    recording.keep(other, resumed)
    recording.leave(other, resumed)
    assert kept.read().identity == other.identity
    assert kept.begin().resume(other, kept.read()).messages == resumed.messages
    assert len(kept.history.entries()) == 1
    assert len(kept.read().messages) == 4


def test_two_that_continue_the_same_one_both_keep_what_was_said(kept: Kept) -> None:
    kept.say(kept.model.chat(), CAPITAL)
    first, second = kept.begin(), kept.begin()
    one, two = first.resume(kept.model, kept.read()), second.resume(kept.model, kept.read())
    one.send("And of Italy?", **BRIEF).result()
    first.keep(kept.model, one)
    two.send("And of Egypt?", **BRIEF).result()
    second.keep(kept.model, two)
    assert kept.read().context == two.messages
    assert {entry.n_messages for entry in kept.history.entries()} == {4}
    assert len(kept.history.entries()) == 2
    assert "was continued elsewhere" in kept.told[-1]
    assert kept.read().id in kept.told[-1]


@pytest.mark.parametrize("is_found_out", [False, True])
def test_a_conversation_that_was_deleted_meanwhile_does_not_come_back(kept: Kept, is_found_out: bool) -> None:
    """Deleted by another process: this one finds out with the next message, or when it leaves."""
    chat = kept.model.chat()
    kept.say(chat, CAPITAL)
    kept.recording.leave(kept.model, chat)
    kept.history.delete_all()
    if is_found_out:
        kept.say(chat, "And of Italy?")
        kept.say(chat, "And of Egypt?")
    kept.recording.leave(kept.model, chat)
    kept.model.close()
    assert kept.history.entries() == []
    assert list(kept.history.kv_folder.iterdir()) == []
    assert [text for text in kept.told if "was deleted" in text] == kept.told


def test_what_could_not_be_stored_is_stored_with_the_next(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_WAIT", 0.2)
    chat = kept.model.chat()
    kept.say(chat, CAPITAL)
    other = sqlite3.connect(kept.history.folder / "history.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HistoryError, match="locked by another process"):
        kept.say(chat, "And of Italy?")
    assert kept.questions() == [CAPITAL]
    other.close()
    kept.say(chat, "And of Egypt?")
    assert kept.read().context == chat.messages
    assert kept.questions() == [CAPITAL, "And of Italy?", "And of Egypt?"]


def test_after_damage_the_whole_conversation_is_kept_anew(kept: Kept) -> None:
    chat = kept.model.chat()
    kept.say(chat, CAPITAL)
    (kept.history.folder / "history.db").write_bytes(b"damage " * 1000)
    kept.say(chat, "And of Italy?")
    assert kept.read().context == chat.messages
    assert len(kept.told) == 1
    assert "set aside" in kept.told[0]

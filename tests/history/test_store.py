"""Conversations on disk: whole or not at all, whoever dies or writes meanwhile, and for nobody but their owner."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from refusals import refusal

from edge_llama import HistoryError, Message, OptionError, ToolCall
from edge_llama.history import database
from edge_llama.history.store import FOLDER_VARIABLE, Conversation, History, folder

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and signals")
CALL = ToolCall("weather", {"city": "Zürich", "days": [1, 2]})


def talk(*texts: str, **fields: str) -> Conversation:
    """Questions and answers in turn."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[at % 2], text) for at, text in enumerate(texts))
    return Conversation(messages=messages, model="tiny", model_path="/models/tiny.gguf", identity="0" * 64, **fields)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def history(tmp_path: Path, told: list[str]) -> History:
    return History(tmp_path / "naïve history", told.append)


def test_what_is_stored_is_read_again(history: History) -> None:
    messages = (
        Message("user", "Weather?\n\0 \u202e🦙"),
        Message("assistant", "", (CALL,)),
        Message("tool", "22 degrees", tool_call_id=CALL.id, name="weather"),
        Message("assistant", "It is 22 degrees."),
    )
    stored = history.create(replace(talk(), messages=messages, system="Be brief."))
    read = history.read(stored.id)
    assert read == stored
    assert read.messages == messages
    assert read.context == [Message("system", "Be brief."), *messages]
    assert abs(read.created - time.time()) < 60


def test_an_update_replaces_what_follows_and_the_latest_is_listed_first(history: History) -> None:
    one, two = history.create(talk("Eins?", "1")), history.create(talk("Zwei?", "2"))
    assert [entry.id for entry in history.entries()] == [two.id, one.id]
    longer = replace(one, messages=talk("Eins?", "no: 1.0", "Sure?", "Yes").messages)
    assert isinstance(history.update(longer, 1), Conversation)
    assert history.read(one.id).messages == longer.messages
    assert [(entry.id, entry.n_messages) for entry in history.entries()] == [(one.id, 4), (two.id, 2)]
    assert [entry.id for entry in history.entries(limit=1)] == [one.id]
    assert history.latest().id == one.id


def test_what_a_summary_replaces_stays_readable(history: History) -> None:
    said = talk("a", "b", "c", "d")
    stored = history.create(replace(said, head=talk("sum", "up").messages, replaced=2))
    read = history.read(stored.id)
    assert read.messages == said.messages
    assert [message.content for message in read.context] == ["sum", "up", "c", "d"]


def test_a_title_is_the_first_words_of_the_first_question(history: History) -> None:
    assert history.create(talk("Why\n is   the sky blue?")).title == "Why is the sky blue?"
    long = history.create(talk("word " * 100)).title
    assert long == "word " * 11 + "word…"
    assert len(history.create(talk("x" * 1000)).title) == 60


def test_ids_are_short_and_may_be_abbreviated(history: History) -> None:
    ids = {history.create(talk(str(at))).id for at in range(40)}
    assert len(ids) == 40
    assert {len(one) for one in ids} == {4}
    one = min(ids)
    length = next(length for length in range(1, 5) if sum(other.startswith(one[:length]) for other in ids) == 1)
    assert history.read(one[:length].upper()).id == one
    letter = next(one[0] for one in ids if sum(other[0] == one[0] for other in ids) > 1)
    with refusal(HistoryError, "begins several conversations", letter):
        history.read(letter)
    for unknown in ("zzzzz", "", "%", "_"):
        with refusal(HistoryError, "no conversation"):
            history.read(unknown)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("tokyo", "Tokyo"),
        ("CAPITAL jap", "capital of Japan"),
        ("zurich", "Zürich"),
        ("oky", "Tokyo"),
        ("東京", "東京"),
        ("C++", "C++"),
        ('"quoted', '"quoted"'),
        ("22 degrees", "22 degrees"),
    ],
)
def test_words_their_beginnings_and_parts_of_words_are_found(history: History, words: str, found: str) -> None:
    history.create(talk("What is the capital of Japan?", "It is Tokyo.", "Weather in Zürich?", "22 degrees"))
    history.create(talk("日本の首都は東京です", "Yes", "Is C++ hard?", 'It is "quoted" AND * NEAR('))
    ((entry, hit),) = history.search(words)
    assert found in hit.excerpt
    assert entry.n_messages == 4


def test_words_of_tool_calls_are_found_and_what_is_nowhere_is_not(history: History) -> None:
    history.create(replace(talk(), messages=(Message("user", "Hm"), Message("assistant", "", (CALL,)))))
    assert [hit.role for _, hit in history.search("weather")] == ["assistant"]
    assert history.search("weather snow") == []
    with refusal(OptionError, "no words"):
        history.search("  ")


def test_a_conversation_that_another_process_changed_or_deleted_is_left_alone(history: History) -> None:
    stored = history.create(talk("a", "b"))
    elsewhere = history.update(replace(stored, messages=talk("a", "b", "c", "d").messages), 2)
    assert history.update(replace(stored, messages=talk("a", "b", "x", "y").messages), 2) == "changed"
    assert history.read(stored.id) == elsewhere
    history.delete([stored.id])
    assert history.update(stored, 2) == "gone"
    assert history.entries() == []


@posix
def test_files_are_their_owners_only_also_while_they_are_written(history: History) -> None:
    before = os.umask(0)
    try:
        history.create(talk("a", "b"))
        db = sqlite3.connect(history.folder / "history.db", isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE conversations SET title = 'x'")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in history.folder.iterdir()}
        db.close()
    finally:
        os.umask(before)
    others = {"history.db.lock": 0o600}
    assert modes == {"history.db": 0o600, "history.db-wal": 0o600, "history.db-shm": 0o600, **others}
    assert stat.S_IMODE(history.folder.stat().st_mode) == 0o700
    (history.folder / "history.db").chmod(0o644)
    history.entries()
    assert stat.S_IMODE((history.folder / "history.db").stat().st_mode) == 0o600


SECRET = "xylophone"


def readable(folder: Path) -> bool:
    return any(SECRET.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("everything", [False, True])
def test_of_what_is_deleted_nothing_can_be_read_any_more(history: History, everything: bool) -> None:
    kept = history.create(talk("stays", "here"))
    gone = history.create(talk(f"{SECRET} " * 3000, f"{SECRET}!", system=f"Say {SECRET}."))
    history.kv_folder.mkdir()
    history.kv_file(gone.id).write_text(SECRET)
    history.kv_file(gone.id).with_name(f".{gone.id}.session.12ab.partial").write_text(SECRET)
    if everything:
        (history.folder / "history.db.damaged-20260101-000000").write_text(SECRET)
    assert readable(history.folder)
    history.search(SECRET)
    if everything:
        history.delete_all()
    else:
        history.delete([gone.id])
    assert not readable(history.folder)
    assert [entry.id for entry in history.entries()] == ([] if everything else [kept.id])


def test_a_newer_database_is_an_error_and_left_untouched(history: History) -> None:
    history.create(talk("a", "b"))
    path = history.folder / "history.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    work: list[Callable[[], object]] = [history.entries, lambda: history.create(talk("c")), history.delete_all]
    for do in work:
        with refusal(HistoryError, "newer edge-llama .version 99", path):
            do()
    assert path.read_bytes() == before
    assert {path.name for path in history.folder.iterdir()} == {"history.db", "history.db.lock"}


def test_another_programs_database_is_left_alone(history: History) -> None:
    history.folder.mkdir()
    path = history.folder / "history.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url)")
    db.close()
    before = path.read_bytes()
    with refusal(HistoryError, "another program's database, with 'bookmarks'", path):
        history.create(talk("a", "b"))
    assert path.read_bytes() == before


def hold_lock(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that holds the database's lock, once it has said so."""
    code = (
        f"import sqlite3, time\ndb = sqlite3.connect({str(path)!r}, isolation_level=None)\n"
        f"db.execute('BEGIN IMMEDIATE'); print('locked', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_lock_is_waited_for(history: History) -> None:
    history.create(talk("a", "b"))
    with hold_lock(history.folder / "history.db", 1.0) as holder:
        assert history.create(talk("c", "d")).revision == 1
        assert holder.wait(60) == 0


def test_a_lock_that_stays_is_told(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_WAIT", 0.2)
    stored = history.create(talk("a", "b"))
    with hold_lock(history.folder / "history.db", 600) as holder:
        assert history.read(stored.id) == stored, "reading needs no lock"
        with refusal(HistoryError, "locked by another process", history.folder / "history.db"):
            history.create(talk("c", "d"))
        holder.kill()
    assert [entry.id for entry in history.entries()] == [stored.id]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda _: b"this is no database at all, but it is long enough to be one" * 100,
    "header": lambda data: bytes(100) + data[100:],
    "page": lambda data: data[:4096] + os.urandom(4096) + data[8192:],
    "cut": lambda data: data[: len(data) // 2],
    "last page": lambda data: data[:-4096] + bytes([13, 255]) * 2048,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_set_aside_and_a_new_one_begun(damage: str, history: History, told: list[str]) -> None:
    for at in range(50):
        history.create(talk(f"Question {at}? " * 50, "Answer. " * 50))
    path = history.folder / "history.db"
    broken = DAMAGES[damage](path.read_bytes())
    path.write_bytes(broken)
    again = History(history.folder, told.append)
    assert again.entries() == []
    stored = again.create(talk("a", "b"))
    assert [entry.id for entry in again.entries()] == [stored.id]
    (aside,) = history.folder.glob("history.db.damaged-*")
    assert aside.read_bytes() == broken
    (told_once,) = told
    assert "damaged" in told_once
    assert str(aside) in told_once


def test_damage_that_comes_while_it_is_used_is_set_aside_too(history: History, told: list[str]) -> None:
    history.create(talk("a", "b"))
    (history.folder / "history.db").write_bytes(b"not any more " * 1000)
    assert history.create(talk("c", "d")).title == "c"
    assert [entry.title for entry in history.entries()] == ["c"]
    assert len(told) == 1


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with refusal(HistoryError, "cannot be used", tmp_path / "file"):
        History(tmp_path / "file" / "history", print).entries()
    (tmp_path / "folder" / "history.db").mkdir(parents=True)
    with refusal(HistoryError, "cannot be used", tmp_path / "folder"):
        History(tmp_path / "folder", print).entries()


def test_the_folder_is_named_by_the_variable_or_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert folder() == tmp_path
    monkeypatch.setenv(FOLDER_VARIABLE, "off")
    assert folder() is None
    monkeypatch.delenv(FOLDER_VARIABLE)
    found = folder()
    assert found
    assert found.parts[-2:] == ("edge-llama", "history")


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux finds a home")
def test_a_user_without_a_home_is_told(tmp_path: Path) -> None:
    code = (
        "import pwd\n"
        "pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError())\n"
        "from edge_llama.history.store import folder\n"
        "from edge_llama import HistoryError\n"
        "try:\n    folder()\nexcept HistoryError as error:\n    print(error)"
    )
    without = (FOLDER_VARIABLE, "HOME", "XDG_DATA_HOME")
    env = {name: value for name, value in os.environ.items() if name not in without}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True)
    assert b"no folder for the history" in done.stdout
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from edge_llama import Message
from edge_llama.history.store import Conversation, History

history = History(Path(sys.argv[1]), print)
about = {"model": "tiny", "model_path": "/tiny", "identity": "0", "id": ""}
text = "many words so that an exchange takes more than a page " * 200
said = history.create(Conversation(messages=(Message("user", "0 " + text), Message("assistant", "0 " + text)), **about))
for number in range(1, int(sys.argv[2])):
    print(said.id, number, flush=True)
    exchange = (Message("user", f"{number} {text}"), Message("assistant", f"{number} {text}"))
    said = history.update(replace(said, messages=(*said.messages, *exchange)), len(said.messages))
print("done", flush=True)
"""


def start_writer(folder: Path, exchanges: int) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(folder), str(exchanges)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def check_whole(folder: Path) -> dict[str, int]:
    """Every conversation holds each exchange whole or not at all; how many each has."""
    db = sqlite3.connect(folder / "history.db")
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    rows = db.execute("SELECT conversation, position, message FROM messages ORDER BY 1, 2").fetchall()
    db.close()
    counts: dict[str, int] = {}
    for conversation, position, data in rows:
        message = json.loads(data)
        assert position == counts.get(conversation, 0)
        assert message["content"].partition(" ")[0] == str(position // 2)
        assert message["role"] == ("user", "assistant")[position % 2]
        counts[conversation] = position + 1
    assert all(count % 2 == 0 for count in counts.values())
    return {conversation: count // 2 for conversation, count in counts.items()}


@posix
def test_kill_9_at_any_moment_leaves_each_exchange_whole_or_not_at_all(tmp_path: Path, seed: int) -> None:
    import random  # noqa: PLC0415

    draw = random.Random(seed)
    were: dict[str, int] = {}
    for at in range(15):
        writer = start_writer(tmp_path / "history", 10_000)
        assert writer.stdout
        written = 0
        conversation = ""
        if at % 3:  # else it is killed while it starts: also the first one, which makes the database
            for _ in range(draw.randrange(1, 8)):
                conversation, number = writer.stdout.readline().split()
                written = int(number)
            time.sleep(draw.random() * 0.03)
        else:
            time.sleep(draw.random() * 0.6)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        if (tmp_path / "history" / "history.db").exists():
            History(tmp_path / "history", pytest.fail).entries()
            counts = check_whole(tmp_path / "history")
            assert were.items() <= counts.items(), "what was there is as it was"
            assert counts.get(conversation, 0) >= written, "what was said to be stored is stored"
            were = counts
    assert were


@pytest.mark.parametrize("is_damaged", [False, True])
def test_processes_that_begin_at_once_all_write(tmp_path: Path, is_damaged: bool) -> None:
    """All of them want to make the database, or to set it aside."""
    if is_damaged:
        (tmp_path / "history").mkdir()
        (tmp_path / "history" / "history.db").write_bytes(b"damage " * 1000)
    writers = [start_writer(tmp_path / "history", 12) for _ in range(4)]
    outputs = [writer.communicate(timeout=300)[0] for writer in writers]
    assert all(output.endswith("done\n") for output in outputs), outputs
    assert sorted(check_whole(tmp_path / "history").values()) == [12] * 4
    assert "".join(outputs).count("set aside") == is_damaged


def test_threads_that_find_damage_together_set_it_aside_once(history: History, told: list[str]) -> None:
    history.create(talk("a", "b"))
    (history.folder / "history.db").write_bytes(b"not any more " * 1000)
    histories = [History(history.folder, told.append) for _ in range(8)]
    threads = [threading.Thread(target=each.create, args=(talk(f"{at}"),)) for at, each in enumerate(histories)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.title for entry in history.entries()} == set(map(str, range(8)))
    assert len(told) == 1

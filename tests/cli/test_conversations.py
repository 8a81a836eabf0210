"""``edge-llama chat --continue``: a conversation outlives the process, however that ends."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import CAPITAL
from ggufs import rewritten
from terminals import EDGE_LLAMA, Terminal

from edge_llama.files.gguf import string

Cli = Callable[..., subprocess.CompletedProcess[str]]
ITALY = "And what is the capital of Italy?"
posix = pytest.mark.skipif(os.name == "nt", reason="signals and terminals of POSIX")


@pytest.fixture(autouse=True)
def empty(called: Cli) -> None:
    assert called("history", "delete", "--all", "--force").returncode == 0


def listed(called: Cli) -> list[dict[str, Any]]:
    done = called("history", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return list(json.loads(done.stdout))


def said(called: Cli) -> list[str]:
    """What is in the last conversation."""
    done = called("history", "show", listed(called)[0]["id"], "--json")
    return [message["content"] for message in json.loads(done.stdout)["messages"]]


def kv_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "kv").iterdir())


def talk(cli: Cli, *questions: str, options: tuple[object, ...] = ()) -> subprocess.CompletedProcess[str]:
    done = cli("chat", "--temperature", 0, *options, stdin="".join(f"{question}\n" for question in questions))
    assert done.returncode == 0, done.stderr
    return done


def prefilled_and_cached(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    found = re.search(r"prompt ([\d,]+) tokens \(([\d,]+) cached", done.stderr)
    assert found
    return found[1], found[2]


def test_going_on_reads_no_more_than_staying_does(cli: Cli, called: Cli, history_folder: Path) -> None:
    expected = prefilled_and_cached(talk(cli, CAPITAL, ITALY))
    (staying,) = kv_files(history_folder)
    (history_folder / "kv" / staying).unlink()  # which has all of it
    talk(cli, CAPITAL)
    done = talk(cli, ITALY, options=("--continue",))
    assert prefilled_and_cached(done) == expected
    (last, first) = listed(called)
    assert re.search(rf"(?m)^{last['id']} goes on: What is the capital of Japan\?$", done.stderr)
    assert "read again" not in done.stderr
    assert (last["n_messages"], first["n_messages"]) == (4, 4)
    assert said(called)[0::2] == [CAPITAL, ITALY]


@pytest.mark.parametrize("place", ["after", "before", "equals"])
def test_the_id_may_be_given_and_the_model_too(cli: Cli, called: Cli, small_talk: Path, place: str) -> None:
    talk(cli, CAPITAL)
    one = listed(called)[0]["id"]
    talk(cli, "Hello!")
    options = {
        "after": (small_talk, "--continue", one[:4].upper()),
        "before": ("--continue", one, small_talk),
        "equals": (f"--continue={one}", small_talk),
    }[place]
    talk(cli, ITALY, options=options)
    assert said(called)[0::2] == [CAPITAL, ITALY]
    talk(cli, "Thanks!", options=("--continue", small_talk))
    assert said(called)[0::2] == [CAPITAL, ITALY, "Thanks!"]


def test_what_can_not_be_continued_is_an_error(cli: Cli) -> None:
    done = cli("chat", "--continue", stdin="x\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no conversation to continue" in done.stderr
    done = cli("chat", "--continue", "nope", stdin="x\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no conversation 'nope'; edge-llama history list shows them" in done.stderr
    done = cli("chat", "--continue", "--no-history", stdin="x\n")
    assert done.returncode == 2
    assert "--no-history" in done.stderr


def test_other_settings_and_another_model_are_told_and_the_messages_go_on(
    cli: Cli, called: Cli, small_talk: Path, tmp_path: Path
) -> None:
    other = rewritten(small_talk, tmp_path / "other.gguf", fields={"general.name": string("other")})
    talk(cli, CAPITAL)
    done = talk(cli, ITALY, options=("--continue", "--flash-attn", "on", "--kv", "q8_0"))
    assert re.search(r"it is read again with the next message: .*kv_format was f\d+ and is q8_0", done.stderr)
    assert "read again" not in talk(cli, "Hello!", options=("--continue",)).stderr, "the settings are the last ones"
    done = talk(cli, "Thanks!", options=(other, "--continue"))
    assert "it is read again with the next message: it was with small_talk, now with other" in done.stderr
    assert listed(called)[0]["model"]["path"] == str(other.resolve())
    done = talk(cli, "Bye!", options=("--continue", "--system", "Be polite."))
    assert "the system message is another one" in done.stderr
    assert said(called)[0::2] == [CAPITAL, ITALY, "Hello!", "Thanks!", "Bye!"]


def test_a_conversation_whose_model_is_gone_asks_for_another(cli: Cli, small_talk: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.gguf"
    shutil.copy(small_talk, moved)
    talk(cli, CAPITAL, options=(moved,))
    moved.unlink()
    done = cli("chat", "--continue", stdin="x\n")
    assert done.returncode == 2
    assert re.search(r"is gone: .*moved\.gguf; name a model: edge-llama chat MODEL --continue \w{4}$", done.stderr)
    assert "read again" not in talk(cli, ITALY, options=(small_talk, "--continue")).stderr, "it is the same model"


@pytest.mark.parametrize("way", ["option", "variable"])
def test_without_history_nothing_is_written(
    cli: Cli, environment: dict[str, str], history_folder: Path, tmp_path: Path, way: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in history_folder.rglob("*")}
    env = {**environment, "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    if way == "variable":
        env["EDGE_LLAMA_HISTORY"] = "off"
    command = [EDGE_LLAMA, "chat", *(["--no-history"] if way == "option" else [])]
    done = subprocess.run(command, input=CAPITAL, text=True, capture_output=True, env=env, check=False)
    assert (done.returncode, "Tokyo" in done.stdout) == (0, True), done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in history_folder.rglob("*")}
    assert list(tmp_path.iterdir()) == []
    if way == "variable":
        done = subprocess.run([EDGE_LLAMA, "history", "list"], text=True, capture_output=True, env=env, check=False)
        assert done.returncode == 2
        assert "the history is off" in done.stderr


def test_a_history_that_can_not_be_used_is_told_and_the_chat_goes_on(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    env = {**environment, "EDGE_LLAMA_HISTORY": str(tmp_path / "file")}
    command = [EDGE_LLAMA, "chat", "--quiet"]
    done = subprocess.run(command, input=CAPITAL, text=True, capture_output=True, env=env, check=False)
    assert done.returncode == 0
    assert "Tokyo" in done.stdout
    assert re.search(r"\[this chat is not kept: .*file/history\.db: cannot be used", done.stderr)


def test_a_folder_for_kv_caches_that_can_not_be_created_is_told_and_the_chat_is_kept(
    cli: Cli, tmp_path: Path, called: Cli
) -> None:
    env = {"EDGE_LLAMA_HISTORY": str(tmp_path)}
    (tmp_path / "kv").write_text("in the way")
    done = cli("chat", "--temperature", 0, stdin=CAPITAL, env=env)
    assert (done.returncode, "Tokyo" in done.stdout) == (0, True)
    assert f"[KV caches are not kept: {tmp_path / 'kv'}: File exists]" in done.stderr
    assert (tmp_path / "kv").read_text() == "in the way"
    assert CAPITAL in called("history", "list", env=env).stdout
    done = cli("chat", "--temperature", 0, "--continue", stdin=ITALY, env=env)
    assert "it is read again with the next message: no KV cache is kept on disk" in done.stderr


def test_a_chat_in_a_process_of_its_own_goes_on_too(cli: Cli, history_folder: Path, called: Cli) -> None:
    talk(cli, CAPITAL, options=("--isolate",))
    assert kv_files(history_folder) == [f"{listed(called)[0]['id']}.session"]
    done = talk(cli, ITALY, options=("--isolate", "--continue"))
    assert "read again" not in done.stderr
    assert said(called)[0::2] == [CAPITAL, ITALY]


@pytest.fixture
def chat(terminal: Callable[..., Terminal]) -> Callable[..., Terminal]:
    def start(*arguments: object) -> Terminal:
        started = terminal("chat", "--temperature", 0, *arguments)
        started.see(r"/help shows the commands(?m:(.|\n)*^>)\Z")
        return started

    return start


@posix
@pytest.mark.parametrize("way", ["ctrl-d", "exit", "sigterm", "sighup", "hangup", "sigterm in an answer"])
def test_however_the_chat_is_left_it_goes_on_where_it_was(
    way: str, chat: Callable[..., Terminal], called: Cli, history_folder: Path
) -> None:
    running = chat()
    running.ask(CAPITAL)
    if way == "ctrl-d":
        running.type("\x04")
        assert running.exit_code() == 0, running.text()
    elif way == "exit":
        running.enter("/exit")
        assert running.exit_code() == 0, running.text()
    elif way == "hangup":
        running.hang_up()
    else:
        if way == "sigterm in an answer":
            running.enter("Write a very long story about a ship, with many chapters.")
            running.see(r"\w+ \w+ \w+")
        number = signal.SIGHUP if way == "sighup" else signal.SIGTERM
        running.signal(number)
        assert running.exit_code() == 128 + number
    stored = said(called)
    assert stored[:2] == [CAPITAL, "The capital of Japan is Tokyo."]
    assert len(stored) == (4 if "answer" in way else 2)
    assert kv_files(history_folder) == [f"{listed(called)[0]['id']}.session"]
    again = chat("--continue")
    assert "read again" not in again.text()
    again.ask(ITALY)
    assert said(called)[: len(stored)] == stored
    found = re.search(r"prompt (\d+) tokens \((\d+) cached, (\d+) read", again.ask("/speed"))
    assert found
    assert int(found[3]) < 25, "only the new question is read"


@posix
def test_kill_9_in_an_answer_leaves_what_was_said_before(chat: Callable[..., Terminal], called: Cli) -> None:
    running = chat()
    running.ask(CAPITAL)
    running.enter("Write a very long story about a ship, with many chapters.")
    running.see(r"\w+ \w+ \w+")
    running.signal(signal.SIGKILL)
    running.exit_code()
    assert said(called) == [CAPITAL, "The capital of Japan is Tokyo."]
    again = chat("--continue")
    assert "Rome" in again.ask(ITALY)
    assert said(called)[2] == ITALY


@posix
def test_commands_keep_the_history_as_the_chat_is(chat: Callable[..., Terminal], called: Cli) -> None:
    running = chat()
    running.ask(CAPITAL)
    running.ask("/retry")
    assert len(said(called)) == 2
    running.enter("Write a very long story about a ship, with many chapters.")
    running.see(r"\w+ \w+ \w+")
    running.interrupt()
    running.see(r"\[stopped\]\n>")
    assert len(said(called)) == 4
    running.ask("/clear")
    running.ask(ITALY)
    assert [entry["n_messages"] for entry in listed(called)] == [2, 4]


def test_two_chats_at_once_are_two_conversations(chat: Callable[..., Terminal], called: Cli) -> None:
    one, two = chat(), chat()
    one.ask(CAPITAL)
    two.ask(ITALY)
    one.ask("Thanks!")
    assert [entry["title"] for entry in listed(called)] == [CAPITAL, ITALY]


def test_the_least_recently_used_kv_file_goes_and_that_is_told(
    cli: Cli, called: Cli, environment: dict[str, str], history_folder: Path
) -> None:
    talk(cli, CAPITAL)
    one = listed(called)[0]["id"]
    size = (history_folder / "kv" / f"{one}.session").stat().st_size
    env = {**environment, "EDGE_LLAMA_HISTORY_KV_BYTES": str(int(size * 1.5))}
    command = [EDGE_LLAMA, "chat", "--temperature", "0"]
    subprocess.run(command, input="Hello!", text=True, capture_output=True, env=env, check=True)
    assert kv_files(history_folder) == [f"{listed(called)[0]['id']}.session"] != [f"{one}.session"]
    done = talk(cli, ITALY, options=("--continue", one))
    assert "it is read again with the next message: its KV cache is not kept any more" in done.stderr
    assert said(called)[0::2] == [CAPITAL, ITALY]

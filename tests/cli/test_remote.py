"""``run`` and ``chat`` with a server's URL; every other verb refuses one."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines import CAPITAL
from serving import Served
from talk import talking
from terminals import Terminal

import edge_llama
from edge_llama.backends.remote.address import KEY_VARIABLE
from edge_llama.history.store import History
from edge_llama.server.settings import ServerSettings

Cli = Callable[..., subprocess.CompletedProcess[str]]
ANSWER = "The capital of Japan is Tokyo."
ITALY = "And what is the capital of Italy?"
KEY = "sk-of-the-fleet-0987654321"


@pytest.fixture(scope="module")
def fleet(small_talk: Path) -> Iterator[Served]:
    """A server that wants a key."""
    with talking(small_talk, settings=ServerSettings(api_key=KEY)) as served:
        yield served


@pytest.fixture
def url(fleet: Served, monkeypatch: pytest.MonkeyPatch, called: Cli) -> str:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert called("history", "delete", "--all", "--force").returncode == 0
    return f"{fleet.url}/v1"


def talked(called: Cli, url: str, small_talk: Path, *arguments: object, stdin: str) -> subprocess.CompletedProcess[str]:
    given = ("chat", url, "--tokenizer", small_talk, "--temperature", 0, *arguments)
    return called(*given, stdin=stdin, env={KEY_VARIABLE: KEY})


def test_run_answers_to_stdout_and_nothing_else(cli: Cli, url: str, small_talk: Path) -> None:
    done = cli("run", url, CAPITAL, "--tokenizer", small_talk, "--temperature", 0, env={KEY_VARIABLE: KEY})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ANSWER}\n", "")


def test_run_says_where_it_runs(called: Cli, url: str, small_talk: Path) -> None:
    done = called("run", url, CAPITAL, "--tokenizer", small_talk, "--temperature", 0, "-v", "--json")
    assert json.loads(done.stdout)["text"] == ANSWER
    assert f"remote {url} (served by edge-llama)" in done.stderr
    raw = called("run", url, "--raw", "The capital of Italy is", "--tokenizer", small_talk, "--temperature", 0)
    assert raw.stdout.startswith(" Rome.")


def test_run_takes_another_variable_and_name(called: Cli, url: str, fleet: Served, small_talk: Path) -> None:
    options = ("--tokenizer", small_talk, "--temperature", 0, "--api-key-variable", "OTHER")
    env = {KEY_VARIABLE: "wrong", "OTHER": KEY}
    done = called("run", url, CAPITAL, "--remote-model", fleet.name, *options, env=env)
    assert done.stdout == f"{ANSWER}\n"
    missing = called("run", url, CAPITAL, "--remote-model", "nobody", *options, env=env)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert f"there is no model 'nobody'; it has {fleet.name}" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which tokenizer does the model on the server have"),
        (("--tokenizer", "{model}", "--device", "cpu"), "device is for models that run here"),
        (("--tokenizer", "{model}", "--threads", 2), "threads is for models that run here"),
        (("--tokenizer", "{model}", "--isolate"), "isolate is for models that run here"),
        (("--tokenizer", "{model}", "--image", "docs/digits.png"), "no pictures can be sent"),
        (("--tokenizer", "/nowhere"), "/nowhere: no such file or folder"),
    ],
)
def test_what_it_can_not_do_is_one_line(
    called: Cli, url: str, small_talk: Path, arguments: tuple[object, ...], message: str
) -> None:
    given = [str(each).replace("{model}", str(small_talk)) for each in arguments]
    done = called("run", url, "Hi", *given)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nobody_there_fails(called: Cli, small_talk: Path) -> None:
    done = called("run", "http://127.0.0.1:9/v1", "Hi", "--tokenizer", small_talk)
    assert (done.returncode, done.stdout) == (1, "")
    assert "http://127.0.0.1:9/v1: can't be reached" in done.stderr


@pytest.mark.parametrize(
    "verb",
    [
        ("embed", "{url}", "x"),
        ("bench", "{url}"),
        ("inspect", "{url}"),
        ("verify", "{url}"),
        ("serve", "{url}"),
        ("convert", "{url}", "out.gguf"),
        ("compile", "{url}", "--device", "npu:qnn"),
    ],
)
def test_every_other_verb_refuses_a_url(cli: Cli, url: str, verb: tuple[str, ...]) -> None:
    done = cli(*(each.replace("{url}", url) for each in verb))
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    if verb[0] != "convert":
        assert "a server's URL was given where a model's file is needed; chat, run" in done.stderr


@pytest.mark.parametrize("verb", ["embed", "bench", "serve"])
def test_no_other_verb_has_its_options(called: Cli, verb: str) -> None:
    assert "--remote-model" not in called(verb, "--help").stdout
    assert "--remote-model" in called("run", "--help").stdout


def test_a_chat_is_kept_and_goes_on(called: Cli, url: str, small_talk: Path, history_folder: Path) -> None:
    done = talked(called, url, small_talk, stdin=f"{CAPITAL}\n")
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n")
    assert "small_talk: 1,024 tokens of context (as the server says)\n" in done.stderr
    (entry,) = json.loads(called("history", "list", "--json").stdout)
    shown = json.loads(called("history", "show", entry["id"], "--json").stdout)
    assert [message["content"] for message in shown["messages"]] == [CAPITAL, ANSWER]
    kept = History(history_folder, print).read(entry["id"])
    assert (kept.model, kept.model_path) == ("small_talk", url)
    assert all(KEY.encode() not in file.read_bytes() for file in history_folder.rglob("*") if file.is_file())
    again = called(
        *("chat", "--continue", "--tokenizer", small_talk, "--temperature", 0),
        stdin=f"{ITALY}\n",
        env={KEY_VARIABLE: KEY},
    )
    assert again.stdout == "The capital of Italy is Rome.\n", again.stderr
    assert f"what {url} still has of it is not known" in again.stderr
    shown = json.loads(called("history", "show", entry["id"], "--json").stdout)
    assert len(shown["messages"]) == 4
    here = called("chat", small_talk, "--continue", "--temperature", 0, stdin=f"{CAPITAL}\n")
    assert here.stdout == f"{ANSWER}\n", here.stderr
    assert "it was with small_talk, now with" in here.stderr


def test_commands_of_a_chat(url: str, small_talk: Path, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    """In a terminal, where commands are."""
    chat = terminal("chat", url, "--tokenizer", small_talk, "--temperature", 0, "--plain", env={KEY_VARIABLE: KEY})
    for line, shown in {
        CAPITAL: re.escape(ANSWER),
        f"/save {tmp_path / 'x.session'}": "a session file holds a KV cache",
        "/model": re.escape(f"small_talk ({url})"),
        "/model http://127.0.0.1:9/v1": "a server's URL was given where",
        f"/model {small_talk}": r"small_talk\.gguf\): 8,192 tokens",
        ITALY: r"The capital of Italy is Rome\.",
    }.items():
        chat.enter(line)
        chat.see(shown)
    chat.enter("/exit")
    assert chat.exit_code() == 0


def test_the_library_takes_the_same_url(url: str, small_talk: Path) -> None:
    with edge_llama.open(url, tokenizer=small_talk) as model:
        assert model.chat().send(CAPITAL, temperature=0).result().text == ANSWER

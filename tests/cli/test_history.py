"""``edge-llama history``: list, show, search, delete."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import EDGE_LLAMA, Terminal

from edge_llama import Message, ToolCall
from edge_llama.history.store import Conversation, History

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ids(called: Cli, history_folder: Path) -> list[str]:
    """Two conversations, the older one first."""
    assert called("history", "delete", "--all", "--force").returncode == 0
    history = History(history_folder, print)
    about = {"model": "tiny", "model_path": "/models/tiny.gguf", "identity": "0" * 64}
    call = ToolCall("weather", {"city": "Bonn"})
    weather = (
        Message("user", "Weather in Bonn?"),
        Message("assistant", "", (call,)),
        Message("tool", "22 degrees", tool_call_id=call.id, name="weather"),
        Message("assistant", "It is \x1b[31m22\x1b[0m degrees."),
    )
    japan = (Message("user", "What is the capital\nof Japan?"), Message("assistant", "Tokyo."))
    stored = [
        history.create(Conversation(messages=weather, system="Be brief.", **about)),
        history.create(Conversation(messages=japan, **about)),
    ]
    return [conversation.id for conversation in stored]


def test_the_list_has_the_latest_first(cli: Cli, ids: list[str]) -> None:
    done = cli("history", "list")
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(
        rf"{ids[1]}  {when}  tiny  2 messages  What is the capital of Japan\?\n"
        rf"{ids[0]}  {when}  tiny  4 messages  Weather in Bonn\?\n",
        done.stdout,
    )
    assert len(cli("history", "list", "-n", 1).stdout.splitlines()) == 1
    assert cli("history", "list", "-n", 0).returncode == 2
    assert [entry["id"] for entry in json.loads(cli("history", "list", "--json").stdout)] == ids[::-1]


def test_an_empty_history_is_no_error(cli: Cli, ids: list[str]) -> None:
    cli("history", "delete", *ids, "--force")
    done = cli("history", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no conversations yet" in done.stderr
    assert cli("history", "list", "--json").stdout == "[]\n"


def test_show_prints_what_was_said_and_nothing_that_commands_a_terminal(called: Cli, ids: list[str]) -> None:
    lines = called("history", "show", ids[0]).stdout.splitlines()
    assert lines[0].startswith(f"{ids[0]}  ")
    assert lines[1:] == [
        "",
        "system: Be brief.",
        "",
        "> Weather in Bonn?",
        '{"name": "weather", "arguments": {"city": "Bonn"}}',
        "weather: 22 degrees",
        r"It is \x1b[31m22\x1b[0m degrees.",
    ]


def test_show_as_json_holds_the_messages_as_they_are(called: Cli, ids: list[str]) -> None:
    data = json.loads(called("history", "show", ids[0], "--json").stdout)
    assert (data["id"], data["system"], data["model"]["name"]) == (ids[0], "Be brief.", "tiny")
    messages = [Message.from_json(message) for message in data["messages"]]
    assert messages[1].tool_calls[0].arguments == {"city": "Bonn"}
    assert messages[3].content == "It is \x1b[31m22\x1b[0m degrees."
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", data["updated"])


def test_search_finds_words_and_says_where(called: Cli, ids: list[str]) -> None:
    done = called("history", "search", "CAPITAL", "jap")
    assert done.stdout.startswith(f"{ids[1]}  ")
    assert done.stdout.endswith("> What is the capital of Japan?\n")
    (hit,) = json.loads(called("history", "search", "degrees", "--json").stdout)
    assert hit["id"] == ids[0]
    assert "degrees" in hit["excerpt"]
    assert len(called("history", "search", "is", "-n", 1).stdout.splitlines()) == 1
    done = called("history", "search", "elephant")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was found" in done.stderr


def test_delete_deletes_what_is_named_only(called: Cli, ids: list[str], history_folder: Path) -> None:
    kv = history_folder / "kv" / f"{ids[0]}.session"
    kv.parent.mkdir(exist_ok=True)
    kv.touch()
    done = called("history", "delete", ids[0])
    assert done.returncode == 2
    assert "--force deletes without asking" in done.stderr
    done = called("history", "delete", ids[0], "zzzz", "--force")
    assert done.returncode == 2
    assert "no conversation 'zzzz'" in done.stderr
    assert len(called("history", "list").stdout.splitlines()) == 2, "nothing is deleted when one of them is unknown"
    assert kv.exists()
    done = called("history", "delete", ids[0], "--force")
    assert (done.returncode, done.stderr) == (0, "deleted: 1 conversation\n")
    assert called("history", "list").stdout.startswith(ids[1])
    assert not kv.exists()


@pytest.mark.parametrize("arguments", [(), ("abcd", "--all")])
def test_delete_takes_ids_or_all(called: Cli, ids: list[str], arguments: tuple[str, ...]) -> None:
    done = called("history", "delete", "--force", *arguments)
    assert done.returncode == 2
    assert "takes ids or --all" in done.stderr


@pytest.mark.parametrize(("answer", "is_deleted"), [("y", True), ("n", False), ("", False)])
def test_on_a_terminal_delete_asks(
    answer: str, is_deleted: bool, ids: list[str], called: Cli, terminal: Callable[..., Terminal]
) -> None:
    asked = terminal("history", "delete", "--all")
    shown = asked.see(r"Delete 2 conversations for good\? \[y/N\]:")
    assert "Weather in Bonn?" in shown
    asked.enter(answer)
    assert asked.exit_code() == (0 if is_deleted else 1)
    assert (called("history", "list").stdout == "") == is_deleted


def test_without_a_verb_the_help_is_shown(cli: Cli) -> None:
    done = cli("history")
    assert all(verb in done.stdout + done.stderr for verb in ("list", "show", "search", "delete"))
    for verb in ("list", "show", "search", "delete"):
        assert f"Example: edge-llama history {verb}" in cli("history", verb, "--help").stdout


@pytest.mark.parametrize("words", ["history show ", "history delete ", "chat --continue "])
def test_the_shell_completes_ids(words: str, ids: list[str], environment: dict[str, str]) -> None:
    line = f"edge-llama {words}{ids[0][:3]}"
    env = {
        **environment,
        "_EDGE_LLAMA_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
        "_TYPER_COMPLETE_ARGS": line,
    }
    done = subprocess.run([EDGE_LLAMA], env=env, capture_output=True, text=True, check=False, cwd=os.sep)
    assert ids[0] in done.stdout.split()
    assert ids[1] not in done.stdout.split()

"""Documents on the command line: before one prompt, and in a chat in a terminal."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import pdf
from engines import CAPITAL
from terminals import Terminal

from edge_llama.history.store import History

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "my notes.txt"
    path.write_text("The capital of Freedonia is Fredville.\n")
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "long.md"
    parts = [f"## Part {at}\n\n{'Nothing is told in this one. ' * 12}" for at in range(120)]
    path.write_text("\n\n".join([*parts[:70], "## Lighthouse\n\nIts keeper is called Ingrid.", *parts[70:]]))
    return path


def test_run_tells_the_cost_and_answers(called: Cli, packaged: Path, notes: Path) -> None:
    question = "What is the capital of Freedonia?"
    done = called("run", packaged, question, "--file", notes, "--temperature", 0, "--max-tokens", 30)
    assert done.returncode == 0, done.stderr
    assert "Fredville" in done.stdout
    assert re.match(r"my notes.txt: text, \d\d tokens\n", done.stderr)
    quiet = called("run", packaged, question, "--file", notes, "--max-tokens", 1, "--quiet")
    assert quiet.stderr.startswith("[stopped"), quiet.stderr


def test_several_stand_in_their_order_and_what_was_assumed_is_told(called: Cli, notes: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["one", ""]))
    (tmp_path / "b.txt").write_bytes("café".encode("cp1252"))
    files = [word for path in (notes, tmp_path / "a.pdf", tmp_path / "b.txt") for word in ("--file", path)]
    done = called("run", CAPITAL, *files, "--max-tokens", 1, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[:2] == [
        "[a.pdf: 1 of 2 pages has no text: 2]",
        "[b.txt: encoding: windows-1252, assumed by its bytes]",
    ]


def test_what_does_not_fit_is_refused_or_searched(called: Cli, long: Path) -> None:
    question = "Who is the keeper of the lighthouse?"
    common = ("run", question, "--file", long, "--n-ctx", 2048, "--temperature", 0, "--max-tokens", 3)
    refused = called(*common)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"edge-llama: long.md needs [\d,]+ tokens but the context of 2,048 has room for 2,0\d\d; .*--retrieve.*\n",
        refused.stderr,
    )
    found = called(*common, "--retrieve")
    assert found.returncode == 0, found.stderr
    told = re.search(r"\[long.md: (\d+) of (\d+) passages are used: lines? .*\]", found.stderr)
    assert told
    assert int(told[1]) <= 16 < int(told[2])
    said = json.loads(called(*common, "--retrieve", "--json").stdout)
    assert any("Ingrid" in passage["text"] for passage in said["passages"])
    assert len(said["passages"]) == int(told[1])


def test_an_embedding_model_finds_passages_too(called: Cli, small_talk: Path, long: Path) -> None:
    asked = ("run", "Who keeps the light?", "--file", long, "--n-ctx", 1024, "--max-tokens", 1, "--retrieve")
    done = called(*asked, "--embedding-model", small_talk)
    assert done.returncode == 0, done.stderr
    assert "passages are used" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--file", "nix.txt"], "nix.txt"),
        (["--file", "."], "a folder, not a file"),
        (["--file", "NOTES", "--raw"], "--file has no place in a --raw prompt"),
        (["--file", "NOTES", "--embedding-model", "smollm2"], "add --retrieve"),
        (["--file", "LONG", "--n-ctx", "512", "--retrieve", "--embedding-model", "nix.gguf"], "nix.gguf"),
        (["--file", "https://example.org/a.txt"], "example.org"),
    ],
)
def test_what_can_t_be_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, called: Cli, notes: Path, long: Path
) -> None:
    words = {"NOTES": str(notes), "LONG": str(long)}
    done = called("run", CAPITAL, *(words.get(word, word) for word in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-1]


def test_a_chat_takes_files_and_keeps_them(
    terminal: Callable[..., Terminal], cli: Cli, notes: Path, tmp_path: Path
) -> None:
    env = {"EDGE_LLAMA_HISTORY": str(tmp_path / "history")}
    chat = terminal("chat", "--temperature", 0, "--max-tokens", 12, env=env)
    chat.see(r"(?m)^>\Z")
    assert "No such file" in chat.ask("/file nix.txt")
    assert "/file: which file?" in chat.ask("/file")
    chat.type(f"/file {notes.parent}/my\t")
    told = re.search(r"with the next message: my notes.txt, text, (\d+) tokens", chat.ask(""))
    assert told, "the path was completed, with its space"
    assert "no files" in chat.ask("/file -")
    assert "with the next message" in chat.ask(f"/file '{notes}'"), "as terminals write a dropped path"
    before = used(chat)
    chat.ask(CAPITAL)
    assert used(chat) > before + int(told[1]), "the file went with the message"
    full = used(chat)
    chat.ask("And of Egypt?")
    assert used(chat) < full + int(told[1]), "and with that one alone"
    chat.enter("/exit")
    assert chat.exit_code() == 0
    entry = History(tmp_path / "history", print).latest()
    shown = cli("history", "show", entry.id, env=env).stdout
    assert f"> [file my notes.txt, {told[1]} tokens] {CAPITAL}" in shown
    assert "Fredville" not in shown
    assert CAPITAL in cli("history", "list", env=env).stdout
    (document,) = json.loads(cli("history", "show", entry.id, "--json", env=env).stdout)["messages"][0]["documents"]
    assert (document["name"], document["tokens"]) == ("my notes.txt", int(told[1]))


def used(chat: Terminal) -> int:
    found = re.search(r"([\d,]+) of", chat.ask("/context"))
    assert found
    return int(found[1].replace(",", ""))


def test_in_a_chat_what_does_not_fit_is_refused_until_retrieve_is_on(
    terminal: Callable[..., Terminal], long: Path
) -> None:
    chat = terminal("chat", "--n-ctx", 1024, "--max-tokens", 4, "--no-history")
    chat.see(r"(?m)^>\Z")
    assert "has room for" in chat.ask(f"/file {long}").replace("\n", " ")
    assert "retrieve: off" in chat.ask("/retrieve")
    assert "expected on or off" in chat.ask("/retrieve perhaps")
    assert "retrieve: on" in chat.ask("/retrieve on")
    assert "passages of it will be found" in chat.ask(f"/file {long}").replace("\n", " ")
    said = chat.ask("Who is the keeper of the lighthouse?").replace("\n", "")
    assert re.search(r"\[long.md: \d+ of \d+ passages are used: line", said)
    assert "taken back: [file long.md, passages" in chat.ask("/undo").replace("\n", "")

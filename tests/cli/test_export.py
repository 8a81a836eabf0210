"""``/export`` and ``history export``: one way to write a conversation for others."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import CAPITAL
from refusals import refusal
from terminals import Terminal

from edge_llama import Message, OptionError, OutputError, ToolCall
from edge_llama.history.export import as_markdown, export
from edge_llama.history.store import Conversation, History
from edge_llama.media.images import Image

Cli = Callable[..., subprocess.CompletedProcess[str]]
PICTURE = Path(__file__).parent.parent.parent / "docs" / "digits.png"


@pytest.fixture
def chat(terminal: Callable[..., Terminal], tmp_path: Path) -> Terminal:
    env = {"EDGE_LLAMA_HISTORY": str(tmp_path / "history")}
    started = terminal("chat", "--temperature", 0, "--system", "Be brief.", env=env)
    started.see(r"(?m)^>\Z")
    return started


def test_a_chat_is_exported_for_people_and_for_programs(chat: Terminal, tmp_path: Path) -> None:
    assert "there is nothing to export yet" not in chat.ask(CAPITAL)
    assert "3 messages" in chat.ask(f"/export {tmp_path}/my talk.md")
    assert (tmp_path / "my talk.md").read_text("utf-8") == (
        f"## System\n\nBe brief.\n\n## You\n\n{CAPITAL}\n\n## Assistant\n\nThe capital of Japan is Tokyo.\n"
    )
    assert "3 messages" in chat.ask(f"/export '{tmp_path}/talk.json'")
    data = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert data == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": CAPITAL},
        {"role": "assistant", "content": "The capital of Japan is Tokyo."},
    ]
    assert [Message.from_json(each).role for each in data] == ["system", "user", "assistant"]


def test_a_file_that_is_there_is_replaced_only_when_that_is_said(chat: Terminal, tmp_path: Path) -> None:
    chat.ask(CAPITAL)
    path = tmp_path / "talk.md"
    path.write_text("mine")
    assert "talk.md: already exists; give another name, or --force to replace it" in chat.ask(f"/export {path}")
    assert path.read_text() == "mine"
    assert "3 messages" in chat.ask(f"/export {path} --force")
    assert "Tokyo" in path.read_text()
    assert "its ending says no format to export to" in chat.ask(f"/export {tmp_path}/talk.txt")
    assert "cannot be written: No such file or directory" in chat.ask(f"/export {tmp_path}/no/where.md")
    assert "/export: which file?" in chat.ask("/export")


def test_what_a_summary_replaced_is_exported_too(chat: Terminal, tmp_path: Path) -> None:
    for question in (CAPITAL, "And of Italy?", "Hello!"):
        chat.ask(question)
    assert "are summarized" in chat.ask("/compact")
    assert "7 messages" in chat.ask(f"/export {tmp_path}/all.json")
    said = [each["content"] for each in json.loads((tmp_path / "all.json").read_text("utf-8"))]
    assert said[1::2] == [CAPITAL, "And of Italy?", "Hello!"]


def test_a_kept_conversation_is_exported_the_same(chat: Terminal, cli: Cli, tmp_path: Path) -> None:
    chat.ask(CAPITAL)
    chat.ask(f"/export {tmp_path}/one.md")
    env = {"EDGE_LLAMA_HISTORY": str(tmp_path / "history")}
    entry = json.loads(cli("history", "list", "--json", env=env).stdout)[0]["id"]
    done = cli("history", "export", entry, tmp_path / "two.md", env=env)
    assert re.search(r"exported: .*two\.md, 2 messages, \d+ bytes", done.stderr), done.stderr
    assert (tmp_path / "two.md").read_bytes() == (tmp_path / "one.md").read_bytes()
    done = cli("history", "export", entry, tmp_path / "two.md", env=env)
    assert (done.returncode, "--force" in done.stderr) == (2, True)
    assert cli("history", "export", entry, tmp_path / "two.md", "--force", env=env).returncode == 0


def test_markdown_shows_all_that_a_message_has_and_nothing_closes_its_blocks() -> None:
    call = ToolCall("weather", {"city": "Köln"})
    markdown = as_markdown(
        [
            Message("user", [Image.open(PICTURE), "What is 全角　空白 👨‍👩‍👧?\tTab"]),
            Message("assistant", "", (call,), thinking="It may\nrain."),
            Message("tool", "```\n22\n```", tool_call_id=call.id, name="weather"),
            Message("assistant", "# 22 \x1b[31m degrees"),
        ]
    )
    assert markdown == (
        "## You\n\n[image of 224 x 112 pixels] What is 全角　空白 👨‍👩‍👧?\tTab\n\n"
        "## Assistant\n\n> It may\n> rain.\n\n"
        '```json\n{"name": "weather", "arguments": {"city": "Köln"}}\n```\n\n'
        "## Tool weather\n\n````\n```\n22\n```\n````\n\n"
        "## Assistant\n\n# 22 \\x1b[31m degrees\n"
    )


def test_pictures_are_in_json(tmp_path: Path) -> None:
    message = Message("user", [Image.open(PICTURE), "What is this?"])
    export([message], tmp_path / "talk.json")
    (read,) = map(Message.from_json, json.loads((tmp_path / "talk.json").read_text("utf-8")))
    assert read == message


def test_nothing_to_export_is_refused(tmp_path: Path) -> None:
    with refusal(OptionError, "there is nothing to export yet"):
        export([], tmp_path / "talk.md")
    with refusal(OutputError, "cannot be written", tmp_path / "gone" / "talk.md"):
        export([Message("user", "Hello!")], tmp_path / "gone" / "talk.md")
    assert list(tmp_path.iterdir()) == []


def test_full_width_letters_and_joined_emoji_are_shown_as_they_are(called: Cli, tmp_path: Path) -> None:
    about = {"model": "モデル", "model_path": "/models/tiny.gguf", "identity": "0" * 64}
    history = History(tmp_path, print)
    first = history.create(Conversation(messages=(Message("user", "全角　空白 👨‍👩‍👧"),), **about))
    history.create(Conversation(messages=(Message("user", "Hello!"),), **{**about, "model": "tiny"}))
    env = {"EDGE_LLAMA_HISTORY": str(tmp_path)}
    assert called("history", "show", first.id, env=env).stdout.endswith("\n> 全角　空白 👨‍👩‍👧\n")
    lines = called("history", "list", env=env).stdout.splitlines()
    assert lines[0].endswith("  tiny    1 message  Hello!"), "as wide as three letters of two cells"
    assert lines[1].endswith("  モデル  1 message  全角 空白 👨‍👩‍👧"), "a title has one kind of space"

"""``chat --plain``: for screen readers. Nothing is drawn again, no colours, no boxes; who speaks is said in words."""

import os
import re
import readline
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import CAPITAL
from terminals import Terminal

from edge_llama.cli.chat_session.commands import gauge

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal of POSIX")
gnu = pytest.mark.skipif("libedit" in (readline.__doc__ or ""), reason="libedit knows no pasting")
MARKDOWN = r"# Title\n\n- \*\*one\*\* item\n\n\| a \| b \|\n\|---\|---\|\n\| 1 \| 2 \|\n"
READY = r"(?m)^You:\Z"
MOVES = re.compile(r"\x1b\[\d*[ABDFGHJKfsu]|\x1b[78M]|\x08")
"""What goes back on the screen, or erases there."""
STYLES = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def start(terminal: Callable[..., Terminal]) -> Callable[..., Terminal]:
    def begin(*options: object, **env: str) -> Terminal:
        chat = terminal("chat", "--temperature", 0, "--plain", *options, env={"NO_COLOR": "", "TMUX": "", **env})
        chat.see(READY)
        return chat

    return begin


def ask(chat: Terminal, line: str) -> str:
    chat.enter(line)
    return chat.see(READY)


def test_who_speaks_is_said_and_nothing_is_drawn_again(start: Callable[..., Terminal]) -> None:
    chat = start()
    assert ask(chat, CAPITAL) == "Assistant: The capital of Japan is Tokyo.\nYou:"
    assert re.search(r"context: \d+%, \d+ of 8,192 tokens\nYou:", ask(chat, "/context")), "no bar"
    ask(chat, "/set")
    ask(chat, "/help")
    assert not MOVES.search(chat.written), "nothing goes back"
    assert not STYLES.search(chat.written)
    assert not set(chat.written) & set("─│┌└╭╰━•▌⠋")


def test_answers_are_as_the_model_writes_them_without_boxes(start: Callable[..., Terminal]) -> None:
    shown = ask(start("--regex", MARKDOWN), "Go.")
    assert shown.startswith("Assistant: # Title\n\n- **one** item\n\n| a | b |\n|---|---|\n| 1 | 2 |")


def test_escape_sequences_of_the_model_are_shown_not_obeyed(start: Callable[..., Terminal]) -> None:
    chat = start("--regex", r"red \x1b\[31m and \x1b\]0;title\x07 end")
    assert ask(chat, "Go.") == r"Assistant: red \x1b[31m and \x1b]0;title\x07 end" + "\nYou:"


def test_a_variable_asks_for_it_always(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat", env={"EDGE_LLAMA_PLAIN": "1"})
    assert "\x1b[2m" not in chat.see(READY)


def test_thoughts_are_announced(start: Callable[..., Terminal], tmp_path: Path) -> None:
    template = tmp_path / "thinks.jinja"
    template.write_text(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n<think>\n"
    )
    chat = start("--chat-template", template, "--thinking-budget", 3, "--max-tokens", 40)
    assert re.match(r"Thinking: (.|\n)*\n\nAssistant: .", ask(chat, CAPITAL))


def test_ctrl_c_and_ctrl_d_do_what_they_do_elsewhere(start: Callable[..., Terminal]) -> None:
    chat = start()
    chat.type("not this")
    chat.see("not this")
    chat.interrupt()
    chat.see(r"(?m)not this(\^C)?\nYou:\Z")
    chat.enter("Write a very long story about a ship, with many chapters.")
    chat.see(r"\w+ \w+ \w+ \w+")
    chat.interrupt()
    chat.see(r"\[stopped\]\nYou:\Z")
    chat.type("\x04")
    assert chat.exit_code() == 0


@gnu
def test_many_pasted_lines_are_one_message(start: Callable[..., Terminal]) -> None:
    chat = start()
    chat.type("\x1b[200~What is\rthe capital\rof\x1b[201~")
    assert "Tokyo" in ask(chat, " Japan?")
    assert "taken back: What is the capital of Japan?" in ask(chat, "/undo")


@gnu
def test_commands_and_paths_are_completed(start: Callable[..., Terminal], tmp_path: Path) -> None:
    (tmp_path / "my notes.session").write_bytes(b"none")
    chat = start()
    chat.type(f'/load "{tmp_path}/my\t')
    assert re.search(r"my notes\.session: .*no session", ask(chat, "").replace("\n", ""))


def test_quotes_go_over_several_lines(start: Callable[..., Terminal]) -> None:
    chat = start()
    chat.type('"""What is\rthe capital\r')
    assert "Tokyo" in ask(chat, 'of Japan?"""')


def test_how_full_the_context_is_comes_in_words(start: Callable[..., Terminal]) -> None:
    chat = start("--n-ctx", 128, "--max-tokens", 4)
    shown = ""
    while "context" not in shown:
        shown = ask(chat, "Hello!")
    assert re.search(r"(?m)^context: [789]\d%, \d+ of 128 tokens\nYou:\Z", shown)
    assert gauge(32, 64) == "context: [#####.....] 50%, 32 of 64 tokens"


def test_a_pipe_gets_answers_alone(terminal: Callable[..., Terminal], environment: dict[str, str]) -> None:
    import subprocess  # noqa: PLC0415

    command = [str(Path(sys.executable).with_name("edge-llama")), "chat", "--plain", "--temperature", "0", "--quiet"]
    done = subprocess.run(command, input=CAPITAL, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("The capital of Japan is Tokyo.\n", "")

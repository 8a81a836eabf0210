"""Answers on the screen: rendered, plain, narrow, resized, stopped, in tmux; the model writes what a regex says."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminals import EDGE_LLAMA, Terminal

MARKDOWN = r"# Title\n\n- \*\*one\*\* item\n\n`code` ends"
WORDS = 40
STORY = rf"(?:[a-z]{{3,7}} ){{{WORDS}}}end"
"""An answer of words that the model chooses, long enough to be wrapped; the built-in model takes seconds for it."""


def without_styles(written: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written).replace("\r", "")


def started(terminal: Callable[..., Terminal], *options: object, columns: int = 100, **env: str) -> Terminal:
    chat = terminal("chat", "--temperature", 0, *options, columns=columns, env={"TMUX": "", **env})
    chat.see(r"(?m)^>\Z")
    return chat


def test_markdown_is_rendered_and_no_color_leaves_the_styles_that_are_no_colours(
    terminal: Callable[..., Terminal],
) -> None:
    chat = started(terminal, "--regex", MARKDOWN)
    assert chat.ask("Go.") == "Title\n\n• one item\n\ncode ends\n>"
    assert "\x1b[1mone\x1b[0m" in chat.written
    assert "\x1b[1mcode\x1b[0m" in chat.written, "bold without its colour"


def test_colours_are_used_where_they_are_wanted(terminal: Callable[..., Terminal]) -> None:
    chat = started(terminal, "--regex", MARKDOWN, NO_COLOR="")
    chat.ask("Go.")
    assert "\x1b[1;36mcode\x1b[0m" in chat.written


def test_a_dumb_terminal_gets_what_the_model_writes(terminal: Callable[..., Terminal]) -> None:
    chat = started(terminal, "--regex", MARKDOWN, TERM="dumb")
    assert chat.ask("Go.") == "# Title\n\n- **one** item\n\n`code` ends\n>"


def test_escape_sequences_of_the_model_are_shown_not_obeyed(terminal: Callable[..., Terminal]) -> None:
    chat = started(terminal, "--regex", r"red \x1b\[31m and \x1b\]0;title\x07 end")
    assert chat.ask("Go.") == r"red \x1b[31m and \x1b]0;title\x07 end" + "\n>"


def test_piped_answers_are_the_models_own_text(environment: dict[str, str]) -> None:
    command = [EDGE_LLAMA, "chat", "--regex", MARKDOWN, "--quiet"]
    stdin = 'a\n"""b\nc"""\n'
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "# Title\n\n- **one** item\n\n`code` ends\n" * 2
    unended = subprocess.run(command, input='"""b', env=environment, capture_output=True, text=True, check=False)
    assert unended.returncode == 2
    assert 'a message begins with """ and has no end' in unended.stderr


def test_a_narrow_window_that_is_resized_during_an_answer_loses_nothing(
    terminal: Callable[..., Terminal], converted: Path
) -> None:
    chat = started(terminal, converted, "--regex", STORY, columns=40)
    chat.enter("Go.")
    for columns in (60, 25, 80):
        seen = len(chat.written)
        chat.see(r"\w+ \w+")
        chat.resize(columns)
        while len(chat.written) < seen + 60:
            chat.wait()
    chat.see(r"(?m)^>\Z")
    shown = without_styles(chat.written).split("Go.\n")[-1].split()
    chat.ask("/copy")
    answer = re.findall(r"[a-z]{3,7} ", chat.copied())
    assert len(answer) == WORDS
    assert [word for word in shown if re.fullmatch(r"[a-z]{3,7}", word)][: WORDS + 1] == [
        *map(str.strip, answer),
        "end",
    ]


def test_what_was_generated_until_ctrl_c_is_all_shown(terminal: Callable[..., Terminal]) -> None:
    chat = started(terminal, "--regex", r"(?:[a-z]{3,7} ){1000}")
    chat.enter("Go.")
    chat.see(r"\w+ \w+ \w+ \w+")
    chat.interrupt()
    shown = chat.see(r"\[stopped\]\n>\Z")
    chat.ask("/copy")
    assert shown.removesuffix("\n[stopped]\n>").split() == chat.copied().split()


def test_what_is_typed_during_an_answer_is_not_in_it_and_comes_next(
    terminal: Callable[..., Terminal], converted: Path
) -> None:
    chat = started(terminal, converted, "--regex", STORY)
    chat.enter("Go.")
    chat.see(r"\w+ \w+")
    chat.type("/context\r")
    shown = chat.see(r"context: .*\n>\Z")
    assert re.search(r"end\n> /context\ncontext", shown)
    assert shown.count("/context") == 1


@pytest.fixture
def tmux(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Call tmux with arguments; a server of its own, ended in the end."""
    program = shutil.which("tmux")
    if program is None:
        pytest.skip("tmux is not installed")
    env = {**environment, "TMUX_TMPDIR": str(tmp_path), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    env.pop("TMUX", None)

    def call(*arguments: object) -> str:
        command = [program, "-f", os.devnull, *map(str, arguments)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    yield call
    call("kill-server")


def test_in_tmux_scrollback_is_whole_after_a_resize_and_the_answer_is_in_its_buffer(
    tmux: Callable[..., str], converted: Path
) -> None:
    command = f"'{EDGE_LLAMA}' chat '{converted}' --temperature 0 --regex '{STORY}'"
    tmux("new-session", "-d", "-x", 40, "-y", 8, "-s", "chat", command)
    wait_for(tmux, r"(?m)^>\s*\Z")
    tmux("send-keys", "-t", "chat", "Go.", "Enter")
    wait_for(tmux, r"Go\.\n+(\w+\s+){8}")
    tmux("resize-window", "-t", "chat", "-x", 30, "-y", 6)
    wait_for(tmux, r"Go\.\n+(\w+\s+){30}")
    tmux("resize-window", "-t", "chat", "-x", 60, "-y", 10)
    screen = wait_for(tmux, r"\bend\n+>\s*\Z")
    tmux("send-keys", "-t", "chat", "/copy", "Enter")
    wait_for(tmux, r"tmux's buffer")
    shown = screen.split("Go.\n")[-1].rstrip("\n> ").split()
    assert shown == tmux("show-buffer").split()


def wait_for(tmux: Callable[..., str], pattern: str) -> str:
    """All that the pane has, scrolled away or not, when it matches; lines that the window folds are joined."""
    deadline = time.monotonic() + 60
    while not re.search(pattern, text := tmux("capture-pane", "-p", "-J", "-S", "-", "-t", "chat")):
        assert time.monotonic() < deadline, f"{pattern!r} did not appear:\n{text}"
        time.sleep(0.05)
    return text

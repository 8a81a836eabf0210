"""``/edit``: the last message in an editor, which is a program of its own in the same terminal."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import CAPITAL
from terminals import Terminal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal and signals of POSIX")
Start = Callable[[str], Terminal]


@pytest.fixture
def editor(tmp_path: Path) -> Callable[[str], str]:
    """The command line of an editor that runs some code, in which ``path`` is the file's; its folder has a space."""

    def write(code: str) -> str:
        script = tmp_path / "my editor.py"
        script.write_text(f"import pathlib, sys\npath = pathlib.Path(sys.argv[-1])\n{code}\n", "utf-8")
        return f"'{sys.executable}' '{script}' --wait"

    return write


@pytest.fixture
def start(terminal: Callable[..., Terminal]) -> Start:
    """A chat that has answered a question, with $EDITOR."""

    def begin(command: str, **env: str) -> Terminal:
        chat = terminal("chat", "--temperature", 0, env={"VISUAL": "", "EDITOR": command, **env})
        chat.see(r"(?m)^>\Z")
        assert "Tokyo" in chat.ask(CAPITAL)
        return chat

    return begin


def test_the_edited_message_is_answered_in_place_of_the_last(start: Start, editor: Callable[[str], str]) -> None:
    chat = start(editor("path.write_text(path.read_text().replace('Japan', 'Italy') + '\\n')"))
    shown = chat.ask("/edit")
    assert shown == "> What is the capital of Italy?\nThe capital of Italy is Rome.\n>"
    assert "taken back: What is the capital of Italy?" in chat.ask("/undo")
    assert "there are 0 exchanges" in chat.ask("/undo")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "the text is unchanged: nothing is sent"),
        ("path.write_text(path.read_text() + '\\n')", "the text is unchanged: nothing is sent"),
        ("path.write_text(' \\n')", "the text is empty: nothing is sent"),
        ("path.unlink()", "left no file"),
        ("path.write_text('Hello!'); sys.exit(3)", "ended by exit code 3: nothing is sent"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL: nothing is sent"),
        ("path.write_bytes(b'Hell\\xf6')", "no UTF-8, at byte 4"),
    ],
)
def test_what_is_no_new_text_leaves_the_conversation(
    code: str, said: str, start: Start, editor: Callable[[str], str]
) -> None:
    chat = start(editor(code))
    assert said in chat.ask("/edit")
    assert f"taken back: {CAPITAL}" in chat.ask("/undo")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "no editor is chosen; set VISUAL or EDITOR"),
        ("no-such-editor -w", "the editor no-such-editor can't be started: No such file"),
        ("vi 'unclosed", "No closing quotation"),
    ],
)
def test_an_editor_that_is_none_is_told(command: str, said: str, start: Start) -> None:
    assert said in start(command).ask("/edit")


def test_without_a_message_there_is_nothing_to_edit(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat", env={"EDITOR": "vi"})
    chat.see(r"(?m)^>\Z")
    assert "there is no message to edit" in chat.ask("/edit")


def test_ctrl_c_is_the_editors_own(start: Start, editor: Callable[[str], str]) -> None:
    wait = """
import time
try:
    print("editing", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    path.write_text("What is the capital of Egypt?")
"""
    chat = start(editor(wait))
    chat.enter("/edit")
    chat.see("editing")
    chat.interrupt()
    assert "Cairo" in chat.see(r"(?m)^>\Z")


def test_the_terminal_is_as_it_was_after_an_editor_that_left_it_raw(start: Start, editor: Callable[[str], str]) -> None:
    raw = "import tty; tty.setraw(0); sys.stdout.write('\\x1b[?1049h\\x1b[?25l'); sys.stdout.flush()"
    chat = start(editor(f"{raw}; import os; os.kill(os.getpid(), 9)"))
    assert "ended by SIGKILL" in chat.ask("/edit")
    assert chat.written.rindex("\x1b[?1049l") > chat.written.rindex("\x1b[?1049h")
    chat.enter("/exit")
    assert chat.exit_code(keep=True) == 0
    assert chat.is_cooked()


def test_vim_edits_in_the_same_terminal(start: Start, tmp_path: Path) -> None:
    if shutil.which("vim") is None:
        pytest.skip("vim is not installed")
    chat = start("env TERM=vt100 vim -u NONE -N -i NONE")  # the emulated screen knows no newer one
    chat.enter("/edit")
    chat.see("message.md")
    chat.type(":s/Japan/France/\r:wq\r")
    chat.see(r"The capital of France is Paris\.\n>\Z")
    said = tmp_path / "said.md"
    chat.enter(f"/export {said}")  # the emulated screen is full: nothing typed now is seen on it
    while not said.exists():
        chat.wait()
    assert "Tokyo" not in said.read_text("utf-8")


def test_what_is_being_typed_is_edited_and_sent_by_a_key(start: Start, editor: Callable[[str], str]) -> None:
    chat = start(editor("path.write_text(path.read_text().replace('Spain', 'Egypt'))"))
    chat.type("What is the capital of Spain?\x18\x05")
    chat.see(r"(?m)^The capital of Egypt is Cairo\.\n>\Z")

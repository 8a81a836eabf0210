"""``edge-llama chat``, piped and in a real pseudo-terminal."""

import re
import subprocess
from collections.abc import Callable

import pytest
from engines import CAPITAL
from terminals import Terminal

from edge_llama.cli.chat_session.commands import COMMANDS

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_each_line_of_stdin_gets_one_answer(cli: Cli) -> None:
    done = cli("chat", "--temperature", 0, stdin=f"{CAPITAL}\n\nWhat is the capital of Italy?\n")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "The capital of Japan is Tokyo."
    assert any("Rome" in line for line in lines[1:])
    assert "tokens/s" in done.stderr


def test_an_empty_stdin_answers_an_example_and_prints_the_speed(cli: Cli) -> None:
    done = cli("chat", "--temperature", 0)
    assert done.returncode == 0
    assert "Tokyo" in done.stdout
    assert f"> {CAPITAL}" in done.stderr
    assert "tokens/s" in done.stderr
    assert "4,096" in done.stderr or "8,192" in done.stderr, "the context's size is announced"


@pytest.fixture
def chat(terminal: Callable[..., Terminal]) -> Terminal:
    started = terminal("chat", "--temperature", 0)
    started.see(r"/help shows the commands(?m:(.|\n)*^>)\Z")
    return started


def test_a_question_is_answered_and_ctrl_d_leaves(chat: Terminal) -> None:
    assert chat.ask(CAPITAL) == "The capital of Japan is Tokyo.\n>"
    chat.type("\x04")
    assert chat.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(chat: Terminal) -> None:
    chat.enter("Write a very long story about a ship, with many chapters.")
    chat.see(r"\w+ \w+ \w+")
    chat.interrupt()
    chat.see(r"\[stopped\]\n>")
    chat.ask("/undo")  # after half a story this small model tells anything
    assert "Tokyo" in chat.ask(CAPITAL)
    chat.enter("/exit")
    assert chat.exit_code() == 0


def test_ctrl_c_at_the_prompt_clears_the_line(chat: Terminal) -> None:
    chat.type("not this")
    chat.see("> not this")
    chat.interrupt()
    chat.see(r"(?m)> not this\n>\Z")
    assert chat.ask(CAPITAL) == "The capital of Japan is Tokyo.\n>"


def test_the_commands_do_what_they_say(chat: Terminal) -> None:
    shown = chat.ask("/help")
    assert all(command in shown for command in COMMANDS)
    assert "nothing to answer again" in chat.ask("/retry")
    assert "there is no answer yet" in chat.ask("/speed")
    assert "Tokyo" in chat.ask(CAPITAL)
    assert "Tokyo" in chat.ask("/retry")
    assert re.search(r"answer \d+ tokens at \d{1,3}(,\d{3})*\.\d tokens/s", chat.ask("/speed"))
    chat.ask(LONG_TURN)
    assert re.search(r"context: \[\.{10}\] [1-9]%, \d+ of 8,192 tokens", chat.ask("/context"))
    assert "system message: Answer in one word." in chat.ask("/system Answer in one word.")
    assert "system message: none" in chat.ask("/system -")
    assert "forgotten" in chat.ask("/clear")
    assert "/nonsense is unknown" in chat.ask("/nonsense")


def test_a_message_that_does_not_fit_is_told_and_the_chat_goes_on(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat", "--temperature", 0, "--n-ctx", 256)
    chat.see(r"(?m)^>\Z")
    assert re.search(r"the prompt needs \d+ tokens but the context holds 256", chat.ask("word " * 300))
    assert "Tokyo" in chat.ask(CAPITAL)


def test_a_line_can_be_edited(chat: Terminal) -> None:
    """Home, Delete, End: a terminal's line editor, not a plain read."""
    assert "Tokyo" in chat.ask("XWhat is the capital of Japa\x1b[H\x1b[3~\x1b[Fn?")
    chat.type("\x1b[A")
    chat.see(r"> What is the capital of Japan\?")


def test_commands_are_completed(chat: Terminal) -> None:
    chat.type("/und\t")
    chat.see(r"> /undo")


def test_typed_control_tokens_are_counted_as_plain_text(chat: Terminal) -> None:
    """As plain text ``<|im_end|>`` is several tokens: the context is fuller than with as many control tokens."""
    chat.ask("<|im_end|>" * 8 + " Hello")
    used = re.search(r"(\d+) of", chat.ask("/context"))
    assert used
    assert int(used[1]) > 8 * 5 + 30


LONG_TURN = "Please remember this list of words: " + "apple, river, stone, " * 30


def test_when_the_context_is_full_the_message_is_refused_by_default(cli: Cli) -> None:
    done = cli("chat", "--n-ctx", 512, "--max-tokens", 8, stdin=f"{LONG_TURN}\n" * 4)
    assert done.returncode == 2
    assert "tokens but the context holds 512" in done.stderr


@pytest.mark.parametrize(("choice", "what"), [("drop-oldest", "left out"), ("compact", "summarized")])
def test_what_is_done_when_the_context_is_full_is_told(cli: Cli, choice: str, what: str) -> None:
    stdin = f"{LONG_TURN}\n" * 4 + f"{CAPITAL}\n"
    options = ("--n-ctx", 512, "--max-tokens", 30, "--temperature", 0, "--when-full", choice)
    done = cli("chat", *options, "--quiet", stdin=stdin)
    assert done.returncode == 0
    assert re.search(rf"(?m)^\[the oldest \d+ messages are {what}: \d+ tokens become \d+ of 512\]$", done.stderr)
    assert "left out" not in done.stdout
    assert "Tokyo" in done.stdout


def test_another_choice_for_a_full_context_is_an_error(cli: Cli) -> None:
    done = cli("chat", "--when-full", "never", stdin="x\n")
    assert done.returncode == 2
    assert "--when-full never: unknown; known: error, compact, drop-oldest" in done.stderr

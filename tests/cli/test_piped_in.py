"""What is piped into ``run``: the text that a prompt is about. Real pipes, files and sockets."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import CAPITAL
from terminals import EDGE_LLAMA, Terminal

Cli = Callable[..., subprocess.CompletedProcess[str]]
NOTES = "Notes.\nOf two lines.\n"
ONE = ("--temperature", 0, "--max-tokens", 1, "--json")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell and its descriptors")


def prompt_tokens(done: subprocess.CompletedProcess[str]) -> int:
    """How long the prompt was that the model got."""
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["timings"]["prompt_tokens"])


def run(environment: dict[str, str], *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """``edge-llama run`` with a stdin of one's own."""
    command = [EDGE_LLAMA, "run", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120, **options)


def test_the_text_stands_before_the_prompt_after_a_blank_line(cli: Cli) -> None:
    expected = cli("run", f"{NOTES.strip()}\n\n{CAPITAL}", "--temperature", 0, "--json")
    done = cli("run", CAPITAL, "--temperature", 0, "--json", stdin=NOTES)
    assert json.loads(done.stdout)["tokens"] == json.loads(expected.stdout)["tokens"]
    assert prompt_tokens(done) == prompt_tokens(expected) > prompt_tokens(cli("run", CAPITAL, *ONE))
    assert done.stderr == ""


def test_a_raw_prompt_goes_on_from_the_text_as_it_is(cli: Cli) -> None:
    done = cli("run", "--raw", " of Japan is", "--temperature", 0, "--max-tokens", 2, stdin="The capital")
    assert done.stdout == " Tokyo.\n"


def test_a_dash_takes_the_prompt_itself_and_nothing_else(cli: Cli) -> None:
    assert prompt_tokens(cli("run", "-", *ONE, stdin=CAPITAL)) == prompt_tokens(cli("run", CAPITAL, *ONE))


@pytest.mark.parametrize("stdin", ["", "\n \n", "\ufeff"])
def test_nothing_is_no_text(cli: Cli, stdin: str) -> None:
    assert prompt_tokens(cli("run", CAPITAL, *ONE, stdin=stdin)) == prompt_tokens(cli("run", CAPITAL, *ONE))


@POSIX
def test_a_file_a_socket_nothing_and_a_closed_stdin(environment: dict[str, str], cli: Cli, tmp_path: Path) -> None:
    plain, about = prompt_tokens(cli("run", CAPITAL, *ONE)), prompt_tokens(cli("run", CAPITAL, *ONE, stdin=NOTES))
    (tmp_path / "notes").write_text(NOTES)
    with (tmp_path / "notes").open("rb") as file:
        assert prompt_tokens(run(environment, CAPITAL, *ONE, stdin=file)) == about
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(NOTES.encode())
        ours.shutdown(socket.SHUT_WR)
        assert prompt_tokens(run(environment, CAPITAL, *ONE, stdin=theirs)) == about
    assert prompt_tokens(run(environment, CAPITAL, *ONE, stdin=subprocess.DEVNULL)) == plain
    line = f"exec '{EDGE_LLAMA}' run '{CAPITAL}' {' '.join(map(str, ONE))} <&-"
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert prompt_tokens(done) == plain


def test_what_is_no_utf8_names_the_byte(called: Cli) -> None:
    done = called("run", "Hi", stdin=b"abc\xff")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edge-llama: stdin: byte 3 (0xff) is not UTF-8; convert it to UTF-8\n"


def test_a_text_that_does_not_fit_is_refused_with_both_numbers(called: Cli) -> None:
    done = called("run", "Summarise", "--n-ctx", 64, stdin="word " * 500)
    assert (done.returncode, done.stdout) == (2, "")
    assert "tokens but the context holds 64" in done.stderr


@POSIX
def test_an_open_pipe_that_says_nothing_is_refused_in_the_end(environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    try:
        done = run({**environment, "EDGE_LLAMA_STDIN_SECONDS": "1.5"}, CAPITAL, stdin=reading)
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stdout) == (2, "")
    told, refused = done.stderr.splitlines()
    assert "waiting for it" in told
    assert "stdin: an open pipe that said nothing for 1.5 s; if nothing is to come, close it (< /dev/null" in refused


@POSIX
def test_a_pipe_that_began_is_read_to_its_end_however_slow(environment: dict[str, str], cli: Cli) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)  # whoever shares it may have it so

    def write() -> None:
        for line in NOTES.splitlines(keepends=True):
            os.write(writing, line.encode())
            time.sleep(2)
        os.close(writing)

    threading.Thread(target=write).start()
    done = run({**environment, "EDGE_LLAMA_STDIN_SECONDS": "1.9"}, CAPITAL, *ONE, stdin=reading)
    os.close(reading)
    assert prompt_tokens(done) == prompt_tokens(cli("run", CAPITAL, *ONE, stdin=NOTES))


@pytest.mark.parametrize("seconds", ["soon", "-1", "0", "nan"])
def test_how_long_is_a_number(called: Cli, seconds: str) -> None:
    reading, writing = os.pipe()
    command = [EDGE_LLAMA, "run", "Hi"]
    env = {**os.environ, "EDGE_LLAMA_STDIN_SECONDS": seconds}
    done = subprocess.run(command, env=env, stdin=reading, capture_output=True, text=True, check=False, timeout=120)
    os.close(reading)
    os.close(writing)
    assert done.returncode == 2
    assert "EDGE_LLAMA_STDIN_SECONDS is" in done.stderr


def test_a_terminal_is_not_read(terminal: Callable[..., Terminal]) -> None:
    running = terminal("run", CAPITAL, "--temperature", 0)
    assert running.exit_code() == 0
    assert "Tokyo" in running.written

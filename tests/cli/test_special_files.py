"""FIFOs, sockets, devices and circles of links where a file is expected: one line, exit code 2, and nobody waits."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminals import EDGE_LLAMA

Cli = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="FIFOs and sockets in folders")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """What is no file, by its name; a folder that holds itself, and links in a circle."""
    for name in ("fifo", "fifo.gguf", "fifo.onnx"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "again").symlink_to(tmp_path / "inside")
    (tmp_path / "models").mkdir()
    os.mkfifo(tmp_path / "models" / "model.gguf")
    (tmp_path / "checkpoint").mkdir()
    os.mkfifo(tmp_path / "checkpoint" / "config.json")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(before := Path.cwd())
        server.bind(os.path.relpath(tmp_path / "socket"))  # a socket's path has 107 bytes
        yield tmp_path
        os.chdir(before)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fifo", "a FIFO, not a file"),
        ("fifo.gguf", "a FIFO, not a file"),
        ("fifo.onnx", "a FIFO, not a file"),
        ("socket", "a socket, not a file"),
        ("device", "a device, not a file"),
        ("a", "a link that leads nowhere"),
        ("inside", "expected exactly one text model"),
        ("models", "model.gguf: cannot be read: a FIFO, not a file"),
    ],
)
def test_as_a_model(called: Cli, folder: Path, name: str, said: str) -> None:
    for verb in (["run", folder / name, "Hi"], ["inspect", folder / name]):
        done = called(*verb)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert said in done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fifo", "a FIFO, not a file"),
        ("fifo.gguf", "a FIFO, not a file"),
        ("socket", "a socket, not a file"),
        ("device", "a device, not a file"),
        ("a", "no such file or folder"),
        ("inside", ""),
        ("checkpoint", ""),
    ],
)
def test_as_a_source(called: Cli, folder: Path, name: str, said: str) -> None:
    done = called("convert", folder / name, folder / "out.gguf", "--quiet")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
    assert not (folder / "out.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vision", "fifo"], "a FIFO, not a file"),
        (["--vision", "fifo.onnx"], "fifo.onnx"),
        (["--tools", "fifo"], "a FIFO, not a file"),
        (["--json-schema", "fifo"], "a FIFO, not a file"),
        (["--grammar", "device"], "a device, not a file"),
        (["--chat-template", "fifo"], "a FIFO, not a file"),
    ],
)
def test_as_an_options_file(called: Cli, folder: Path, arguments: list[str], said: str) -> None:
    option, name = arguments
    done = called("run", "Hi", option, folder / name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert said in done.stderr


def test_the_pipes_of_a_shell_are_read(environment: dict[str, str]) -> None:
    """Bash's ``<(command)``: an open pipe with a name."""
    line = f"""exec '{EDGE_LLAMA}' run "Say something." --json-schema <(echo '{{"enum": [7]}}')"""
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr

"""``/copy`` goes to the system's clipboard by its own program where there is one, else through the terminal."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_llama.cli.terminal.clipboard import copy
from edge_llama.errors import OptionError

NONE = ("DISPLAY", "WAYLAND_DISPLAY", "TERMUX_VERSION", "WSL_DISTRO_NAME", "TMUX", "SSH_CONNECTION", "SSH_TTY")
TEXT = "Köln 猫\n"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a program first on the PATH that keeps its stdin in a file, and goes on in the background as xclip does."""
    for name in NONE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def write(name: str, *, code: int = 0) -> Path:
        kept = tmp_path / f"{name}.kept"
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho \"$@\" > '{kept}.options'\ncat > '{kept}'\nsleep 3 &\nexit {code}\n")
        script.chmod(0o755)
        return kept

    return write


posix = pytest.mark.skipif(sys.platform != "linux", reason="which programs there are is Linux's")


@posix
@pytest.mark.parametrize(
    ("name", "variable", "options", "encoding"),
    [
        ("wl-copy", "WAYLAND_DISPLAY", "", "utf-8"),
        ("xclip", "DISPLAY", "-selection clipboard", "utf-8"),
        ("xsel", "DISPLAY", "--clipboard --input", "utf-8"),
        ("clip.exe", "WSL_DISTRO_NAME", "", "utf-16"),
        ("termux-clipboard-set", "TERMUX_VERSION", "", "utf-8"),
    ],
)
def test_the_systems_own_program_gets_the_text(
    name: str, variable: str, options: str, encoding: str, program: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = program(name)
    monkeypatch.setenv(variable, "1")
    assert copy(TEXT) == f"the clipboard ({name})"
    assert kept.read_bytes().decode(encoding) == TEXT
    assert Path(f"{kept}.options").read_text().strip() == options


@posix
def test_through_ssh_and_where_it_fails_the_terminal_is_asked(
    program: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = program("xclip", code=1)
    monkeypatch.setenv("DISPLAY", ":9")
    with pytest.raises(OptionError, match="there is no terminal whose clipboard could be used"):
        copy(TEXT)
    kept.unlink()
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    with pytest.raises(OptionError, match="there is no terminal"):
        copy(TEXT)
    assert not kept.exists(), "the clipboard there is nobody's here"

"""What Tab offers: commands, their arguments, and paths as people write them."""

import os
from pathlib import Path

import pytest

from edge_llama.cli.chat_session.commands import COMMANDS
from edge_llama.cli.chat_session.completion import candidates
from edge_llama.cli.chat_session.pictures import unquoted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my pictures").mkdir()
    (tmp_path / "my pictures" / "Großer Fuß's 猫.png").touch()
    (tmp_path / "my notes.txt").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def completed(line: str) -> list[str]:
    return [line[: len(line) - found.replaced] + found.text for found in candidates(line, COMMANDS)]


def test_commands_by_all_their_names() -> None:
    assert completed("/re") == ["/retry", "/regenerate", "/retrieve"]
    assert completed("/set repe") == ["/set repetition_penalty"]
    assert completed("/nonsense ") == completed("What is /re") == []


@pytest.mark.skipif(os.name == "nt", reason="slashes")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("/image ", ["/image my notes.txt", "/image my pictures/"]),
        ("/image my", ["/image my notes.txt", "/image my pictures/"]),
        ("/image my p", ["/image my pictures/"]),
        ("/image my pictures/", ["/image my pictures/Großer Fuß's 猫.png"]),
        ("/image 'my", ["/image 'my notes.txt'", "/image 'my pictures/"]),
        ('/image "my pictures/Gro', ['/image "my pictures/Großer Fuß\'s 猫.png"']),
        ("/image 'my pictures/Gro", []),  # that quote is in its name
        ("/image my\\ p", ["/image my\\ pictures/"]),
        ("/image my\\ pictures/G", ["/image my\\ pictures/Großer\\ Fuß\\'s\\ 猫.png"]),
        ("/image ~/my n", ["/image ~/my notes.txt"]),
        ("/image .h", ["/image .hidden"]),
        ("/image nowhere/x", []),
        ("/image \0", []),
        ("/set grammar my n", ["/set grammar my notes.txt"]),
    ],
)
def test_paths_with_spaces_quotes_and_backslashes(typed: str, expected: list[str], folder: Path) -> None:
    assert completed(typed) == expected


@pytest.mark.skipif(os.name == "nt", reason="slashes")
@pytest.mark.parametrize("typed", ["my pictures/G", '"my pictures/G', "my\\ pictures/G", "~/my pictures/G"])
def test_what_is_completed_is_the_file(typed: str, folder: Path) -> None:
    (line,) = completed(f"/image {typed}")
    found = Path(unquoted(line.removeprefix("/image "))).expanduser()
    assert found.samefile(folder / "my pictures" / "Großer Fuß's 猫.png")

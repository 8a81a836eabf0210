"""A new file or folder takes its place complete, or what was there stays."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_llama.host.atomic import new_file, new_folder, replace_folder


def stop_after(_work: object) -> None:
    raise KeyboardInterrupt


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with new_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), new_file(path) as file:
        stop_after(file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and signals")
def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = f"""
import os, pathlib
from edge_llama.host.atomic import new_file
with new_file(pathlib.Path({str(path)!r})) as file:
    file.write(b"new" * 100_000)
    file.flush()
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("is_private", [True, False])
def test_only_a_private_file_is_its_owners_alone(is_private: bool, tmp_path: Path) -> None:
    path, usual = tmp_path / "file", tmp_path / "usual"
    with new_file(path, is_private=is_private) as file:
        file.write(b"new")
    usual.touch()
    expected = 0o600 if is_private else stat.S_IMODE(usual.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_a_folder_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("first", "second"):
        with new_folder(path) as folder:
            (folder / content).touch()
        assert [entry.name for entry in path.iterdir()] == [content]
    with pytest.raises(KeyboardInterrupt), new_folder(path) as folder:
        stop_after((folder / "third").touch())
    assert [entry.name for entry in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_can_not_be_replaced_stays(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "nowhere", tmp_path / "old", tmp_path / "aside")
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]

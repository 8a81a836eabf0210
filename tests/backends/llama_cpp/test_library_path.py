"""``LLAMA_CPP_LIB_PATH``: another libllama, tried in a child process before it is trusted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_llama.backends.llama_cpp import build_probe
from edge_llama.host.llama_library import VARIABLE, library_folder

ASK = "import edge_llama, sys\nwith edge_llama.open(sys.argv[1]) as m: print(m.chat().send(sys.argv[2]).result().text)"
WHICH = "import llama_cpp._ctypes_extensions as l, llama_cpp\nprint(llama_cpp.llama_cpp._lib._name)"


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """A copy of the installed ones, in a folder with a space and letters beyond ASCII."""
    there = library_folder()
    assert there
    return Path(shutil.copytree(there, tmp_path / "my llamä 🦙"))


def run(folder: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, VARIABLE: str(folder)}, capture_output=True, text=True, check=False
    )


def test_another_libllama_answers(libraries: Path, small_talk: Path) -> None:
    assert str(libraries) in run(libraries, WHICH).stdout
    done = run(libraries, ASK, small_talk, "What is the capital of Japan?")
    assert "Tokyo" in done.stdout, done.stderr


@pytest.mark.parametrize("damage", ["missing", "none", "aborts"])
def test_one_that_does_not_work_is_an_error_of_the_child(damage: str, libraries: Path, small_talk: Path) -> None:
    (library,) = (path for path in libraries.iterdir() if path.name in ("libllama.so", "libllama.dylib", "llama.dll"))
    library.unlink()
    if damage == "none":
        library.write_bytes(b"no library")
    elif damage == "aborts":
        code = "void __attribute__((constructor)) f(void) { __builtin_trap(); }"
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        subprocess.run([compiler, "-x", "c", "-", "-shared", "-fPIC", "-o", library], input=code, text=True, check=True)
    done = run(libraries, ASK, small_talk, "Hello!")
    assert "EngineError" in done.stderr
    assert "llama.cpp does not work here: a test decode" in done.stderr


def test_what_was_found_out_of_one_is_not_believed_of_another(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = build_probe.build()
    monkeypatch.setenv(VARIABLE, str(libraries))
    other = build_probe.build()
    assert own
    assert other
    assert other != own
    assert other["libraries"] == str(libraries)
    assert {name for name, *_ in other["files"]} == {name for name, *_ in own["files"]}

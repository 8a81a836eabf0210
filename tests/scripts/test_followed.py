"""How far a build is, by what it prints: real output of ninja, make and pip, in a log and on a terminal."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from followed import Progress, clock, doing_in, follow, steps_in

ROOT = Path(__file__).resolve().parent.parent.parent
# Of `pip wheel -v` of llama-cpp-python 0.3.36: some of its lines.
PIP = """\
Processing ./llama_cpp_python-0.3.36.tar.gz
  Installing build dependencies: started
  Collecting scikit-build-core>=0.9.2 (from scikit-build-core[pyproject]>=0.9.2)
  Preparing metadata (pyproject.toml): finished with status 'done'
Building wheels for collected packages: llama_cpp_python
  Building wheel for llama_cpp_python (pyproject.toml): started
"""
# Of llama.cpp's own build by make.
MAKE = """\
[  1%] Building C object ggml/src/CMakeFiles/ggml-base.dir/ggml.c.o
[  7%] Linking CXX shared library ../../bin/libggml-base.so
[  7%] Built target ggml-base
[ 45%] Building CXX object src/CMakeFiles/llama.dir/llama-vocab.cpp.o
"""


def heard(output: str, usual: str = "3 to 7 minutes") -> Progress:
    progress = Progress("compiling", usual, began=0.0)
    for line in output.splitlines():
        progress.hear(line)
    return progress


def test_before_anything_is_compiled_it_says_what_pip_does_and_what_is_usual() -> None:
    assert heard(PIP).text(21) == (
        "compiling: 0:21, Building wheel for llama_cpp_python (pyproject.toml): started, 3 to 7 minutes in all"
    )
    assert heard("").text(5) == "compiling: 0:05, 3 to 7 minutes in all"


def test_what_is_left_is_told_by_what_is_done() -> None:
    assert heard(PIP + MAKE).text(90) == "compiling: 45%, 1:30, about 1:50 left"
    assert heard("[3/120] cc\n").text(9) == "compiling: 3 of 120 steps, 0:09, 3 to 7 minutes in all"
    assert heard("  [60/120] /usr/bin/c++ -O3\n").text(100) == "compiling: 60 of 120 steps, 1:40, about 1:40 left"
    assert heard("[60/120] c++\n[0/1] Install the project...\n").text(100).startswith("compiling: 60 of 120 steps")


def test_other_lines_are_no_steps() -> None:
    assert [steps_in(line) for line in ("", "note: [3/4]", "[x/4]", "[3]", "[notice] pip")] == [None] * 5
    assert [doing_in(line) for line in ("  Using cached numpy.whl (9 MB)", "Requirement already satisfied")] == [
        "Using cached numpy.whl (9 MB)",
        "",
    ]
    assert clock(187.9) == "3:07"


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("ninja")), reason="needs cmake and ninja")
def test_ninjas_steps_are_found_in_what_it_prints(tmp_path: Path) -> None:
    sources = [tmp_path / f"part{number}.c" for number in range(6)]
    for number, source in enumerate(sources):
        source.write_text(f"int part{number}(void) {{ return {number}; }}\n")
    names = " ".join(source.name for source in sources)
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.21)\nproject(parts C)\nadd_library(parts STATIC {names})\n"
    )
    build = tmp_path / "build"
    subprocess.run(["cmake", "-G", "Ninja", "-S", tmp_path, "-B", build], check=True, capture_output=True)
    progress, out = Progress("compiling"), io.StringIO()
    log = tmp_path / "build.log"
    assert follow(["cmake", "--build", str(build), "--verbose"], progress, log=log, out=out) == 0
    assert (progress.done, progress.total) == (7, 7)
    assert log.read_text().count("part3.c") >= 1


BUILD = """
import sys, time
for step in range(1, 5):
    print(f"[{step}/4] cc {step}.c", flush=True)
    time.sleep(0.6)
"""


def test_in_a_log_a_line_comes_now_and_then() -> None:
    out = io.StringIO()
    assert follow([sys.executable, "-c", BUILD], Progress("compiling"), out=out, pause=0.5) == 0
    lines = out.getvalue().splitlines()
    assert len(lines) >= 3
    assert lines[0].startswith("compiling: ")
    assert "of 4 steps" in lines[-1]
    assert "\r" not in out.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_what_a_command_leaves_behind_is_not_waited_for() -> None:
    """As a compiler's cache that goes on as a server, with the command's own stdout."""
    out = io.StringIO()
    left = "import subprocess; print(subprocess.Popen(['sleep', '7']).pid)"
    assert follow([sys.executable, "-c", left], Progress("compiling"), out=out, pause=60) == 0


def test_a_command_that_fails_shows_its_last_lines_and_its_log(tmp_path: Path) -> None:
    out, code = io.StringIO(), "print('one'); print('error: no such header'); raise SystemExit(3)"
    assert follow([sys.executable, "-c", code], Progress("compiling"), out=out, log=tmp_path / "log") == 3
    assert out.getvalue() == f"one\nerror: no such header\nall that it printed: {tmp_path / 'log'}\n"
    assert (tmp_path / "log").read_text() == "one\nerror: no such header\n"


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal")
def test_on_a_terminal_it_is_one_line_that_is_cleared() -> None:
    call = f"follow([sys.executable, '-c', {BUILD!r}], Progress('building'))"
    program = f"import sys; from followed import Progress, follow; sys.exit({call})"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "COLUMNS": "30"}  # pytest-xdist sets it for its workers
    running = pexpect.spawn(sys.executable, ["-c", program], env=env, encoding="utf-8", dimensions=(20, 30))
    written = running.read()
    running.close()
    assert running.exitstatus == 0
    shown = [line for line in written.split("\r") if line.startswith("building: ")]
    assert shown
    assert all(len(line.removesuffix("\x1b[K")) < 30 for line in shown)
    assert "\n" not in written
    assert written.endswith("\r\x1b[K")

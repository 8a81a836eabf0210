"""The suite's own rules, each in a pytest of its own: see ``suite.py``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a POSIX shell and its signals")


def outcome(tests: Path, code: str, *options: str, ignored: str = "") -> subprocess.CompletedProcess[str]:
    """Run a file of tests as this suite runs, from a shell that has it ignore some signals."""
    path = tests / "test_inner.py"
    path.write_text(code)
    arguments = ["-c", ROOT / "pyproject.toml", "--rootdir", tests, "-p", "no:cacheprovider", *options, path]
    command = [sys.executable, "-m", "pytest", *arguments]
    shell = ["sh", "-c", f'trap "" {ignored}; exec "$@"' if ignored else 'exec "$@"', "sh", *map(str, command)]
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(shell, capture_output=True, text=True, check=False, env=outside, timeout=120)


def test_children_get_default_signals_also_in_the_background(tmp_path: Path) -> None:
    code = """
import signal, subprocess, sys
SIGNALS = "import signal; print([signal.getsignal(getattr(signal, 'SIG' + name)) for name in %r])"

def test_signals():
    names = ["INT", "HUP", "QUIT", "TERM"]
    told = subprocess.run([sys.executable, "-c", SIGNALS % names], capture_output=True, text=True).stdout
    assert "SIG_IGN" not in told
    assert told.count("SIG_DFL") == 3 and "default_int_handler" in told
"""
    done = outcome(tmp_path, code, ignored="INT HUP QUIT TERM")
    assert done.returncode == 0, done.stdout


def test_a_test_has_a_time_limit(tmp_path: Path) -> None:
    done = outcome(tmp_path, "import time\ndef test_it(): time.sleep(60)\n", "--timeout", "1")
    assert done.returncode == 1
    assert "Timeout (>1.0s)" in done.stdout
    assert re.search(r"(?m)^timeout = \d+ ", (ROOT / "pyproject.toml").read_text())


def test_a_process_that_is_left_running_is_an_error(tmp_path: Path) -> None:
    code = "import subprocess\ndef test_it(): globals().update(left=subprocess.Popen(['sleep', '60']))\n"
    done = outcome(tmp_path, code)
    assert done.returncode == 1
    assert "leaves processes running: ['sleep 60']" in done.stdout


def test_no_test_runs_beside_one_that_is_alone(tmp_path: Path) -> None:
    code = f"""
import json, os, time
import pytest

@pytest.mark.parametrize("number", [pytest.param(n, marks=pytest.mark.alone if n % 5 == 3 else ()) for n in range(30)])
def test_it(number):
    began = time.monotonic()
    time.sleep(0.03)
    told = [number % 5 == 3, began, time.monotonic(), len(os.sched_getaffinity(0)), os.getpid()]
    with open({str(tmp_path / "told")!r}, "a") as file:
        file.write(json.dumps(told) + "\\n")
"""
    done = outcome(tmp_path, code, "-n", "2", "--dist", "load")
    assert done.returncode == 0, done.stdout
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert len(told) == 30
    assert len({worker for *_, worker in told}) == 2
    cores = len(os.sched_getaffinity(0))
    for number, (is_alone, began, ended, seen, _) in enumerate(told):
        others = told[:number] + told[number + 1 :]
        beside = [other for other in others if other[1] < ended and began < other[2]]
        assert not (is_alone and beside)
        if os.environ.get("PYTEST_XDIST_WORKER") is None:
            assert seen == cores if is_alone else seen <= max(1, -(-cores // 2))

"""Children that meet a file first: what ends them, and that nothing of them is left."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edge_llama.backends import crash_probe

SLOW = """
import os, sys, time
from edge_llama.backends import crash_probe

def main(folder):
    crash_probe.begin()
    open(os.path.join(folder, str(os.getpid())), "w").close()
    if len(os.listdir(folder)) == 1:
        crash_probe.run("slow", folder)
    time.sleep(600)
"""


@pytest.fixture
def began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where slow children leave their process ids."""
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (tmp_path / "began").mkdir()
    return tmp_path / "began"


def test_one_that_takes_too_long_is_ended_with_its_own_children(began: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        crash_probe.run("slow", str(began), seconds=10)
    check_all_ended(began)


def test_children_end_with_a_parent_that_is_killed(began: Path) -> None:
    program = f"from edge_llama.backends import crash_probe; crash_probe.run('slow', {str(began)!r})"
    host = subprocess.Popen([sys.executable, "-c", program])
    until(lambda: len(list(began.iterdir())) == 2)
    host.kill()
    host.wait()
    check_all_ended(began)


def check_all_ended(began: Path) -> None:
    numbers = [int(file.name) for file in began.iterdir()]
    assert len(numbers) == 2
    until(lambda: not any(map(is_running, numbers)))


def until(is_so: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.05)


def is_running(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

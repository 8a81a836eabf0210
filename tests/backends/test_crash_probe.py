"""Children that meet a file first: what ends them, and that nothing of them is left."""

import os
import subprocess
import time
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


@pytest.mark.skipif(os.name == "nt", reason="POSIX process groups")
def test_one_that_takes_too_long_is_ended_with_its_own_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "began").mkdir()
    with pytest.raises(subprocess.TimeoutExpired):
        crash_probe.run("slow", str(tmp_path / "began"), seconds=5)
    begun = [int(file.name) for file in (tmp_path / "began").iterdir()]
    assert len(begun) == 2
    limit = time.monotonic() + 10
    while any(map(is_running, begun)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(is_running, begun))


def is_running(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

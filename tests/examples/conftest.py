"""The programs of examples/ as a reader starts them: in a process of its own, with the built-in model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(converted: Path) -> Start:
    """Start one from a clone's root, by its name and arguments."""

    def started(name: str, *arguments: object) -> "subprocess.Popen[str]":
        around = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "EDGE_LLAMA_MODEL": str(converted),
            "MPLBACKEND": "agg",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-W", "error", f"examples/{name}", *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=ROOT, env=around, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return started


@pytest.fixture
def run(start: Start) -> Callable[..., str]:
    """The same until its end; all that it prints."""

    def whole(name: str, *arguments: object, code: int = 0) -> str:
        with start(name, *arguments) as program:
            printed, _ = program.communicate(timeout=280)
        assert program.returncode == code, printed
        return printed

    return whole

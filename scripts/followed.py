"""A long command told while it works: how far it is, and about how long it will take. Standard library only.

On a terminal it is one line that is written again each second; elsewhere, as in a log, a line every half minute.
"""

import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO, TextIO

_NINJA = re.compile(r"\s*\[(\d+)/(\d+)\]")
_MAKE = re.compile(r"\s*\[\s*(\d+)%\]")
_PIP = re.compile(r"\s*((?:Collecting|Downloading|Using cached|Building wheel|Installing collected|Preparing) .*)")
_LEAST_SHARE = 0.1
"""From here on what is left can be told by what is done: the first files are small."""
_LAST_LINES = 40
_SECONDS_TO_READ = 5.0
"""What a command has printed is read by then; a server that it left behind may keep the pipe open."""


def steps_in(line: str) -> tuple[int, int] | None:
    """How many steps of how many a line of ninja's or make's output tells: ``[3/120]``, ``[ 45%]``; else None."""
    if found := _NINJA.match(line):
        return int(found[1]), int(found[2])
    if found := _MAKE.match(line):
        return int(found[1]), 100
    return None


def doing_in(line: str) -> str:
    """What pip says in a line that it begins: ``Collecting numpy``; else ''."""
    found = _PIP.match(line)
    return found[1].rstrip()[:70] if found else ""


@dataclass
class Progress:
    """How far a command is, by what it printed. ``usual`` says how long all of it takes, until that can be told."""

    label: str
    usual: str = ""
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    doing: str = ""

    def hear(self, line: str) -> None:
        """Take a line of output. Of several builds within one the largest counts."""
        if (steps := steps_in(line)) and steps[1] >= self.total and steps[1] > 1:
            self.done, self.total = steps
        self.doing = doing_in(line) or self.doing

    def text(self, now: float) -> str:
        """One line about it; ``now`` by time.monotonic."""
        seconds = now - self.began
        parts = [clock(seconds)]
        if self.total:
            parts.insert(0, f"{self.done}%" if self.total == 100 else f"{self.done} of {self.total} steps")
        elif self.doing:
            parts.append(self.doing)
        share = self.done / self.total if self.total else 0
        if share >= _LEAST_SHARE:
            parts.append(f"about {clock(seconds / share - seconds)} left")
        elif self.usual:
            parts.append(f"{self.usual} in all")
        return f"{self.label}: {', '.join(parts)}"


def clock(seconds: float) -> str:
    """``3:07`` minutes."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def follow(
    command: Sequence[str],
    progress: Progress,
    *,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    out: TextIO | None = None,
    pause: float = 30.0,
) -> int:
    """Run ``command``, tell of it on ``out`` (stdout), and return its exit code; what it prints goes into ``log``.

    If it fails, the last lines that it printed are shown. ``pause``: seconds between two lines where there is no
    terminal.
    """
    out = out or sys.stdout
    is_terminal = out.isatty()
    last: deque[str] = deque(maxlen=_LAST_LINES)
    # Not as a context: leaving it would close the pipe, and wait for a reader that something left behind keeps there.
    child = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert child.stdout
    reader = Thread(target=_read, args=(child.stdout, progress, last, log), daemon=True)
    reader.start()
    try:
        _tell_until_end(child, progress, out, 1.0 if is_terminal else pause)
    except BaseException:  # Ctrl-C
        child.terminate()
        child.wait()
        raise
    finally:
        reader.join(_SECONDS_TO_READ)
        if is_terminal:
            _write(out, "\r\x1b[K")
    code = child.returncode
    if code:
        _write(out, "".join(f"{line}\n" for line in list(last)))
        if log:
            _write(out, f"all that it printed: {log}\n")
    return code


def _tell_until_end(child: "subprocess.Popen[bytes]", progress: Progress, out: TextIO, pause: float) -> None:
    while True:
        try:
            child.wait(pause)
        except subprocess.TimeoutExpired:
            text = progress.text(time.monotonic())
            columns = shutil.get_terminal_size().columns
            _write(out, f"\r{text[: columns - 1]}\x1b[K" if out.isatty() else f"{text}\n")
        else:
            return


def _read(lines: IO[bytes], progress: Progress, last: "deque[str]", log: Path | None) -> None:
    kept = log.open("wb") if log else None
    with lines:
        for raw in lines:
            line = raw.decode("utf-8", "replace").rstrip()
            progress.hear(line)
            last.append(line)
            if kept:
                kept.write(raw)
    if kept:
        kept.close()


def _write(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()

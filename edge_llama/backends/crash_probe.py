"""A child process that meets a file before this one does: what ends the process in native code ends the child alone.

An engine's module has a ``main(*arguments)`` that calls :func:`begin`, does what may kill it, and calls :func:`end`
with what it found out.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_llama.errors import ArtifactError, EdgeLlamaError, EngineError
from edge_llama.host import child

_log = logging.getLogger(__name__)
_BEGAN, _SURVIVED = "began", "survived "
_SECONDS, _BYTES_PER_SECOND = 120, 10e6  # half a second and a gigabyte a second when quiet
_COMPILING = 5
"""How many times as long a device may take, whose driver compiles first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended: what it said last by :func:`end`, None if it died before; a negative ``code`` is a signal."""

    began: bool
    said: dict[str, Any] | None
    code: int
    stderr: str

    @property
    def how(self) -> str:
        """How it ended, for an error message, with its last words."""
        how = f"died of signal {-self.code}" if self.code < 0 else f"ended with {self.code}"
        lines = self.stderr.strip().splitlines()
        return f"{how}: {lines[-1]}" if lines else how


def has_children() -> bool:
    """Whether this process can start a child: see :mod:`edge_llama.host.child`."""
    return child.is_available()


def run(module: str, *arguments: str, seconds: float | None = _SECONDS) -> Outcome:
    """Call ``main(*arguments)`` of ``module`` in a child process.

    Raises OSError if none can be started, subprocess.TimeoutExpired if it takes more than ``seconds`` (None: it may
    take any time): it is ended then, with the children that it has.
    """
    read_end, write_end = os.pipe()
    try:
        done = subprocess.run(  # noqa: S603 - our own code
            child.command(module, *arguments, watch="pipe"),
            stdin=read_end,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            env=child.environment(GGML_NO_BACKTRACE="1", GOMP_SPINCOUNT="3000"),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    lines = done.stdout.splitlines()
    endings = [json.loads(line.removeprefix(_SURVIVED)) for line in lines if line.startswith(_SURVIVED)]
    said = endings[-1] if endings else None
    return Outcome(_BEGAN in lines, said, done.returncode, done.stderr)


def begin() -> None:
    """Tell the parent that this process has come so far; a death from here on is expected, and leaves no core."""
    if sys.platform != "win32":
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(f"\n{_BEGAN}", flush=True)  # noqa: T201 - the parent reads it, behind whatever native code printed


def end(said: str = "{}") -> None:
    """Tell the parent that this process survived, and what it found out: JSON."""
    print(f"\n{_SURVIVED}{said}", flush=True)  # noqa: T201


@dataclass(frozen=True, slots=True)
class CrashProbe:
    """Trial runs of model files on one engine; ``check_engine`` raises EngineError if the engine is to blame."""

    engine: str
    package: str
    check_engine: Callable[[], object] = lambda: None

    def run(self, module: str, path: Path, *arguments: str, nbytes: int = 0, device: str = "") -> dict[str, Any] | None:
        """What ``main(path, *arguments)`` of ``module`` says in a child process; None if it could not begin.

        ArtifactError about ``path`` if the child died or took too long for ``nbytes`` of weights; on a ``device`` that
        has a driver it is EngineError.
        """
        seconds = (_SECONDS + nbytes / _BYTES_PER_SECOND) * (_COMPILING if device else 1)
        try:
            outcome = run(module, str(path), *arguments, seconds=seconds)
        except OSError as error:
            _log.info("%s: not tried out: no child can be started: %s", path, error)
            return None
        except subprocess.TimeoutExpired as error:
            raise self._refused(path, f"took more than {seconds:,.0f} s", device) from error
        if not outcome.began:
            _log.info("%s: not tried out: the child did not begin: %s", path, outcome.stderr.strip()[-300:])
            return None
        if outcome.said is None:
            raise self._death(path, outcome, device)
        return outcome.said

    def _death(self, path: Path, outcome: Outcome, device: str) -> EdgeLlamaError:
        """What to say of a child that died: the file's fault, unless engine, memory or driver may be to blame."""
        if outcome.code == -9:
            return EngineError(
                f"{path}: a trial run was killed, perhaps for want of memory", remedy="close other programs"
            )
        self.check_engine()
        return self._refused(path, outcome.how, device)

    def _refused(self, path: Path, how: str, device: str) -> EdgeLlamaError:
        problem = f"{path}: {self.engine} cannot run it: a trial run in a process of its own {how}"
        if device:
            return EngineError(f"device {device}: {problem}", remedy="take the CPU, or update the device's driver")
        return ArtifactError(
            problem,
            remedy=f"the file is damaged, or this {self.engine} is not made for it: download it again, or update "
            f"{self.package}",
        )

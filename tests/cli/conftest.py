"""The command line as a user runs it: a process of its own, and what needs none within this one."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from terminals import EDGE_LLAMA, Terminal

from edge_llama.cli import main

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environment(small_talk: Path) -> dict[str, str]:
    """A plain environment in which a small model is the default, which answers what is asked here."""
    screenless = {"DISPLAY": "", "WAYLAND_DISPLAY": ""}  # /copy is for the terminal
    return {**os.environ, **screenless, "EDGE_LLAMA_MODEL": str(small_talk), "NO_COLOR": "1", "COLUMNS": "120"}


@pytest.fixture
def terminal(environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    """Start ``edge-llama`` with arguments in a terminal of its own."""
    started: list[Terminal] = []

    def start(*arguments: object, columns: int = 160, env: Mapping[str, str] = MappingProxyType({})) -> Terminal:
        started.append(Terminal(EDGE_LLAMA, arguments, {**environment, "TERM": "xterm", **env}, columns))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture(scope="session")
def cli(environment: dict[str, str]) -> Cli:
    """Run ``edge-llama`` with arguments and text on stdin; its outputs and exit code."""

    def run(
        *arguments: object, stdin: str | bytes = "", env: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.CompletedProcess[str]:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        command = [EDGE_LLAMA, *map(str, arguments)]
        around = {**environment, **env}
        done = subprocess.run(command, input=data, capture_output=True, env=around, check=False, timeout=300)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def called(environment: dict[str, str]) -> Cli:
    """The same within this process, in a fraction of the time: for what doesn't depend on having one.

    What all calls have in common (streams, signals, exit codes) is tested in processes, by ``cli``.
    """

    def run(
        *arguments: object, stdin: str | bytes = "", env: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.CompletedProcess[str]:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        streams = [io.TextIOWrapper(io.BytesIO(text), "utf-8", newline="\n") for text in (data, b"", b"")]
        command = [EDGE_LLAMA, *map(str, arguments)]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**environment, **env}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", command)
            for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, stream)
            with pytest.raises(SystemExit) as ended:
                main()
        return subprocess.CompletedProcess(command, int(ended.value.code or 0), *map(_written, streams[1:]))

    return run


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()

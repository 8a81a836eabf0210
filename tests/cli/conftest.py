"""The command line as a user runs it: a process of its own."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from terminals import EDGE_LLAMA, Terminal

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environment(converted: Path) -> dict[str, str]:
    """A plain environment in which the converted built-in model is the default."""
    return {**os.environ, "EDGE_LLAMA_MODEL": str(converted), "NO_COLOR": "1", "COLUMNS": "120"}


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

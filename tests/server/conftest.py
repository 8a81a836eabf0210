"""What the server's tests share: a real server with the built-in model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Served, serve
from talk import THINKING, talking

from edge_llama.planning.options import OpenOptions
from edge_llama.server.pool import Pool

OPTIONS: OpenOptions = {"n_ctx": 2048, "threads": 1}


@pytest.fixture(scope="session")
def served(converted: Path) -> Iterator[Served]:
    """A server with the converted built-in model, in this process: 2,048 tokens of context."""
    with serve(Pool([str(converted)], OPTIONS, isolate=False)) as server:
        yield server


@pytest.fixture(scope="module")
def talk(small_talk: Path) -> Iterator[Served]:
    """A server of the small model that answers a few questions."""
    with talking(small_talk) as server:
        yield server


@pytest.fixture(scope="module")
def thinker(small_talk: Path) -> Iterator[Served]:
    """Its prompts end with the opening of thoughts."""
    with talking(small_talk, THINKING) as server:
        yield server

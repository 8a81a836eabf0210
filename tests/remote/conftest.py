"""A small model behind our own server, the same model here, and servers that answer as a test tells them to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Scripted, scripted
from serving import Served
from talk import TEMPLATE, talking

import edge_llama

N_CTX = 1024
OPTIONS: dict[str, Any] = {"n_ctx": N_CTX, "threads": 1, "chat_template": TEMPLATE}


@pytest.fixture(scope="session")
def local(small_talk: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(small_talk, **OPTIONS) as model:
        yield model


@pytest.fixture(scope="module")
def talk(small_talk: Path) -> Iterator[Served]:
    with talking(small_talk) as served:
        yield served


@pytest.fixture(scope="module")
def remote(talk: Served, small_talk: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(f"{talk.url}/v1", tokenizer=small_talk, chat_template=TEMPLATE) as model:
        yield model


@pytest.fixture
def script(local: edge_llama.Model) -> Iterator[Scripted]:
    """A server that says it is ours."""
    with scripted(local.tokenizer) as server:
        yield server


@pytest.fixture
def asked(script: Scripted, small_talk: Path) -> Iterator[edge_llama.Model]:
    """A model on it."""
    with edge_llama.open(script.url, tokenizer=small_talk, chat_template=TEMPLATE) as model:
        yield model

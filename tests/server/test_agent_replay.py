"""A coding agent's session against the server, in both APIs, streamed and whole: nothing fails or is read twice."""

from collections.abc import Iterator, Sequence

import agent_model
import numpy as np
import pytest
from agent_replay import ANTHROPIC, OPENAI, Api, replay
from agent_session import SHORT, Request, Step, session
from numpy.typing import NDArray
from serving import Served, serve
from suite import shared

from edge_llama.server.pool import Pool

N_CTX = 8192


@pytest.fixture(scope="module")
def agent_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model with Llama 3.1's template that calls a tool in each answer."""
    path = shared(tmp_path_factory, "agent.gguf", agent_model.write)
    room = {"kv_cells": 4 * N_CTX, "cache_bytes": 1 << 30}  # for all that a session leaves, with its sub-agents
    with serve(Pool([str(path)], {"n_ctx": N_CTX, "threads": 1, **room}, isolate=False)) as server:
        yield server


@pytest.fixture(scope="module")
def steps(agent_server: Served) -> list[Step]:
    return scripted(agent_server)


@pytest.fixture(scope="module")
def counts(agent_server: Served, steps: list[Step]) -> list[int]:
    """Of the prompts' tokens, by the model itself."""
    return [agent_server.model.count_tokens(one.messages, tools=one.tools) for one in requests_of(steps)]


@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("api", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
def test_no_turn_of_an_agents_session_fails(
    agent_server: Served, steps: list[Step], counts: list[int], api: Api, is_streamed: bool
) -> None:
    turns = replay(agent_server.client, api, steps, agent_server.name, is_streamed=is_streamed)
    assert [turn.failure(count) for turn, count in zip(turns, counts, strict=True)] == [""] * len(counts)
    for turn, request in zip(turns, requests_of(steps), strict=True):
        expected = (agent_model.SAID, (agent_model.CALLED,)) if request.tools else (agent_model.PYTHONIC, ())
        assert (turn.told.text.rstrip(), turn.told.calls) == expected


def test_of_a_prompt_that_was_edited_only_what_follows_the_edit_is_read(agent_server: Served) -> None:
    """Whatever was sent before: the reminder that went, results that were shortened, sub-agents beside."""
    steps = scripted(agent_server, seed=7)
    turns = iter(replay(agent_server.client, OPENAI, steps, agent_server.name, is_streamed=True))
    seen: list[NDArray[np.int32]] = []
    for step in steps:
        prompts = [tokens_of(agent_server, request) for request in step]
        for prompt in prompts:
            known = max((shared_tokens(prompt, other) for other in seen), default=0)
            too_few = max(map(len, seen), default=0) // 32  # for which no copy is loaded
            assert next(turns).told.cached_tokens >= min(known, len(prompt) - 1) - too_few
        seen += prompts


def scripted(served: Served, seed: int = 19) -> list[Step]:
    tokenizer = served.model.tokenizer
    return session(lambda text: len(tokenizer.encode(text)), SHORT, seed)


def requests_of(steps: Sequence[Step]) -> list[Request]:
    return [request for step in steps for request in step]


def tokens_of(served: Served, request: Request) -> NDArray[np.int32]:
    return np.array(served.model.template.tokens(request.messages, tools=request.tools), np.int32)


def shared_tokens(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length

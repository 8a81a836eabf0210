"""Rows of server.py's table: a coding agent's whole session (tests/agent_session.py), beside other servers.

The same file on every side, with Llama 3's vocabulary and Llama 3.1's template; each session in a server that has just
begun.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from comparison import Result, compared, say, started
from peers import CACHE, ROOT
from rounds import interleaved
from sides import Server, edge_llama_server, llama_server, python_server

import edge_llama

sys.path.insert(0, str(ROOT / "tests"))
import agent_model
from agent_replay import ANTHROPIC, OPENAI, Api, replay
from agent_session import Step, session

SLOTS = 4
"""llama-server's own default. There each slot has the whole context to itself: in cells that all share, which are as
many as ours, it answers the sub-agents with status 500, "Context size has been exceeded"."""


@dataclass(frozen=True, slots=True)
class Session:
    """How a side did: seconds, tokens of prompts that it read, why turns failed."""

    seconds: float
    read: int
    failures: tuple[str, ...]


def agents(options: argparse.Namespace) -> list[Result]:
    path = agent_file()
    steps, counts = script(path)
    say(f"  a session of {len(counts)} requests, {sum(counts):,} tokens of prompts, the longest {max(counts):,}")
    shared = {"slots": SLOTS, "cells": agent_model.N_CTX}
    each = {"slots": SLOTS, "cells": SLOTS * agent_model.N_CTX}
    own = {"n_ctx": agent_model.N_CTX, "max_running": SLOTS, "kv_cells": agent_model.N_CTX}
    sides: dict[str, Callable[[], Server]] = {
        "edge-llama serve": lambda: edge_llama_server(path, options.threads, (), **own),
        "llama-server": lambda: llama_server(path, options.threads, "streams", **each),
        "llama-cpp-python's server": lambda: python_server(path, options.threads, (), **shared),
    }
    asked = {OPENAI: list(sides), ANTHROPIC: list(sides)[:2]}
    return [
        row
        for api, names in asked.items()
        for row in sessions(options, api, {name: sides[name] for name in names}, steps, counts)
    ]


def sessions(
    options: argparse.Namespace,
    api: Api,
    sides: Mapping[str, Callable[[], Server]],
    steps: Sequence[Step],
    counts: Sequence[int],
) -> list[Result]:
    """Whole sessions, each in a process that has just begun; the first side is ours."""
    mine, *others = sides

    def turn(name: str, _number: int) -> Session:
        return one_session(sides[name](), api, steps, counts, is_ours=name == mine)

    rounds = []
    turns = {name: partial(turn, name) for name in sides}
    for found in interleaved(options.pairs, turns):
        rounds.append(found)
        for name, one in found.items():
            say(f"  {api.path}: {name} {one.seconds:.1f} s, {one.read:,} tokens read, {len(one.failures)} turns failed")
            for failure in one.failures[:5]:
                say(f"    {failure}")
    return [row for name in others for row in session_rows(api, name, [(one[mine], one[name]) for one in rounds])]


def session_rows(api: Api, name: str, pairs: Sequence[tuple[Session, Session]]) -> list[Result]:
    what = f"an agent's session through {api.path}"
    figures = [([a.seconds for a, _ in pairs], [b.seconds for _, b in pairs], "seconds", ".1f")]
    figures += [([float(a.read) for a, _ in pairs], [float(b.read) for _, b in pairs], "prompt tokens read", ",.0f")]
    rows = [compared(f"{what}: {unit}", name, one, other, form, "<= 0.8") for one, other, unit, form in figures]
    failed = [str(max(len(pair[at].failures) for pair in pairs)) for at in (0, 1)]
    return [*rows, Result(f"{what}: failed turns", name, *failed, goal="0")]


def one_session(side: Server, api: Api, steps: Sequence[Step], counts: Sequence[int], *, is_ours: bool) -> Session:
    model = str(side.more["model"])
    # A connection for each request: llama-server closes those that rest, also under a client that is about to ask.
    limits = httpx.Limits(max_keepalive_connections=0)
    with started([side]), httpx.Client(base_url=side.url, timeout=900, limits=limits) as client:
        replay(client, api, [(steps[0][0],)], model, is_streamed=True)  # the model is loaded; the title is cheap
        before = 0 if is_ours else prompt_tokens_read(side)
        began = time.perf_counter()
        turns = replay(client, api, steps, model, is_streamed=True)
        seconds = time.perf_counter() - began
        read = sum(turn.read_tokens for turn in turns) if is_ours else prompt_tokens_read(side) - before
    # llama-cpp-python's server says in no stream how long a prompt was: of it no cut can be told.
    said = [count if turn.told.prompt_tokens >= 0 or is_ours else -1 for turn, count in zip(turns, counts, strict=True)]
    found = (turn.failure(count) for turn, count in zip(turns, said, strict=True))
    return Session(seconds, read, tuple(filter(None, found)))


def prompt_tokens_read(side: Server) -> int:
    """By the metrics of llama-server, which llama-cpp-python's server has too: without those that were cached."""
    lines = side.get("/metrics").decode().splitlines()
    return int(float(next(line.split()[-1] for line in lines if line.startswith("llamacpp:prompt_tokens_total"))))


def agent_file() -> Path:
    """With Llama 3's real vocabulary."""
    path = CACHE / "agent.gguf"
    if not path.is_file():
        import llama_models  # noqa: PLC0415 - of the tests

        ranks = (Path(llama_models.__file__).parent / "llama3" / "tokenizer.model").read_bytes()
        agent_model.write(path, ranks=ranks, answer=agent_model.JSON)
    return path


def script(path: Path) -> tuple[list[Step], list[int]]:
    """The session, and how many tokens each prompt has."""
    with edge_llama.open(path, n_ctx=agent_model.N_CTX, threads=1, kv_cells=agent_model.N_CTX) as model:
        steps = session(lambda text: len(model.tokenizer.encode(text)))
        requests = (request for step in steps for request in step)
        return steps, [model.count_tokens(request.messages, tools=request.tools) for request in requests]

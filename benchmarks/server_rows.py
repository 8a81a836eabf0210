"""Rows of server.py's table: callers through HTTP, beside llama-server; what HTTP itself costs, and a start."""

import argparse
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
from caller_rows import callers, engine_side, llama_servers
from comparison import Result, compared, say, started
from rounds import CALLERS, TOKENS, Ask, Side, Spread, interleaved, known, new, question, system_prompt, together
from sides import N_CTX, Server, edge_llama_server, llama_server

import edge_llama

MANY = 32
"""Callers to whom answers are streamed."""


def known_row(options: argparse.Namespace) -> list[Result]:
    goals = {"speed": ">= 1.0 (best of streams and unified)"}
    return callers(options, "through HTTP, prefix known", known, [ours(options), *llama_servers(options)], goals)


def new_row(options: argparse.Namespace) -> list[Result]:
    goals = {"speed": ">= 1.8 (best of streams and unified)"}
    return callers(options, "through HTTP, prefix new to each", new, [ours(options), *llama_servers(options)], goals)


def ours(options: argparse.Namespace, **more: Any) -> Server:
    """With as many cells as a peer has."""
    given = {"max_running": CALLERS, "kv_cells": CALLERS * N_CTX, **more}
    return edge_llama_server(options.model, options.threads, ends(options.model), **given)


@cache
def ends(path: Path) -> tuple[int, ...]:
    """The tokens that would end an answer."""
    with edge_llama.open(path, n_ctx=64, threads=1) as model:
        return tuple(token for token in range(model.tokenizer.n_vocab) if model.tokenizer.is_end(token))


def alone(options: argparse.Namespace) -> list[Result]:
    """One client, each time below a system prompt that nobody has used."""
    peer = llama_server(options.model, options.threads, "streams", slots=1, cells=N_CTX)
    with started([ours(options, max_running=1, kv_cells=N_CTX), peer]) as running:
        for side in running:
            side.ask(0, Ask(system_prompt(0), question(0, 0)), TOKENS)
        turns = {side.name: partial(one_answer, side) for side in running}
        rounds = []
        for found in interleaved(options.pairs, turns):
            rounds.append(found)
            say("  one client: " + ", ".join(f"{name} {speed:.1f} tokens/s" for name, (_, speed) in found.items()))
    mine, other = (side.name for side in running)
    return [
        compared(
            f"one client: {what}", other, *([one[name][at] for one in rounds] for name in (mine, other)), form, goal
        )
        for at, (what, form, goal) in enumerate(
            (("first token, 1/s", ".2f", ">= 0.97"), ("tokens/s after it", ".1f", ">= 0.97"))
        )
    ]


def one_answer(side: Side, number: int) -> tuple[float, float]:
    """First tokens in a second, and tokens/s from then on."""
    reply = side.ask(0, Ask(system_prompt(number + 1), question(number, 0)), TOKENS)
    return 1 / reply.first, (reply.tokens - 1) / (reply.seconds - reply.first)


# What HTTP costs.


def http(options: argparse.Namespace) -> list[Result]:
    """The same engine with the same work, in its caller's process and behind HTTP; a client's work is part of both."""
    given = {"max_running": MANY, "kv_cells": CALLERS * N_CTX}
    inside = engine_side(options.model, options, **given)
    served = ours(options, **given, max_queued=2 * MANY)
    with started([served, inside]):
        for side in (served, inside):
            many(side, 0)
        process = psutil.Process(served.pid)
        before, rounds = sum(process.cpu_times()[:2]), []
        for found in interleaved(options.pairs, {"http": partial(many, served), "inside": partial(many, inside)}):
            rounds.append(found)
            say(f"  {MANY} callers: {found['http']:.1f} tokens/s through HTTP, {found['inside']:.1f} inside")
        used = (sum(process.cpu_times()[:2]) - before) / (options.pairs * MANY * TOKENS)
    label = f"{MANY} callers x {TOKENS} tokens, streamed"
    speeds = ([one[name] for one in rounds] for name in ("http", "inside"))
    cost = Result(f"{label}: processor time of the HTTP process for a token", "", f"{used * 1e6:.0f} us")
    return [compared(f"{label}: tokens/s", "the engine without HTTP", *speeds, ".1f", ">= 0.95"), cost]


def many(side: Side, number: int) -> float:
    """Tokens/s of all callers below a known system prompt."""
    asked = [Ask(system_prompt(0), question(number, caller)) for caller in range(MANY)]
    return together(side, asked).speed


def start(options: argparse.Namespace) -> list[Result]:
    """From exec to the first answered ``/health``; the model is loaded meanwhile, which is not waited for."""
    seconds = []
    for _ in range(options.pairs):
        began = time.perf_counter()
        with started([ours(options)]):
            seconds.append(time.perf_counter() - began)
    say(f"  start: {seconds}")
    return [
        Result("from exec to /health, s", "", Spread.of(seconds).text(".2f"), goal="<= 2", samples={"ours": seconds})
    ]

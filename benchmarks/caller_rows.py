"""Rows of concurrency.py's table in which this engine's callers are compared with those of others."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import generation
from comparison import Result, compared, say, started
from onnx_folders import gguf
from peers import ROOT, at_commit
from rounds import CALLERS, Round, Side, interleaved, known, new
from sides import BEFORE, N_CTX, ChildSide, edge_llama_side, llama_server, openvino_side, python_server


def known_row(options: argparse.Namespace) -> list[Result]:
    goals = {"speed": ">= 1.05 (best of streams and unified)"}
    return callers(options, "prefix known", known, [ours(options), *llama_servers(options)], goals)


def new_row(options: argparse.Namespace) -> list[Result]:
    goals = {"speed": ">= 2 (best of streams and unified)", "first": "<= 0.1"}
    return callers(options, "prefix new to each caller", new, [ours(options), *llama_servers(options)], goals)


def known_peers(options: argparse.Namespace) -> list[Result]:
    return other_peers(options, "prefix known", known)


def new_peers(options: argparse.Namespace) -> list[Result]:
    return other_peers(options, "prefix new to each caller", new)


def other_peers(options: argparse.Namespace, what: str, work: Callable[[Side, int], Round]) -> list[Result]:
    goals = {"speed": ">= 1.2"}
    with started([ours(options)]) as (mine,):
        ends = mine.ready["ends"]
    python = python_server(options.model, options.threads, ends)
    found = callers(options, what, work, [ours(options), python], goals)
    q4_0 = gguf("q4_0")
    sides = [engine_side(q4_0, options), openvino_side(q4_0, options.threads)]
    return found + callers(options, f"{what}, Q4_0", work, sides, goals)


def ours(options: argparse.Namespace, **more: Any) -> ChildSide:
    """``more``: options of ``edge_llama.open``. It has as many cells as a peer."""
    return engine_side(options.model, options, **more)


def engine_side(model: Path, options: argparse.Namespace, **more: Any) -> ChildSide:
    """The same with another model."""
    given = {"max_running": CALLERS, "kv_cells": CALLERS * N_CTX, **more}
    return edge_llama_side(model, options.threads, **given)


def llama_servers(options: argparse.Namespace) -> list[Side]:
    return [llama_server(options.model, options.threads, kind) for kind in ("streams", "unified")]


def callers(
    options: argparse.Namespace,
    what: str,
    work: Callable[[Side, int], Round],
    sides: Sequence[Side],
    goals: Mapping[str, str],
) -> list[Result]:
    """Rounds of all sides in turn; the first side is ours, the others are compared with it one by one."""
    label = f"{CALLERS} callers, {what}"
    with started(sides) as running:
        for side in running:
            work(side, 0)
        rounds = []
        turns = {side.name: lambda number, side=side: work(side, number + 1) for side in running}
        for found in interleaved(options.pairs, turns):
            rounds.append(found)
            say(f"  {label}: {', '.join(f'{name} {one}' for name, one in found.items())}")
    mine, *others = rounds[0]
    figures = (("speed", "tokens/s", ".1f"), ("first", "first token, s", ".3f"))
    return [
        compared(
            f"{label}: {unit}",
            name,
            [getattr(one[mine], figure) for one in rounds],
            [getattr(one[name], figure) for one in rounds],
            form,
            goals.get(figure, ""),
        )
        for name in others
        for figure, unit, form in figures
    ]


def alone(options: argparse.Namespace) -> list[Result]:
    """Processes of their own, as in generation.py: llama-bench's context is as large as each of its tests."""

    def engine(root: Path) -> dict[str, float]:
        fixed = {"model": str(options.model), "threads": options.threads}
        fixed["script"] = str(root / "benchmarks" / "generation.py")
        environment = {"PYTHONPATH": str(root)}
        reading = generation.worker("answer", environment, **fixed, n_ctx=520, prompt=512, count=1)
        writing = generation.worker("answer", environment, **fixed, n_ctx=136, prompt=8, count=128)
        return {"pp512": reading["read"], "tg128": writing["write"]}

    def peer() -> dict[str, float]:
        read, write = generation.bench(options, "-p", 512, "-n", 128)
        return {"pp512": read, "tg128": write}

    before = at_commit(BEFORE)
    goals = {f"the engine at {BEFORE}": ">= 1.0", "llama-bench": ">= 0.97"}
    turns = {
        "ours": lambda _: engine(ROOT),
        f"the engine at {BEFORE}": lambda _: engine(before),
        "llama-bench": lambda _: peer(),
    }
    rounds = []
    for found in interleaved(options.pairs, turns):
        rounds.append(found)
        say("  alone: " + ", ".join(f"{name} {one['tg128']:.1f} tokens/s" for name, one in found.items()))
    return [
        compared(
            f"one caller: {test}, tokens/s",
            name,
            [one["ours"][test] for one in rounds],
            [one[name][test] for one in rounds],
            ".1f",
            goal,
        )
        for name, goal in goals.items()
        for test in ("tg128", "pp512")
    ]

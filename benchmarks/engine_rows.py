"""Rows of concurrency.py's table about this engine alone: what its parts cost and save."""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from caller_rows import engine_side, ours
from comparison import Result, compared, say, started
from onnx_folders import checkpoint_folder, converted
from rounds import CALLERS, Spread, asks, interleaved, known, question, system_prompt
from sides import ChildSide

SCHEMA = {
    "type": "object",
    "properties": {
        "customer_number": {"type": "integer", "minimum": 0, "maximum": 99999},
        "kind_of_request": {"enum": ["delivery", "complaint", "return", "opening hours"]},
        "is_refund_requested": {"type": "boolean"},
        "needs_a_human_colleague": {"type": "boolean"},
        "product_category": {"enum": ["furniture", "electronics", "books", "garden"]},
        "destination_city": {"type": "string", "maxLength": 20},
        "priority_of_the_answer": {"enum": ["low", "normal", "high"]},
        "follow_up_after_days": {"type": "integer", "minimum": 1, "maximum": 30},
    },
    "additionalProperties": False,
}
SCHEMA["required"] = list(SCHEMA["properties"])  # type: ignore[call-overload]
PROMPTS, LENGTH, MARGIN = 50, 64, 1e-3
"""Of ``agreement``: answers, their tokens, and the logits between two tokens that may be taken for each other."""
LINES = 56
"""Messages of ``restart``'s conversation: some 2,000 tokens."""
CANCELS = 100
"""Of each kind."""


def schema(options: argparse.Namespace) -> list[Result]:
    """Whole answers, below a prompt that is known; an answer without a schema has as many tokens as the one with."""
    results = []
    with started([ours(options)]) as (mine,):
        for count in (1, CALLERS):
            rounds = [answers_of(mine, number, count) for number in range(options.pairs + 1)][1:]
            say(f"  {count} with a schema: {', '.join(f'{a:.1f} / {b:.1f}' for a, b in rounds)} tokens/s")
            with_schema, without = zip(*rounds, strict=True)
            label = f"JSON-schema answers, {count} at once, tokens/s"
            results.append(compared(label, "unconstrained", with_schema, without, ".1f", ">= 1.2"))
    return results


def answers_of(side: ChildSide, number: int, count: int) -> tuple[float, float]:
    """Tokens/s together with the schema and without, the first of the two by turns."""
    asked = asks(system_prompt(0), number)

    def speed(tokens: Sequence[int], **more: Any) -> tuple[float, list[int]]:
        def one(at: int) -> dict[str, Any]:
            return side.call("ask", system=asked[at].system, question=asked[at].question, count=tokens[at], **more)

        found, seconds = at_once(one, count)
        return sum(answer["tokens"] for answer in found) / seconds, [answer["tokens"] for answer in found]

    _, lengths = speed([400] * count, json_schema=SCHEMA, may_end=True)  # and the prompts are known from now on
    if number % 2:
        without, _ = speed(lengths)
        return speed([400] * count, json_schema=SCHEMA, may_end=True)[0], without
    with_schema, _ = speed([400] * count, json_schema=SCHEMA, may_end=True)
    return with_schema, speed(lengths)[0]


def at_once(work: Callable[[int], dict[str, Any]], count: int) -> tuple[list[dict[str, Any]], float]:
    """What each of ``count`` threads found, and the seconds until all had."""
    started_at = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(work, range(count)))
    return found, time.perf_counter() - started_at


def restart(options: argparse.Namespace) -> list[Result]:
    """Each time in new processes: one writes the conversation to disk, one continues it, one has to read it."""
    with tempfile.TemporaryDirectory() as folder:
        turns = {
            "known": lambda number: after_restart(options, Path(folder) / str(number), number),
            "read": lambda number: after_restart(options, None, number),
        }
        rounds = list(interleaved(options.pairs, turns))
    say(f"  known on disk: {[one['known'] for one in rounds]}; read: {[one['read'] for one in rounds]}")
    times = {name: [one[name]["first"] for one in rounds] for name in turns}
    prompt, cached = (rounds[0]["known"][part] for part in ("prompt", "cached"))
    label = f"restart: first token with {cached:,} of {prompt:,} tokens known on disk, s"
    result = compared(label, "reading them", times["known"], times["read"], ".3f", "")
    faster = [read / loaded for loaded, read in zip(times["known"], times["read"], strict=True)]
    return [replace(result, ratio=f"{Spread.of(faster).text('.1f')} times as fast", goal=">= 20")]


def after_restart(options: argparse.Namespace, folder: Path | None, number: int) -> dict[str, float]:
    kept = {"cache_dir": str(folder)} if folder else {}
    side = ours(options, n_ctx=4096, kv_cells=None, **kept)
    messages = [["user" if at % 2 == 0 else "assistant", line] for at, line in enumerate(told(number))]
    if folder:
        with started([side]):
            side.call("continue", messages=messages, question="Which of these numbers was the first?")
        forget(folder)
    with started([side]):
        return dict(side.call("continue", messages=messages, question="And which was the last?"))


def told(number: int) -> list[str]:
    """A conversation of some 2,000 tokens, another for each number."""
    rng = random.Random(number)
    line = "I walked along the river, saw a heron, two boats and an old mill, and thought of number {}."
    return [line.format(rng.randrange(10**6)) for _ in range(LINES)]


def forget(folder: Path) -> None:
    """Have the next reader take the files from the disk (Linux)."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cancel(options: argparse.Namespace) -> list[Result]:
    """One of as many callers as may run is cancelled, while it writes and while its prompt is read."""
    results = []
    with started([ours(options)]) as (mine,):
        for phase, prompt in (("while it writes", 0), ("while its prompt is read", 1500)):
            found = mine.call("cancel", others=CALLERS - 1, rounds=CANCELS, prompt=prompt, seed=18)
            for what, seconds in found.items():
                who = "its caller is released" if what == "released" else "the others' next token"
                results.append(Result(f"cancel {phase}: until {who}", "", latency(seconds), samples={"ours": seconds}))
                say(f"  {results[-1].work}: {results[-1].ours}")
    return results


def latency(seconds: Sequence[float]) -> str:
    median, high = np.percentile(seconds, [50, 99]) * 1e3
    return f"median {median:.1f} ms, p99 {high:.1f} ms"


def deterministic(options: argparse.Namespace) -> list[Result]:
    sides = {"on": ours(options, deterministic=True), "off": ours(options)}
    with started(list(sides.values())) as running:
        for side in running:
            known(side, 0)
        turns = {name: lambda number, side=side: known(side, number + 1).speed for name, side in sides.items()}
        rounds = list(interleaved(options.pairs, turns))
    on, off = ([one[name] for one in rounds] for name in ("on", "off"))
    say(f"  deterministic: {on} on, {off} off")
    label = f"deterministic=True, {CALLERS} callers, prefix known, tokens/s"
    return [compared(label, "without it", on, off, ".1f", "printed")]


def agreement(options: argparse.Namespace) -> list[Result]:
    """Float weights and quantized ones; each in a model of its own, so that nothing of the other's is known."""
    path = converted("smollm2-f32.gguf", str(checkpoint_folder()), "--quant", "f32")
    return [
        # Keys and values in f32, too: in f16 the last bit of one moves logits by more than that.
        agreed("f32", engine_side(path, options, kv_format="f32"), f"equal, or margins < {MARGIN}"),
        agreed(options.model.stem, ours(options), "printed"),
    ]


def agreed(what: str, side: ChildSide, goal: str) -> Result:
    def one(number: int) -> dict[str, Any]:
        text = question(number, number)
        return side.call("ask", system="", question=text, count=LENGTH, may_end=True, logprobs=2)

    with started([side]):
        alone = [one(number) for number in range(PROMPTS)]
    with started([side]), ThreadPoolExecutor(CALLERS) as pool:
        among = list(pool.map(one, range(PROMPTS)))
    margins = [margin for pair in zip(alone, among, strict=True) if (margin := divergence(*pair)) is not None]
    ours = f"{len(margins)} of {PROMPTS} differ" + (f", margins up to {max(margins):.1g}" if margins else "")
    say(f"  {what}: {ours}")
    work = f"greedy answers of {LENGTH} tokens alone and among {CALLERS}, {what}"
    return Result(work, "alone", ours, goal=goal, samples={"margins": margins})


def divergence(alone: dict[str, Any], among: dict[str, Any]) -> float | None:
    """By how much the likelier token led where the two answers part; None if they are equal."""
    if alone["ids"] == among["ids"]:
        return None
    shorter, longer = sorted((alone, among), key=lambda answer: len(answer["ids"]))
    pairs = zip(shorter["ids"], longer["ids"], strict=False)
    at = next((place for place, (one, other) in enumerate(pairs) if one != other), len(shorter["ids"]))
    return float(longer["margins"][at])

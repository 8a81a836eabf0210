"""Lines of a table that compares this engine with others: medians of pairs, and what is started for them."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jobs import ChildError
from rounds import Spread


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the table; ``samples`` are the figures of every pair."""

    work: str
    peer: str
    ours: str
    theirs: str = ""
    ratio: str = ""
    goal: str = ""
    samples: dict[str, Any] = field(default_factory=dict)


def say(text: str) -> None:
    """Progress: the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def table(results: Sequence[Result]) -> str:
    head = "| work | against | ours | theirs | ratio | goal |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {each.work} | {each.peer} | {each.ours} | {each.theirs} | {each.ratio} | {each.goal} |" for each in results
    )


def compared(work: str, peer: str, mine: Sequence[float], theirs: Sequence[float], form: str, goal: str) -> Result:
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    texts = [Spread.of(mine).text(form), Spread.of(theirs).text(form), Spread.of(ratios).text(".2f")]
    return Result(work, peer, *texts, goal, {"ours": list(mine), "theirs": list(theirs)})


@contextmanager
def started(sides: Sequence[Any]) -> Iterator[list[Any]]:
    """The sides that start; of a peer that doesn't, why."""
    running = []
    try:
        for side in sides:
            try:
                side.start()
                running.append(side)
            except (OSError, ChildError) as error:
                if side is sides[0]:
                    raise
                say(f"  left out: {error}")
        yield running
    finally:
        for side in running:
            side.stop()

"""Rounds of callers that ask at once, and how the sides of a comparison take turns.

A side is whatever answers: this engine, an older commit of it, a peer's server. Every side gets the same system
prompts, questions and numbers of tokens, and is asked greedily, with the end of the answer forbidden.
"""

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

CALLERS = 8
TOKENS = 128
"""Of each answer."""

_RULES = (
    "Answer in the language of the question, and keep to the facts that you were given.",
    "When a customer is angry, first say that you understand, then say what will happen next.",
    "Never promise a date for a delivery unless the order system shows one.",
    "Prices are in euros and include tax; for orders from abroad the freight is added.",
    "A parcel that was damaged on the way is replaced free of charge within thirty days.",
    "Ask for the order number before you look anything up, and repeat it once.",
    "If somebody asks for legal advice, name the terms of trade and a lawyer, in that order.",
    "Opening hours are from nine to six on weekdays and from ten to two on Saturdays.",
    "Returns need the original box, the invoice and a short note about the reason.",
    "The workshop in the harbour repairs lamps, kettles and radios, but no telephones.",
    "Use short sentences, no lists, and no words that a child of twelve would not know.",
    "Whoever has waited for longer than two weeks gets a voucher of ten euros.",
    "Do not speak about other shops, their prices or their service.",
    "For a complaint about a member of staff, write down the name, the day and the hour.",
    "The garden centre sells trees from October to April and flowers all year round.",
    "Gift cards are valid for three years and can be used in every branch.",
    "When you are not sure, say so, and offer to have a colleague call back.",
    "The newsletter comes once a month; an address is removed with a single message.",
)
_THINGS = ("a lamp", "two chairs", "a radio", "an apple tree", "a kettle", "a garden bench", "a clock", "some books")
_PLACES = ("Bergen", "Porto", "Gdansk", "Trieste", "Cork", "Lyon", "Turku", "Graz")


@dataclass(frozen=True, slots=True)
class Ask:
    """What one caller sends."""

    system: str
    question: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: seconds from the asking, tokens of the answer, prompt tokens that were known (-1: not told)."""

    first: float
    tokens: int
    seconds: float
    cached: int = -1


class Side(Protocol):
    """Whatever answers."""

    name: str

    def start(self) -> None:
        """Load the model."""

    def ask(self, caller: int, ask: Ask, count: int) -> Reply:
        """One answer of ``count`` tokens, in the thread of its caller."""

    def stop(self) -> None:
        """Free all that it holds."""


@dataclass(frozen=True, slots=True)
class Round:
    """All callers' answers: tokens/s together, median seconds to the first token, prompt tokens known on average."""

    speed: float
    first: float
    cached: float

    def __str__(self) -> str:
        known_tokens = f", {self.cached:.0f} tokens known" if self.cached >= 0 else ""
        return f"{self.speed:.1f} tokens/s after {self.first:.2f} s{known_tokens}"


def system_prompt(number: int) -> str:
    """Some 550 tokens, other ones from the first sentence on for each number."""
    rng = np.random.default_rng(number)
    rules = [f"{at}. {_RULES[rule]}" for at, rule in enumerate(rng.permutation([*range(len(_RULES))] * 2)[:25], 1)]
    return f"Handbook {number} of the shop in {_PLACES[number % 8]}. " + " ".join(rules)


def asks(system: str, number: int) -> list[Ask]:
    """A question of each caller, others for each number."""
    return [Ask(system, question(number, caller)) for caller in range(CALLERS)]


def question(number: int, caller: int) -> str:
    rng = np.random.default_rng([number, caller])
    thing, place = _THINGS[rng.integers(8)], _PLACES[rng.integers(8)]
    order = int(rng.integers(10_000, 99_999))
    return f"My order {order}: I bought {thing} and had it sent to {place}. Tell me at length what happens next."


def known(side: Side, number: int) -> Round:
    """Every caller has asked below this system prompt before."""
    return together(side, asks(system_prompt(0), number))


def new(side: Side, number: int) -> Round:
    """One caller has asked below this system prompt, the others come to it; that one's time isn't counted."""
    system = system_prompt(number)
    side.ask(CALLERS, Ask(system, question(number, CALLERS)), 1)
    return together(side, asks(system, number))


def together(side: Side, asked: Sequence[Ask], count: int = TOKENS) -> Round:
    """All at once, each in a thread."""
    gate = threading.Barrier(len(asked) + 1)

    def one(caller: int) -> Reply:
        gate.wait()
        return side.ask(caller, asked[caller], count)

    with ThreadPoolExecutor(len(asked)) as pool:
        running = [pool.submit(one, caller) for caller in range(len(asked))]
        gate.wait()
        started = time.perf_counter()
        replies = [each.result() for each in running]
        seconds = time.perf_counter() - started
    if short := [reply.tokens for reply in replies if reply.tokens < count]:
        sys.exit(f"{side.name}: answers of {short} tokens instead of {count}")
    return Round(
        sum(reply.tokens for reply in replies) / seconds,
        statistics.median(reply.first for reply in replies),
        statistics.mean(reply.cached for reply in replies),
    )


T = TypeVar("T")


def interleaved(pairs: int, sides: Mapping[str, Callable[[int], T]]) -> Iterator[dict[str, T]]:
    """Each side's figure, ``pairs`` times: A B, B A, so that what changes with time meets all of them."""
    for number in range(pairs):
        names = list(sides)
        found = {name: sides[name](number) for name in (reversed(names) if number % 2 else names)}
        yield {name: found[name] for name in names}


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure's median over the pairs, and its range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str) -> str:
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"

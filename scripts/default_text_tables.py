"""Worked calculations and tables among the default texts: numbers drawn by a fixed rule, results that are right."""

from collections.abc import Iterator
from fractions import Fraction


class _Numbers:
    """The same draws on every machine and Python: a linear congruence (Knuth's MMIX)."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def among(self, low: int, high: int) -> int:
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return low + (self._state >> 33) % (high - low + 1)

    def one_of(self, words: tuple[str, ...]) -> str:
        return words[self.among(0, len(words) - 1)]


def calibration() -> str:
    """Long multiplication, division, percentages, and a Markdown table of orders with its sum."""
    draw = _Numbers(24)
    parts = ["# Worked arithmetic", *(_product(draw) for _ in range(7)), *(_division(draw) for _ in range(7))]
    parts += [_discount(draw) for _ in range(5)]
    return "\n\n".join([*parts, "# Orders", "\n".join(_orders(draw, 22))]) + "\n"


def evaluation() -> str:
    """Linear equations, fractions, and measurements as CSV with their means."""
    draw = _Numbers(1871)
    parts = ["Exercises with solutions", *(_equation(draw) for _ in range(8)), *(_fractions(draw) for _ in range(8))]
    return "\n\n".join([*parts, "\n".join(_measurements(draw, 26))]) + "\n"


def _product(draw: _Numbers) -> str:
    a, b = draw.among(112, 989), 10 * draw.among(1, 9) + draw.among(1, 9)
    tens, ones = b // 10 * 10, b % 10
    return (
        f"{a} * {b} = {a} * {tens} + {a} * {ones}\n"
        f"  {a} * {tens} = {a * tens}\n  {a} * {ones} = {a * ones}\n  {a * tens} + {a * ones} = {a * b}"
    )


def _division(draw: _Numbers) -> str:
    a, b = draw.among(1_000, 99_999), draw.among(7, 96)
    whole, rest = divmod(a, b)
    return f"{a} : {b} = {whole}, remainder {rest}, since {whole} * {b} = {whole * b} and {a} - {whole * b} = {rest}."


def _discount(draw: _Numbers) -> str:
    what = draw.one_of(("A bicycle", "A winter coat", "A lamp", "A kettle", "A rucksack", "An armchair"))
    price, percent = draw.among(4, 90) * 10, draw.among(1, 15) * 5
    off = price * percent / 100
    worked = f"{price} * 0.{percent:02} = {off:.2f}, so it is {price - off:.2f} now."
    return f"{what} costs {price}.00 and is reduced by {percent} %. {worked}"


def _orders(draw: _Numbers, rows: int) -> Iterator[str]:
    yield "| no. | article | pieces | each | together |"
    yield "|----:|:--------|-------:|-----:|---------:|"
    total = 0
    for row in range(1, rows + 1):
        article = draw.one_of(("bolt M6", "bolt M8", "washer", "hinge", "bracket", "wood screw", "hook", "cable tie"))
        pieces, cents = draw.among(1, 60) * 5, draw.among(3, 249)
        total += pieces * cents
        yield f"| {row} | {article} | {pieces} | {cents / 100:.2f} | {pieces * cents / 100:,.2f} |"
    yield f"| | total | | | {total / 100:,.2f} |"


def _equation(draw: _Numbers) -> str:
    x, a, c = draw.among(-12, 12), draw.among(5, 14), draw.among(1, 4)
    b = draw.among(1, 30)
    d = a * x + b - c * x
    return f"{a}x + {b} = {c}x {d:+d}\n=> {a - c}x = {d - b}\n=> x = {x}      check: {a * x + b} = {c * x + d}"


def _fractions(draw: _Numbers) -> str:
    p, q = (Fraction(draw.among(1, 11), draw.among(3, 12)) for _ in range(2))
    return rf"$$\frac{{{p.numerator}}}{{{p.denominator}}} + \frac{{{q.numerator}}}{{{q.denominator}}} = " + _as_tex(
        p + q
    )


def _as_tex(value: Fraction) -> str:
    return f"{value.numerator}$$" if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}$$"


def _measurements(draw: _Numbers, rows: int) -> Iterator[str]:
    yield "date,station,temperature_c,humidity_percent,wind_m_s"
    temperatures = []
    for row in range(rows):
        temperatures.append(Fraction(draw.among(-80, 240), 10))
        station = draw.one_of(("harbour", "airfield", "ridge", "valley"))
        humidity, wind = draw.among(31, 99), draw.among(0, 140) / 10
        yield f"2024-03-{row + 1:02},{station},{float(temperatures[-1]):.1f},{humidity},{wind:.1f}"
    lowest, mean, highest = (float(n) for n in (min(temperatures), sum(temperatures) / rows, max(temperatures)))
    yield f"# mean temperature: {mean:.2f} over {rows} days, range {lowest:.1f} to {highest:.1f}"

"""What ``edge-llama evaluate`` shows people: a row for all, then for each domain and text."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edge_llama.errors import printable
from edge_llama.fidelity.bootstrap import Estimate
from edge_llama.fidelity.comparison import Comparison, Summary
from edge_llama.fidelity.compatible import Statistics

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 120
_Column = tuple[str, Callable[[Summary], str]]
"""Its head, and what stands in it."""


def show(compared: Comparison, statistics: Statistics | None, setup: str) -> None:
    """Print the tables, and below them what llama-perplexity would print if ``statistics`` are given."""
    from rich.console import Console  # noqa: PLC0415 - loads what only people need

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False)
    against = f" against {compared.reference}" if compared.reference else ""
    console.print(printable(f"{compared.model}{against}"), soft_wrap=True)
    console.print(printable(setup), soft_wrap=True)
    found = rows(compared)
    if not compared.reference:
        _print(console, found, _LIKELIHOOD[:2])
        return
    _print(console, found, _LIKELIHOOD)
    console.print("\nKL(reference || model), nats:")
    _print(console, found, _DIVERGENCE)
    console.print("± is 95 % by a block bootstrap")
    if statistics:
        console.print("\nAs llama-perplexity --kl-divergence computes it, its reference in 16 bits:")
        console.print("\n".join(statistics.printed()), soft_wrap=True)


def _print(console: "Console", found: Mapping[str, Summary], columns: Sequence[_Column]) -> None:
    from rich.table import Table  # noqa: PLC0415 - likewise

    table = Table(box=None)
    table.add_column("text", min_width=12, overflow="fold")
    for column, _ in columns:
        table.add_column(column, justify="right")
    for name, summary in found.items():
        table.add_row(printable(name), *(cell(summary) for _, cell in columns))
    console.print(table)


def rows(compared: Comparison) -> dict[str, Summary]:
    """All, then each domain, below it its texts if there are several; names of texts alone if all are of one domain."""
    domains, texts = compared.by_domain(), compared.by_text()
    found = {"all": compared.summary()}
    for domain, whole in domains.items():
        of_domain = [text for text, own in zip(compared.texts, compared.domains, strict=True) if own == domain]
        if len(domains) > 1:
            found[domain] = whole
        if len(of_domain) > 1:
            found |= {f"  {text}": texts[text] for text in of_domain}
    return found


def _with_error(of: Estimate | None, digits: int, factor: float = 1) -> str:
    if of is None:
        return ""
    error = "" if math.isnan(of.half) else f" ± {factor * of.half:.{digits}f}"
    return f"{factor * of.value:,.{digits}f}{error}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


_LIKELIHOOD: tuple[_Column, ...] = (
    ("tokens", lambda each: f"{each.n_tokens:,}"),
    ("perplexity", lambda each: _with_error(each.perplexity, 3)),
    ("reference", lambda each: _with_error(each.perplexity_reference, 3)),
    ("ratio", lambda each: _with_error(each.ratio, 4)),
    ("same top-1 %", lambda each: _with_error(each.top1, 2, 100)),
)
_DIVERGENCE: tuple[_Column, ...] = (
    ("mean", lambda each: _with_error(each.kl, 6)),
    ("median", lambda each: _plain(each.kl_median)),
    ("99 %", lambda each: _plain(each.kl_99)),
    ("99.9 %", lambda each: _plain(each.kl_999)),
    ("largest", lambda each: _plain(each.kl_max)),
)

"""What ``edge-llama evaluate`` shows people: a row for all, then for each domain and text."""

import math
import sys

from edge_llama.errors import printable
from edge_llama.fidelity.bootstrap import Estimate
from edge_llama.fidelity.comparison import Comparison, Summary
from edge_llama.fidelity.compatible import Statistics

_WIDTH = 140
_LONGEST = 32


def show(compared: Comparison, statistics: Statistics | None, setup: str) -> None:
    """Print the table, and below it what llama-perplexity would print if ``statistics`` are given."""
    from rich.console import Console  # noqa: PLC0415 - loads what only people need
    from rich.table import Table  # noqa: PLC0415

    columns = _COLUMNS if compared.reference else _COLUMNS[:2]
    table = Table("text", box=None)
    for column, _ in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, summary in rows(compared).items():
        table.add_row(printable(name)[:_LONGEST], *(cell(summary) for _, cell in columns))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False)
    against = f" against {compared.reference}" if compared.reference else ""
    console.print(printable(f"{compared.model}{against}"))
    console.print(printable(setup))
    console.print(table)
    if compared.reference:
        console.print("KL(reference || model) in nats; ± and bounds: 95 % by a block bootstrap")
    if statistics:
        console.print("\nAs llama-perplexity --kl-divergence computes it, its reference in 16 bits:")
        console.print("\n".join(statistics.printed()))


def rows(compared: Comparison) -> dict[str, Summary]:
    """All, then domains if there are several, then texts if they are not the domains."""
    domains, texts = compared.by_domain(), compared.by_text()
    found = {"all": compared.summary()}
    if len(domains) > 1:
        found |= domains
    if len(texts) > 1 and len(texts) != len(domains):
        found |= {f"  {name}": each for name, each in texts.items()}
    return found


def _with_error(of: Estimate | None, digits: int, factor: float = 1) -> str:
    if of is None:
        return ""
    error = "" if math.isnan(of.half) else f" ± {factor * of.half:.{digits}f}"
    return f"{factor * of.value:,.{digits}f}{error}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


_COLUMNS = (
    ("tokens", lambda each: f"{each.n_tokens:,}"),
    ("perplexity", lambda each: _with_error(each.perplexity, 3)),
    ("reference", lambda each: _with_error(each.perplexity_reference, 3)),
    ("ratio", lambda each: _with_error(each.ratio, 4)),
    ("mean KL", lambda each: _with_error(each.kl, 5)),
    ("median", lambda each: _plain(each.kl_median)),
    ("99 %", lambda each: _plain(each.kl_99)),
    ("99.9 %", lambda each: _plain(each.kl_999)),
    ("largest", lambda each: _plain(each.kl_max)),
    ("same top-1 %", lambda each: _with_error(each.top1, 2, 100)),
)

"""What ``edge-llama evaluate --plot`` draws: how divergences are spread, by position in the chunk, and by layer.

A page of HTML stands alone, its drawings are SVG within it; PNG files are drawn by matplotlib.
"""

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.cli import output_file
from edge_llama.errors import InputError, OptionError
from edge_llama.fidelity.comparison import Comparison

_KINDS = (".html", ".png")
_LEAST = 1e-8
"""Nats that a picture can show; what is less stands with it."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 760, 300, 80, 50, 40
_COLOUR = "#3b6ea5"
_STYLE = "body{font:16px sans-serif;max-width:800px;margin:2em auto;padding:0 1em}svg{width:100%;height:auto}"


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """Bars side by side."""

    title: str
    across: str
    up: str
    edges: NDArray[np.float64]
    """Where bars begin and end, ``(n + 1,)``; exponents of ten if ``is_log``."""
    heights: NDArray[np.float64]
    """``(n,)``."""
    bounds: NDArray[np.float64] | None = None
    """From where to where a height may be, ``(n, 2)``."""
    is_log: bool = False


def check(path: Path, *, force: bool) -> None:
    """OptionError for another kind of file, OutputError if it can't be written, InputError without matplotlib."""
    if path.suffix.lower() not in _KINDS:
        raise OptionError(f"--plot {path}: unknown kind of file", remedy=f"end its name by {' or '.join(_KINDS)}")
    output_file.check(path, force=force)
    if path.suffix.lower() == ".png":
        _matplotlib()


def draw(path: Path, compared: Comparison, layers: Sequence[float] = ()) -> None:
    """Write the picture, complete or not at all; ``layers`` are errors of each. OutputError if it can't be written."""
    charts = [_spread(compared), _by_position(compared), *([_by_layer(layers)] if layers else [])]
    title = f"{compared.model} against {compared.reference}"
    content = _page(title, charts).encode() if path.suffix.lower() == ".html" else _png(title, charts)
    output_file.write(path, content)


def _spread(compared: Comparison) -> Chart:
    kl = compared.scores.kl
    assert kl is not None  # noqa: S101 - the caller's check
    exponents = np.log10(np.maximum(kl, _LEAST))
    low, high = np.floor(exponents.min()), max(np.ceil(exponents.max()), np.floor(exponents.min()) + 1)
    counts, edges = np.histogram(exponents, bins=int(8 * (high - low)), range=(low, high))
    share = 100 * counts / len(kl)
    return Chart(
        "How KL divergence is spread", "KL(reference || model), nats", "% of tokens", edges, share, is_log=True
    )


def _by_position(compared: Comparison) -> Chart:
    found = compared.by_position(16)
    means = [summary.kl for summary in found.values() if summary.kl]
    edges = np.array([start for start, _ in found] + [list(found)[-1][1]], np.float64)
    heights = np.array([mean.value for mean in means])
    bounds = np.array([(mean.low, mean.high) for mean in means])
    return Chart("KL divergence by position", "tokens before, in the chunk", "mean KL, nats", edges, heights, bounds)


def _by_layer(layers: Sequence[float]) -> Chart:
    edges = np.arange(len(layers) + 1, dtype=np.float64)
    return Chart("Error by layer, as its certificate says", "layer", "error", edges, np.array(layers))


def _ticks(chart: Chart) -> list[tuple[float, str]]:
    """Places on the axis across, with what stands there."""
    low, high = chart.edges[0], chart.edges[-1]
    if chart.is_log:
        return [(float(at), f"1e{at:.0f}") for at in np.arange(np.ceil(low), high + 0.5)]
    return [(float(at), f"{at:,.0f}") for at in np.unique(np.linspace(low, high, 9).round())]


def _top(chart: Chart) -> float:
    highest = chart.heights if chart.bounds is None else np.fmax(chart.heights, chart.bounds[:, 1])
    return float(highest.max()) * 1.05 or 1.0


def _page(title: str, charts: list[Chart]) -> str:
    drawn = "\n".join(f"<h2>{html.escape(chart.title)}</h2>\n{_svg(chart)}" for chart in charts)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = f"<h1>{html.escape(title)}</h1>\n{drawn}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _svg(chart: Chart) -> str:
    top = _top(chart)
    low, high = chart.edges[0], chart.edges[-1]

    def x(at: float) -> float:
        return float(_LEFT + (at - low) / (high - low) * (_WIDTH - _LEFT - 20))

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _BOTTOM - _TOP)

    parts = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>'
        for v in np.linspace(0, top / 1.05, 5)
    ]
    for at, height in enumerate(chart.heights):
        sides = x(chart.edges[at]), x(chart.edges[at + 1])
        bounds = None if chart.bounds is None else [y(bound) for bound in chart.bounds[at]]
        parts.append(_bar(*sides, y(0), y(height), bounds, f"{height:.4g}"))
    parts += [
        f'<text x="{x(at):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>'
        for at, label in _ticks(chart)
    ]
    across = (
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(chart.across)}</text>'
    )
    up = f'<text x="{_LEFT}" y="{_TOP - 16}">{html.escape(chart.up)}</text>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="13" role="img">{"".join(parts)}{across}{up}</svg>'


def _bar(left: float, right: float, foot: float, top: float, bounds: list[float] | None, told: str) -> str:
    """A bar, which tells its height to who points at it, and between which bounds it is."""
    drawn = (
        f'<rect x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
        f'height="{foot - top:.1f}" fill="{_COLOUR}"><title>{told}</title></rect>'
    )
    if bounds is None or any(map(math.isnan, bounds)):
        return drawn
    middle, (least, most) = (left + right) / 2, bounds
    return f'{drawn}<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{least:.1f}" y2="{most:.1f}" stroke="#000"/>'


def _matplotlib() -> Any:
    try:
        import matplotlib.figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "drawing a PNG needs the package matplotlib",
            remedy='pip install "edge-llama[plot]", or give a name that ends by .html',
        ) from error
    return matplotlib.figure


def _png(title: str, charts: list[Chart]) -> bytes:
    figure: Any = _matplotlib().Figure(figsize=(9, 3.6 * len(charts)), layout="constrained")
    figure.suptitle(title)
    for chart, axes in zip(charts, np.atleast_1d(figure.subplots(len(charts))), strict=True):
        widths = np.diff(chart.edges)
        axes.bar(chart.edges[:-1], chart.heights, widths * 0.95, align="edge", color=_COLOUR)
        if chart.bounds is not None:
            axes.vlines(chart.edges[:-1] + widths / 2, chart.bounds[:, 0], chart.bounds[:, 1], color="black")
        axes.set(title=chart.title, xlabel=chart.across, ylabel=chart.up, ylim=(0, _top(chart)))
        places, labels = zip(*_ticks(chart), strict=True)
        axes.set_xticks(places, labels)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()

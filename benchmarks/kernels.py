"""Quantization kernels on one core, compiled against ggml's: weights a second, calls interleaved.

.venv/bin/python benchmarks/kernels.py [--rounds 15] [q4_k q6_k ...]
.venv/bin/python benchmarks/kernels.py --reading     # numbers as they are stored to float32
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import BF16, F16, FORMATS, Format
from quant import compiled
from quant.dequantize import dequantize_by_numpy
from quant.floats import FLOATS, widen
from quant.reference import ggml

ROWS, COLUMNS = 64, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=compiled.NAMES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--reading", action="store_true", help="what turns stored numbers into float32")
    options = parser.parse_args()
    if options.reading:
        reading(options.rounds)
        return
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((ROWS, COLUMNS)) * 0.02).astype(np.float32)
    importance = rng.random(COLUMNS).astype(np.float32)
    print("millions of weights a second, one thread; ratio: median (least to most)")
    for name in options.names:
        for given in (None, importance):
            kernel = compiled.load(name, has_importance=given is not None)
            if kernel is None:
                print(f"{name}: ggml's kernel has to do here")
                continue
            format_ = FORMATS[name]
            pairs = [
                (seconds(lambda: kernel.quantize(rows, given)), seconds(lambda: ggml.quantize(rows, format_, given)))  # noqa: B023
                for _ in range(options.rounds)
            ]
            report(f"{name:7}{'' if given is None else 'importance':11}", pairs)


def reading(rounds: int) -> None:
    """What dequantizes: numpy and, of half floats, compiled code; ggml's C beside them."""
    rows = (np.random.default_rng(0).standard_normal((ROWS, COLUMNS)) * 0.02).astype(np.float32)
    compiled_rows = compiled.load_rows()
    wide = np.empty(ROWS * COLUMNS, np.float32)
    print("millions of weights a second, one thread, median")
    for format_ in (F16, BF16, *(FORMATS[name] for name in compiled.NAMES)):
        raw = ggml.quantize(rows, format_) if format_.is_quantized else _halves(rows, format_)
        ways = {
            "ggml": lambda raw=raw, format_=format_: ggml.dequantize(raw, format_),
            "numpy": lambda raw=raw, format_=format_: (widen if format_ in FLOATS else dequantize_by_numpy)(
                raw, format_
            ),
        }
        if format_ is BF16:
            ways["compiled"] = lambda raw=raw: compiled_rows.widen(
                raw.view(np.uint16).reshape(-1), wide.view(np.uint32)
            )
        elif format_ is F16:
            ways["compiled"] = lambda raw=raw: compiled_rows.widen_half(raw.view(np.uint16).reshape(-1), wide)
        rates = {name: rows_per_second(tuple(seconds(way) for _ in range(rounds))) for name, way in ways.items()}
        print(f"  {format_.name:8}", ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()), flush=True)


def _halves(rows: NDArray[np.float32], format_: Format) -> NDArray[np.uint8]:
    if format_ is F16:
        return rows.astype(np.float16).view(np.uint8)
    return np.ascontiguousarray(rows.view(np.uint16)[:, 1::2]).view(np.uint8)


def report(what: str, pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (rows_per_second(column) for column in zip(*pairs, strict=True))
    ratios = [ggml_ / mine for mine, ggml_ in pairs]
    print(
        f"  {what} ours {ours:6.1f}  ggml {theirs:6.1f}  "
        f"ratio {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def rows_per_second(seconds: tuple[float, ...]) -> float:
    return ROWS * COLUMNS / statistics.median(seconds) / 1e6


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

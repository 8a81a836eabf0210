"""Quantization kernels on one core, compiled against ggml's: weights a second, calls interleaved.

.venv/bin/python benchmarks/kernels.py [--rounds 15] [q4_k q6_k ...]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from edge_llama.formats import FORMATS
from quant import compiled, ggml

ROWS, COLUMNS = 64, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=compiled.NAMES)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
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

"""Importance matrices beside llama-imatrix: the same file, text and chunks; values, seconds, peak memory.

``python benchmarks/importance.py MODEL.gguf TEXT [--n-ctx 512] [--batch 2048]``: builds llama-imatrix once. ``--batch``
is the program's ``-b``: with the length of a chunk it reads one at a time, as we do.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peers import program, program_environment

from edge_llama.host.devices import cpu_threads
from quant.importance import Importance, read_importance


def main() -> None:
    """Run both, one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2048)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.gguf", Path(folder) / "theirs.gguf"
        own = ["calibrate", asked.model, asked.text, ours, "--for", "importance", "--n-ctx", asked.n_ctx]
        peer = [program("llama-imatrix"), "-m", asked.model, "-f", asked.text, "-o", theirs, "-c", asked.n_ctx]
        peer += ["-b", asked.batch, "--no-ppl", "-t", cpu_threads(), "-ngl", 0]
        _run("llama-imatrix", peer, program_environment())
        _run("edge-llama", [sys.executable, "-m", "edge_llama", *own, "--device", "cpu", "--quiet"], {})
        _compare(read_importance(ours), read_importance(theirs))


def _run(name: str, command: list[object], environment: dict[str, str]) -> None:
    """Run it to its end, and print its time and its peak of memory."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen(
            list(map(str, command)), env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=told
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            told.seek(0)
            sys.exit(f"{name} failed:\n{told.read().decode(errors='replace')[-2000:]}")
    print(f"{name:14} {time.perf_counter() - began:8.1f} s, peak {usage.ru_maxrss / 1024:,.0f} MiB")


def _compare(ours: Importance, theirs: Importance) -> None:
    assert ours.entries.keys() == theirs.entries.keys(), ours.entries.keys() ^ theirs.entries.keys()
    worst: dict[str, float] = {}
    for name, (sums, counts) in theirs.entries.items():
        assert np.array_equal(counts, ours.entries[name].counts), name
        error = np.abs(ours.entries[name].sums.astype(np.float64) - sums) / np.maximum(sums, 1e-30)
        worst[name] = float(error.max())
    tokens = max(int(counts.max()) for _, counts in theirs.entries.values())
    print(f"{len(worst)} matrices, counts equal; a sum of {tokens:,} float32 may be off by {tokens * 2.0**-24:.1e}")
    for name in sorted(worst, key=lambda each: worst[each])[-3:]:
        print(f"largest relative difference {worst[name]:.1e} in {name}")


if __name__ == "__main__":
    main()

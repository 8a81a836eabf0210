"""Many callers on one model, beside peers that serve many; pairs interleaved A B, B A, in the same run.

    .venv/bin/python benchmarks/concurrency.py                # every row of the table
    .venv/bin/python benchmarks/concurrency.py known new      # some rows; the names are below
    .venv/bin/python benchmarks/concurrency.py --model synthetic known new alone

known          8 callers x 128 tokens below a system prompt of some 550 tokens that each of them has used before
new            the same, below one that a single other caller has used: known to the engine, new to each caller
known-peers    as known, against llama-cpp-python's example server and openvino-genai's batching pipeline
new-peers      as new, against the same two
alone          one caller: pp512 and tg128 against llama-bench and against the engine that served callers in turn
schema         JSON-schema answers against unconstrained ones
restart        the first token of a conversation known on disk after a restart, against reading it
cancel         time until a caller that cancels is released, and until the others' next token
deterministic  what deterministic=True costs
agreement      how often greedy answers differ, alone and among 8

Options: --pairs 7, --threads 2 (of every side), --model smollm2|synthetic|FILE, --json. The peers: llama-server in
streams and in unified cells without flash attention (its defaults are slower); they are built or installed on first use
(sides.py). openvino-genai reads Q4_0 alone, so beside it both read that. What counts is the median of the pairs'
ratios; ranges are in brackets. Progress goes to stderr, the table to stdout.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import caller_rows
import engine_rows
from comparison import Result, say, table
from conversion import synthetic
from onnx_folders import converted

from edge_llama.backends.towers import locate
from edge_llama.host import devices


def main(document: str | None, rows: Mapping[str, Callable[[argparse.Namespace], list[Result]]]) -> None:
    """Print the table of those of ``rows`` that are asked for; ``document`` is the help."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=devices.cpu_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(rows):
        parser.error(f"no row {', '.join(sorted(unknown))}: there are {', '.join(rows)}")
    options.model = model_file(options.model)
    say(f"{options.model}, {devices.cpu().name}, {options.pairs} pairs, {options.threads} threads, load {load():.1f}")
    results = [result for row in options.rows or rows for result in rows[row](options)]
    print(json.dumps([asdict(result) for result in results], indent=1) if options.json else table(results))


def model_file(name: str) -> Path:
    if name == "synthetic":
        return converted("synthetic-16-q4_k_m.gguf", str(synthetic(16)), "--quant", "q4_k_m")
    return Path(locate() if name == "smollm2" else name)


def load() -> float:
    return os.getloadavg()[0]


ROWS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    "known": caller_rows.known_row,
    "new": caller_rows.new_row,
    "known-peers": caller_rows.known_peers,
    "new-peers": caller_rows.new_peers,
    "alone": caller_rows.alone,
    "schema": engine_rows.schema,
    "restart": engine_rows.restart,
    "cancel": engine_rows.cancel,
    "deterministic": engine_rows.deterministic,
    "agreement": engine_rows.agreement,
}

if __name__ == "__main__":
    main(__doc__, ROWS)

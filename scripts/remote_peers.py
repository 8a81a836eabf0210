#!/usr/bin/env python3
"""A model on a server, asked as `edge_llama.open(URL)` asks it: what holds of this server, as a table.

usage: .venv/bin/python scripts/remote_peers.py URL --tokenizer FOLDER|FILE [--local MODEL] [--kv f32]
       .venv/bin/python scripts/remote_peers.py --start llama-server|edge-llama --local MODEL.gguf

--local is the same model here, to compare answers and log-probabilities with. --start runs a server of it: llama.cpp's,
built of the source that llama-cpp-python comes with, or our own. Exit code 1 if a check fails.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from remote_checks import CHECKS, Peer

import edge_llama

ROOT = Path(__file__).resolve().parent.parent
N_CTX = 1024
_SERVE = "from edge_llama.cli import main; main()"


def main() -> None:
    asked = arguments()
    with ExitStack() as stack:
        url = stack.enter_context(started(asked.start, asked.local)) if asked.start else asked.url
        tokenizer = asked.tokenizer or asked.local
        remote = stack.enter_context(edge_llama.open(url, tokenizer=tokenizer, remote_model=asked.remote_model))
        exact = {"n_ctx": remote.n_ctx, "threads": 1, "kv_format": asked.kv}
        local = asked.local and stack.enter_context(edge_llama.open(asked.local, **exact))
        print(f"{remote.artifact.name}: {remote.context}; {remote.placement}\n")
        sys.exit(0 if holds(Peer(remote, local or None)) else 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--tokenizer")
    parser.add_argument("--remote-model")
    parser.add_argument("--local")
    parser.add_argument("--kv", help="the KV cache's format here: f32 beside a server that computes in float32")
    parser.add_argument("--start", choices=["llama-server", "edge-llama"])
    asked = parser.parse_args()
    if bool(asked.url) == bool(asked.start) or not (asked.tokenizer or asked.local):
        parser.error("give a URL and its --tokenizer, or --start with --local")
    return asked


def holds(peer: Peer) -> bool:
    """Whether all checks hold; a row for each is printed."""
    print("| check | | found |\n|---|---|---|")
    outcomes = []
    for name, check in CHECKS.items():
        try:
            outcome, found = "holds", check(peer)
        except edge_llama.OptionError as error:
            outcome, found = "refused", str(error)
        except (AssertionError, edge_llama.EdgeLlamaError) as error:
            outcome, found = "FAILS", str(error)
        outcomes.append(outcome)
        print(f"| {name} | {outcome} | {found} |", flush=True)
    return "FAILS" not in outcomes


@contextmanager
def started(kind: str, model: str) -> Iterator[str]:
    """A server of ``model``, and the URL of its API."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from sides import Server, free_port, llama_server  # noqa: PLC0415 - the benchmarks'

    if kind == "llama-server":
        server = llama_server(Path(model), 1, "streams", slots=2, cells=2 * N_CTX)
    else:
        port = free_port()
        command = [sys.executable, "-c", _SERVE, "serve", model, "--port", port, "--n-ctx", N_CTX, "--quiet"]
        server = Server("edge-llama", port, command, {"PYTHONPATH": str(ROOT)}, alive="/health", more={})
    server.start()
    try:
        yield f"{server.url}/v1"
    finally:
        server.stop()


if __name__ == "__main__":
    main()

"""The server beside llama-server and llama-cpp-python's example server; pairs interleaved A B, B A, in the same run.

    .venv/bin/python benchmarks/server.py                # every row of the table
    .venv/bin/python benchmarks/server.py known new      # some rows; the names are below

known   8 clients x 128 tokens through HTTP below a system prompt that each has used before
new     the same, below one that a single other client has used: known to the server, new to each client
alone   one client: its first token and tokens/s
agents  a coding agent's whole session: a system prompt of 20,000 tokens, 30 tools, results, edits in its middle, calls
        and sub-agents at once, in both APIs: seconds, tokens of prompts that were read, failed turns
http    32 clients' tokens/s through HTTP against the same engine without it, and the HTTP process's work for a token
start   seconds from exec to the first answered /health

Options: --pairs 7, --threads 2 (of every side), --model smollm2|synthetic|FILE (but for agents, which has its own),
--json. All sides run without flash attention, with an f16 KV cache and as many cells. What counts is the median of the
pairs' ratios; ranges are in brackets. Progress goes to stderr, the table to stdout. ``server_soak.py`` is for longer.
"""

import argparse
from collections.abc import Callable

import agent_rows
import server_rows
from comparison import Result
from concurrency import main

ROWS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    "known": server_rows.known_row,
    "new": server_rows.new_row,
    "alone": server_rows.alone,
    "agents": agent_rows.agents,
    "http": server_rows.http,
    "start": server_rows.start,
}

if __name__ == "__main__":
    main(__doc__, ROWS)

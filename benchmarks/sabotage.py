"""Is a wrong conversion caught, and is what is wrong named? Faults drawn at random, and files without one.

    .venv/bin/python benchmarks/sabotage.py              # prints the tables; exit 1 if a goal is missed
    .venv/bin/python benchmarks/sabotage.py --draws 3    # fewer of each

Small Llama 2, 3 and 4 checkpoints at F16 and Q4_K_M; each fault is drawn so many times for each of them. Caught: any
fault is told. Located: all that is told is the layer or the component that is wrong. "By layers alone": what running
each of the file's layers on the checkpoint's input tells, without a look at its matrices; of a fault within a layer.
False alarms: files of every recipe, by importance too, in which anything is told.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from peers import ROOT

sys.path.insert(0, str(ROOT / "tests"))

import checkpoints
import llama4
import sabotages
from checkpoints import Shape

import converters
from converters import certifying
from converters.checkpoint import Checkpoint
from converters.evidence import locating
from converters.evidence.importance import of_checkpoint
from converters.evidence.streamed import StreamedTower
from converters.sources import open_checkpoint
from converters.sources.gguf import stored_tensors
from edge_llama.files.gguf_text import read_gguf_text
from edge_llama.host.devices import cpu_threads
from quant.importance import write_importance
from quant.recipe import RECIPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDE = Shape(hidden=256, ffn=512, layers=2, heads=4, kv_heads=4)
MOST_LAYERS = 4
QUANTS = ("f16", "q4_k_m")
TOKENS = 96


@dataclass
class Tally:
    """Of a fault."""

    drawn: int = 0
    caught: int = 0
    located: int = 0
    by_layers: int = 0
    in_layers: int = 0
    missed: list[str] = field(default_factory=list)


def checkpoints_in(folder: Path) -> dict[str, Path]:
    """The checkpoints; all have heads of their own and scaled rotary frequencies."""
    llama2 = checkpoints.llama2(folder / "llama2", shape=WIDE)
    config = json.loads((llama2 / "config.json").read_text("utf-8"))
    checkpoints.write_json(llama2 / "config.json", **config | {"rope_scaling": {"type": "linear", "factor": 4.0}})
    return {
        "Llama 2": llama2,
        "Llama 3": checkpoints.llama3(folder / "llama3", shape=WIDE, tied=False),
        "Llama 4": llama4.text_only(folder / "llama4", **llama4.K_QUANTS),
    }


class Layers:
    """What each of a checkpoint's layers is given and gives, and files' layers on it."""

    def __init__(self, reference: Checkpoint, folder: Path) -> None:
        self.reference = reference
        rng = np.random.default_rng(0)
        chunks: list[NDArray[np.int64]] = [rng.integers(0, 200, TOKENS) for _ in range(2)]
        folder.mkdir()
        self.recorder = locating.Recorder(folder, [TOKENS] * 2, WIDE.hidden, MOST_LAYERS)
        with StreamedTower(reference, threads=cpu_threads(), folder=folder, on_layer=self.recorder) as tower:
            tower.prepare(chunks)

    def told(self, examined: certifying.Examined) -> set[str]:
        """The layers that are further off than rounding explains."""
        if examined.own is None:
            return set()
        stored = stored_tensors(read_gguf_text(examined.own.path))
        formats = {name: tensor.format for name, tensor in stored.items()}
        found = locating.measure(self.reference, examined.own, formats, self.recorder, threads=cpu_threads())
        weighted = certifying.is_weighted(read_gguf_text(examined.own.path).header)
        return {fault.part for fault in locating.of_layers(found, is_weighted=weighted)}


def sabotaged(clean: Path, layers: Layers, draws: int, rng: np.random.Generator, tallies: dict[str, Tally]) -> None:
    """Each fault that the file can have, so many times."""
    for name, sabotage in sabotages.of_file(clean):
        tally = tallies.setdefault(name, Tally())
        for _ in range(draws):
            wrong = clean.with_name("wrong.gguf")
            done = sabotage(rng, clean, wrong)
            examined = certifying.examine(layers.reference, wrong, threads=cpu_threads())
            parts = {fault.part for fault in examined.faults}
            tally.drawn += 1
            tally.caught += bool(parts)
            tally.located += parts == {done.part}
            if "layer" in done.part:
                tally.in_layers += 1
                tally.by_layers += layers.told(examined) == {done.part.removeprefix("router of ")}
            if parts != {done.part}:
                tally.missed.append(f"{clean.name}: {done}: told {sorted(parts)}")


def importance_of(name: str, source: Path, folder: Path) -> Path:
    """What a matrix multiplies, measured on the checkpoint itself."""
    rng = np.random.default_rng(1)
    chunks: list[NDArray[np.int64]] = [rng.integers(0, 200, TOKENS) for _ in range(4)]
    found = of_checkpoint(open_checkpoint(source), chunks, threads=cpu_threads(), folder=folder)
    path = folder / f"{name}-imatrix.gguf"
    write_importance(path, found)
    return path


def clean_files(name: str, source: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """A file of every recipe; of those that quantize one by importance, too."""
    matrix = importance_of(name, source, folder)
    output = folder / "clean.gguf"
    for quant, recipe in RECIPES.items():
        if not recipe.needs_importance:
            converters.convert(source, output, quant=quant, force=True)
            yield f"{name} {quant}", output
        if recipe.default.is_quantized:
            converters.convert(source, output, quant=quant, calibration=matrix, force=True)
            yield f"{name} {quant} by importance", output


def false_alarms(name: str, source: Path, layers: Layers, folder: Path) -> tuple[int, list[str]]:
    """How many files there were, and of which something is told."""
    count, alarms = 0, []
    for called, path in clean_files(name, source, folder):
        examined = certifying.examine(layers.reference, path, threads=cpu_threads())
        told = [*map(str, examined.faults), *sorted(layers.told(examined))]
        count += 1
        if told:
            alarms.append(f"{called}: {told[0]}")
    return count, alarms


def run(draws: int, folder: Path, rng: np.random.Generator, *, has_faults: bool, has_files: bool) -> bool:
    """Print the tables; whether the goals are met."""
    tallies: dict[str, Tally] = {}
    n_clean, alarms = 0, list[str]()
    for name, source in checkpoints_in(folder).items():
        layers = Layers(open_checkpoint(source), folder / f"{name}-layers")
        for quant in QUANTS if has_faults else ():
            clean = folder / f"{name}-{quant}.gguf"
            converters.convert(source, clean, quant=quant)
            sabotaged(clean, layers, draws, rng, tallies)
            _tell(f"{name} {quant}: so far {_totals(tallies)}")
        count, told = false_alarms(name, source, layers, folder) if has_files else (0, [])
        n_clean, alarms = n_clean + count, alarms + told
        _tell(f"{name}: {len(told)} false alarms of {count} files {told[:3]}")
    drawn, caught, located = _totals(tallies)
    print("| fault | drawn | caught | located | by layers alone |\n|---|---|---|---|---|")
    for name, tally in tallies.items():
        alone = f"{tally.by_layers} of {tally.in_layers}" if tally.in_layers else ""
        print(f"| {name} | {tally.drawn} | {tally.caught} | {tally.located} | {alone} |")
    print(f"| all | {drawn} | {100 * caught / max(drawn, 1):.1f} % | {100 * located / max(drawn, 1):.1f} % | |")
    print(f"\nfalse alarms: {len(alarms)} of {n_clean} files")
    for line in [*alarms, *(line for tally in tallies.values() for line in tally.missed)]:
        print(f"- {line}")
    return caught == drawn and located >= 0.95 * drawn and not alarms


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _totals(tallies: Mapping[str, Tally]) -> tuple[int, int, int]:
    """How many were drawn, caught and located."""
    found = list(tallies.values())
    return sum(each.drawn for each in found), sum(each.caught for each in found), sum(each.located for each in found)


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20, help="of each fault, for each checkpoint and recipe")
    parser.add_argument("--seed", type=int, default=24)
    parser.add_argument("--part", choices=("all", "faults", "files"), default="all")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = {"has_faults": asked.part != "files", "has_files": asked.part != "faults"}
        is_met = run(asked.draws, Path(folder), np.random.default_rng(asked.seed), **parts)
    sys.exit(not is_met)


if __name__ == "__main__":
    main()

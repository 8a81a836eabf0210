"""``edge-llama evaluate`` beside llama-perplexity of the installed source, on the same text and files, in the same run.

    .venv/bin/python benchmarks/fidelity.py                  # SmolLM2 Q4_K_M against its f32: numbers, speed, memory
    .venv/bin/python benchmarks/fidelity.py --model synthetic # the synthetic 1.07B, its checkpoint run layer by layer
    .venv/bin/python benchmarks/fidelity.py --kv --chunks 1  # the KV cache's formats, at 8,000 tokens

Options: --chunks 8, --pairs 3 (A B, B A, ...), --threads.

Numbers: every statistic that the program prints, at the digits that it prints. Time: of the program's two passes (the
reference's logits to a file, then the model), and of ours, which is one command that also gives the exact divergence.
Memory: the most resident memory of a process, mapped pages included (of the program's two passes the larger).
The text is the project's own for evaluation, joined (for the cache a text of each domain by turns). Without flash
attention, batches of a chunk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison import Result, compared, say, table
from conversion import synthetic
from onnx_folders import checkpoint_folder, converted
from peers import ROOT, program, program_environment

sys.path.insert(0, str(ROOT / "tests"))

import perplexity_numbers

from edge_llama.fidelity.texts import Text, default_texts
from edge_llama.host import devices

N_CTX = 512
KV_CTX = 8_000
EDGE_LLAMA = str(Path(sys.executable).with_name("edge-llama"))


@dataclass(frozen=True, slots=True)
class Run:
    """A process that has ended."""

    seconds: float
    peak: int
    out: str
    """What it printed, on both streams."""


@dataclass(frozen=True, slots=True)
class Files:
    """What is compared."""

    model: Path
    reference: Path
    """A GGUF file in f32 or f16."""
    checkpoint: Path


def run(command: Sequence[object], environment: Mapping[str, str] | None = None) -> Run:
    """Seconds and the most resident memory of a process."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        started = time.perf_counter()
        child = subprocess.Popen(
            list(map(str, command)), stdout=out, stderr=out, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        told = out.read()
    if child.returncode:
        sys.exit(f"{command}: {told[-2000:]}")
    return Run(seconds, usage.ru_maxrss * 1024, told)


def by_program(files: Files, text: Path, options: argparse.Namespace) -> Run:
    """Both passes: their seconds, the larger peak, what the second printed."""
    with tempfile.TemporaryDirectory() as folder:
        common = [program("llama-perplexity"), "-f", text, "-c", N_CTX, "-b", N_CTX, "-ub", N_CTX, "-fa", "off"]
        common += ["-t", options.threads, "--chunks", options.chunks, "--kl-divergence-base", Path(folder) / "logits"]
        first = run([*common, "-m", files.reference], program_environment())
        second = run([*common, "-m", files.model, "--kl-divergence"], program_environment())
    return Run(first.seconds + second.seconds, max(first.peak, second.peak), second.out)


def by_us(files: Files, reference: Path, text: Path, options: argparse.Namespace, *more: str) -> Run:
    given = [EDGE_LLAMA, "evaluate", files.model, text, "--reference", reference, "--n-ctx", N_CTX, "--threads"]
    return run([*given, options.threads, "--max-chunks", options.chunks, "--flash-attn", "off", *more])


def statistics_of(found: Run) -> dict[str, list[float]]:
    """What our ``--compatible`` told, as its lines are printed."""
    part = found.out.partition("its reference in 16 bits:")[2]
    return perplexity_numbers.printed("Perplexity statistics" + part)


def smollm2() -> Files:
    reference = converted("smollm2-f32.gguf", str(checkpoint_folder()), "--quant", "f32")
    model = converted("smollm2-q4_k_m.gguf", str(checkpoint_folder()), "--quant", "q4_k_m")
    return Files(model, reference, checkpoint_folder())


def one_billion() -> Files:
    checkpoint = synthetic(16)
    reference = converted("synthetic-16-f16.gguf", str(checkpoint), "--quant", "f16")
    return Files(converted("synthetic-16-q4_k_m.gguf", str(checkpoint), "--quant", "q4_k_m"), reference, checkpoint)


def numbers(theirs: Run, ours: Run) -> Result:
    """How many of the program's statistics are ours, digit by digit."""
    printed, own = perplexity_numbers.printed(theirs.out), statistics_of(ours)
    if printed.keys() != own.keys():
        sys.exit(f"other statistics: {sorted(printed.keys() ^ own.keys())}")
    other = [name for name in printed if printed[name] != own[name]]
    for name in other:
        say(f"  {name}: {own[name]}, llama-perplexity {printed[name]}")
    equal = f"{len(printed) - len(other)} of {len(printed)} equal"
    return Result("statistics, at printed digits", "llama-perplexity", equal, str(len(printed)), "", "all equal")


def rows(files: Files, text: Path, options: argparse.Namespace) -> list[Result]:
    pairs: list[tuple[Run, Run, Run]] = []
    for pair in range(options.pairs):
        say(f"pair {pair + 1} of {options.pairs}")
        sides = [
            lambda: by_us(files, files.reference, text, options, "--compatible"),
            lambda: by_program(files, text, options),
            lambda: by_us(files, files.checkpoint, text, options),
        ]
        order = range(3) if pair % 2 == 0 else range(2, -1, -1)
        found = {at: sides[at]() for at in order}
        pairs.append((found[0], found[1], found[2]))
    own, theirs, streamed = zip(*pairs, strict=True)
    tokens = options.chunks * N_CTX
    result = [numbers(theirs[0], own[0])]
    for name, mine in (
        ("--compatible, GGUF as the reference", own),
        ("exact, the checkpoint as the reference", streamed),
    ):
        speeds = [[tokens / each.seconds for each in side] for side in (mine, theirs)]
        peaks = [[each.peak / 1e6 for each in side] for side in (mine, theirs)]
        result.append(compared(f"{name}: tokens/s", "llama-perplexity", *speeds, ".0f", ">= 1.0"))
        result.append(compared(f"{name}: peak MB", "llama-perplexity", *peaks, ".0f", "<= 0.5 for 1B"))
    return result


def kv_formats(files: Files, text: Path, options: argparse.Namespace) -> list[Result]:
    """What a format costs: a model beside itself with an f16 cache."""
    found = []
    for name in ("f16", "q8_0", "q4_0"):
        command = [EDGE_LLAMA, "evaluate", files.model, text, "--reference", files.model, "--n-ctx", KV_CTX]
        command += ["--threads", options.threads, "--max-chunks", options.chunks, "--kv", name]
        done = run([*command, "--flash-attn", "on", "--json", "--quiet"])
        told = json.loads(done.out[done.out.index("{") :])
        every, last = told["all"], told["positions"][-1]
        text_of = (
            f"KL {every['kl']['value']:.6f}, 99 % {every['kl_99']:.5f}, top-1 {100 * every['top1']['value']:.2f} %, "
            f"ratio of perplexities {every['ratio']['value']:.5f}"
        )
        at_end = f"KL {last['kl']['value']:.6f} from token {last['from']:,} on"
        found.append(Result(f"KV {name}, flash attention", "KV f16 without", text_of, at_end))
        say(f"  {name}: {text_of}; {at_end}; {done.seconds:.0f} s")
    return found


def by_turns(texts: Sequence[Text]) -> list[Text]:
    """One of each domain after the other: a chunk of 8,000 tokens has several."""
    seen: Counter[str] = Counter()
    turns = []
    for text in texts:
        turns.append((seen[text.domain], text.domain))
        seen[text.domain] += 1
    return [texts[at] for at in sorted(range(len(texts)), key=turns.__getitem__)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("smollm2", "synthetic"), default="smollm2")
    parser.add_argument("--kv", action="store_true")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=devices.cpu_threads())
    options = parser.parse_args()
    files = smollm2() if options.model == "smollm2" else one_billion()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "evaluation.txt"
        texts = by_turns(default_texts("evaluation")) if options.kv else default_texts("evaluation")
        text.write_text("\n".join(each.content for each in texts), "utf-8", newline="\n")
        print(table(kv_formats(files, text, options) if options.kv else rows(files, text, options)))


if __name__ == "__main__":
    main()

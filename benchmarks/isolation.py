"""What a process of its own costs: tokens per second of the same model in this process and isolated, in turn.

    python benchmarks/isolation.py [MODEL] [--pairs 7] [--tokens 128] [--callers 1,8] [--threads N] [--logprobs N]

Each pair measures both, the first of them by turns; a figure is the median of the pairs, a ratio the median of theirs.
Callers take pieces as they come, as a terminal or a server does; ``whole`` waits for the result alone. Processor time
is that of both processes together: with --threads 1, where no thread spins, it says the cost on a busy machine too.
"""

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, and for both processes

import psutil

import edge_llama
from edge_llama.isolation.remote import IsolatedModel

_PROMPT = "Caller {at} asks for a long story about a lighthouse. Once upon a time"


def answered(model: edge_llama.Model, at: int, tokens: int, logprobs: int | None, *, is_whole: bool) -> int:
    """Tokens of one answer, taken piece by piece or as a whole."""
    generation = model.generate(_PROMPT.format(at=at), temperature=0, max_tokens=tokens, logprobs=logprobs)
    if not is_whole:
        for _ in generation:
            pass
    return len(generation.result().tokens)


def processor_seconds(model: edge_llama.Model) -> float:
    """What this process and the model's own have taken so far."""
    processes = [psutil.Process()]
    if isinstance(model, IsolatedModel):
        processes.append(psutil.Process(model.worker_pid))
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def speed(model: edge_llama.Model, work: Callable[[int], int], callers: int) -> tuple[float, float]:
    """Tokens per second of so many callers together, and tokens per second of processor time."""
    counts: list[int] = []
    threads = [threading.Thread(target=lambda at=at: counts.append(work(at))) for at in range(callers)]  # type: ignore[misc]
    started, before = time.perf_counter(), processor_seconds(model)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, spent = time.perf_counter() - started, processor_seconds(model) - before
    return sum(counts) / took, sum(counts) / spent


def measure(models: dict[str, edge_llama.Model], callers: int, given: argparse.Namespace, *, is_whole: bool) -> None:
    """Print the medians of one row."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for pair in range(given.pairs + 1):
        for name in sorted(models, reverse=bool(pair % 2)):
            model = models[name]
            found = speed(
                model,
                lambda at, model=model: answered(model, at, given.tokens, given.logprobs, is_whole=is_whole),  # type: ignore[misc]
                callers,
            )
            if pair:  # the first one reads the prompts
                speeds[name].append(found)
    for at, unit in enumerate(("tokens/s", "tokens per second of processor time")):
        here, isolated = ([each[at] for each in speeds[name]] for name in ("here", "isolated"))
        ratios = [b / a for a, b in zip(here, isolated, strict=True)]
        print(
            f"{callers} callers, {'whole' if is_whole else 'pieces'}: here {statistics.median(here):.1f} {unit}, "
            f"isolated {statistics.median(isolated):.1f}: ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--callers", default="1,8")
    parser.add_argument("--threads", type=int, help="default: as many as are free, as without the option")
    parser.add_argument("--logprobs", type=int)
    given = parser.parse_args()
    options: edge_llama.OpenOptions = {"n_ctx": 2048, "threads": given.threads}
    with (
        edge_llama.open(given.model, **options) as here,
        edge_llama.open(given.model, isolate=True, **options) as isolated,
    ):
        for callers in map(int, given.callers.split(",")):
            for is_whole in (False, True):
                measure({"here": here, "isolated": isolated}, callers, given, is_whole=is_whole)


if __name__ == "__main__":
    main()

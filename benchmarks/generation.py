"""Speed of generation beside llama.cpp's own tools, pairs interleaved A B, B A, in the same run.

    .venv/bin/python benchmarks/generation.py engine      # pp512 and tg128, empty context, against llama-bench
    .venv/bin/python benchmarks/generation.py python      # Python's cost per token at 2,000 tokens of context
    .venv/bin/python benchmarks/generation.py defaults    # our defaults against llama.cpp's, tg at 1,500 tokens
    .venv/bin/python benchmarks/generation.py busy        # two other busy processes: share of the quiet speed
    .venv/bin/python benchmarks/generation.py chat        # against llama-cpp-python's create_chat_completion
    .venv/bin/python benchmarks/generation.py profile     # where Python's time per token goes

Options: --pairs 7, --threads (of both), --model FILE, --tokens (fewer for a quick look).

Each run is a process of its own, with the same GGUF file, threads, flash attention off and KV cache in f16;
``defaults`` and ``busy`` leave these to each side. llama-bench loads the very libraries of the installed
llama-cpp-python. Ours goes the whole way of an answer: sampling, text, the queue between the threads. What counts is
the median of the pairs' ratios; their range is shown.
"""

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peers import program, program_environment

import edge_llama
from edge_llama.backends.base import Rows
from edge_llama.backends.towers import locate
from edge_llama.host import devices
from edge_llama.sampling.sampler import LogitsRow

STORY = "Once upon a time, in a village by the sea, there lived an old fisherman who told stories to the children."
ASK = " Now tell me a very long story about a dragon, with many chapters. Write at least two thousand words."
OURS_SPINS = {"GOMP_SPINCOUNT": "3000"}  # what our command line sets for itself
Run = Callable[[], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*ROWS, "worker"])
    parser.add_argument("--model", default=str(locate()))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=devices.cpu_threads())
    parser.add_argument("--tokens", type=int, help="tokens to generate in each run")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "worker":
        job = json.loads(options.job)
        print(json.dumps(WORKERS[job.pop("kind")](**job)))
        return
    print(f"{options.model}, {devices.cpu().name}, {options.pairs} pairs, load {os.getloadavg()[0]:.1f} at the start")
    ROWS[options.what](options)


# Rows of the table.


def engine(options: argparse.Namespace) -> None:
    count = options.tokens or 128

    def ours() -> dict[str, float]:
        fixed = {"model": options.model, "threads": options.threads}
        # llama-bench's context is as large as each of its tests.
        return {
            "pp512": worker("answer", **fixed, n_ctx=520, prompt=512, count=1)["read"],
            f"tg{count}": worker("answer", **fixed, n_ctx=count + 8, prompt=8, count=count)["write"],
        }

    def theirs() -> dict[str, float]:
        read, write = bench(options, "-p", 512, "-n", count)
        return {"pp512": read, f"tg{count}": write}

    compare(options.pairs, ours, theirs, ">= 0.97")


def python(options: argparse.Namespace) -> None:
    count, depth = options.tokens or 128, 2000
    n_ctx = depth + count  # as llama-bench makes it
    outside: list[float] = []

    def ours() -> dict[str, float]:
        run = worker(
            "answer", model=options.model, threads=options.threads, n_ctx=n_ctx, prompt=depth, count=count, watch=True
        )
        outside.append(1e3 * run["outside"])
        return {f"tg{count} @ d{depth}": run["write"]}

    def theirs() -> dict[str, float]:
        return {f"tg{count} @ d{depth}": bench(options, "-p", 0, "-n", count, "-d", depth)[0]}

    compare(options.pairs, ours, theirs, ">= 0.97: Python costs at most 3 %")
    print(f"  outside llama_decode, sampling included: {spread(outside, '.3f')} ms of processor time a token")


def defaults(options: argparse.Namespace) -> None:
    count, depth = options.tokens or 128, 1500

    def ours() -> dict[str, float]:
        run = worker("answer", environment=OURS_SPINS, model=options.model, n_ctx=2048, prompt=depth, count=count)
        return {f"tg{count} @ d{depth}": run["write"]}

    def theirs() -> dict[str, float]:
        command = ["-p", 0, "-n", count, "-d", depth]
        return {f"tg{count} @ d{depth}": run_bench(options.model, *command)[0]}

    compare(options.pairs, ours, theirs, ">= 1.5")


def busy(options: argparse.Namespace) -> None:
    """Ours as the command line and as a library in a process that sets nothing; and llama.cpp's default."""
    count = options.tokens or 64
    fixed = {"model": options.model, "n_ctx": 1024, "prompt": 8, "count": count}
    sides: dict[str, Callable[[], float]] = {
        "ours, command line": lambda: worker("answer", environment=OURS_SPINS, **fixed)["write"],
        "ours, library": lambda: worker("answer", **fixed)["write"],
        "llama.cpp's default": lambda: run_bench(options.model, "-p", 0, "-n", min(count, 16), "--no-warmup")[0],
    }
    shares: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.pairs):
        for name, side in sides.items():
            quiet = side()
            with busy_processes(2):
                share = side() / quiet
            shares[name].append(share)
            print(f"  {number + 1} {name}: {quiet:.1f} tokens/s when quiet, {share:.1%} of it when busy", flush=True)
    for name, values in shares.items():
        print(f"  {name}: {spread(values, '.1%')}; goal: median >= 25 %, worst >= 10 %")


def chat(options: argparse.Namespace) -> None:
    count = options.tokens or 500
    fixed = {"model": options.model, "threads": options.threads, "prompt": 1500, "count": count}
    label = f"streaming {count} tokens at 1,500"
    compare(
        options.pairs,
        lambda: {label: worker("our_chat", **fixed)["write"]},
        lambda: {label: worker("their_chat", **fixed)["write"]},
        ">= 1.3",
    )


def profile(options: argparse.Namespace) -> None:
    """Time per token outside ``llama_decode``, and Python's functions in the engine's thread by their own time."""
    count = options.tokens or 200
    with edge_llama.open(options.model, n_ctx=4096, threads=options.threads) as model:
        prompt = text_of(model, 2000)
        model.generate(prompt, temperature=0, max_tokens=1).result()
        profiler = cProfile.Profile()
        on_engine(model, profiler.enable)
        answer = model.generate(prompt, temperature=0, max_tokens=count).result()
        on_engine(model, profiler.disable)
        each = answer.timings.generation_seconds / answer.timings.generated_tokens
        print(f"{each * 1e3:.2f} ms a token, profiled")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


# The two sides. A worker is this file in a process of its own.


def worker(
    kind: str, environment: dict[str, str] | None = None, script: str = __file__, **job: Any
) -> dict[str, float]:
    """``script``: this file, or as it was at another commit."""
    command = [sys.executable, script, "worker", "--job", json.dumps({"kind": kind, **job})]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def answer(
    model: str, n_ctx: int, prompt: int, count: int, threads: int | None = None, *, watch: bool = False
) -> dict[str, float]:
    """An answer of ``count`` tokens after ``prompt`` tokens; tokens/s of both parts, after a warm-up."""
    with edge_llama.open(model, n_ctx=n_ctx, threads=threads) as opened:
        opened.generate("Hello", temperature=0, max_tokens=4).result()
        between = Watch(opened).between if watch else [0.0]
        text = text_of(opened, prompt)
        timings = opened.generate(text, temperature=0, max_tokens=count).result().timings
        if timings.generated_tokens < min(count, 100):
            sys.exit(f"the answer ended after {timings.generated_tokens} tokens")
        # The first token is sampled from the prompt's logits: as many decodes as tokens, less one.
        decodes = timings.generated_tokens - 1
        return {
            "read": timings.prompt_tokens_per_second,
            "write": decodes / timings.generation_seconds,
            "outside": statistics.fmean(between),
        }


def our_chat(model: str, threads: int, prompt: int, count: int) -> dict[str, float]:
    with edge_llama.open(model, n_ctx=4096, threads=threads) as opened:
        message = text_of(opened, prompt - 60) + ASK
        pieces = opened.chat().send(message, temperature=0, max_tokens=count)
        return streamed(len(piece.token_ids) for piece in pieces)


def their_chat(model: str, threads: int, prompt: int, count: int) -> dict[str, float]:
    import llama_cpp  # noqa: PLC0415 - only this worker

    llama = llama_cpp.Llama(model, n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False)
    with edge_llama.open(model, n_ctx=4096, threads=1) as opened:
        message = text_of(opened, prompt - 60) + ASK
    messages = [{"role": "user", "content": message}]
    chunks = llama.create_chat_completion(messages, temperature=0, max_tokens=count, stream=True)
    return streamed(1 for chunk in chunks if chunk["choices"][0]["delta"].get("content"))


def streamed(counts: Iterator[int]) -> dict[str, float]:
    """Tokens/s from the first piece to the last, as who reads them sees it."""
    total, first, last, started = 0, 0, 0.0, 0.0
    for count in counts:
        last = time.perf_counter()
        if not started:
            started, first = last, count
        total += count
    if total < 50:
        sys.exit(f"the answer ended after {total} tokens")
    return {"write": (total - first) / (last - started), "tokens": total}


def bench(options: argparse.Namespace, *arguments: object) -> list[float]:
    return run_bench(options.model, *arguments, "-t", options.threads, "-fa", "off", "-ctk", "f16", "-ctv", "f16")


def run_bench(model: str, *arguments: object) -> list[float]:
    """Tokens/s of each test that llama-bench ran, once each."""
    command = [program("llama-bench"), "-m", model, "-r", 1, "-o", "json", *arguments]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **program_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return [float(result["avg_ts"]) for result in json.loads(done.stdout)]


def text_of(model: edge_llama.Model, count: int) -> str:
    """A story's beginning, told again up to ``count`` tokens with the sequence's first one."""
    story = " ".join([STORY] * (count // 20 + 2))
    tokens = model.tokenizer.encode(story)[: count - 1]
    return b"".join(map(model.tokenizer.piece, tokens)).decode()


class Watch:
    """Processor seconds of the engine's thread between decodes of single tokens; other processes don't add to them."""

    def __init__(self, model: edge_llama.Model) -> None:
        self._decode = model._engine.tower.decode
        self._ended = 0.0
        self.between: list[float] = []
        model._engine.tower.decode = self._watched  # type: ignore[method-assign]

    def _watched(self, batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        is_token = sum(len(rows.tokens) for rows in batch) == 1
        if is_token and self._ended:
            self.between.append(time.thread_time() - self._ended)
        logits = self._decode(batch)
        self._ended = time.thread_time() if is_token else 0.0
        return logits


def on_engine(model: edge_llama.Model, work: Callable[[], object]) -> None:
    model._engine.call(work)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


# Pairs and their statistics.


def compare(pairs: int, ours: Run, theirs: Run, goal: str) -> None:
    """Run both sides in turn, the first of a pair by turns; print each figure's median and that of the ratios."""
    ours(), theirs()  # warm: files are read, programs are built
    found: list[tuple[dict[str, float], dict[str, float]]] = []
    for number in range(pairs):
        if number % 2:
            their = theirs()
            found.append((ours(), their))
        else:
            found.append((ours(), theirs()))
        each = ", ".join(f"{name} {found[-1][0][name]:.1f} / {found[-1][1][name]:.1f}" for name in found[-1][0])
        print(f"  pair {number + 1}: {each} tokens/s, ours / theirs", flush=True)
    for name in found[0][0]:
        our, their = ([pair[side][name] for pair in found] for side in (0, 1))
        ratios = [a / b for a, b in zip(our, their, strict=True)]
        print(f"  {name}: ours {spread(our, '.1f')}, theirs {spread(their, '.1f')} tokens/s")
        print(f"  {name}: ratio {spread(ratios, '.3f')}; goal {goal}")


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


ROWS: dict[str, Callable[[argparse.Namespace], None]] = {
    "engine": engine,
    "python": python,
    "defaults": defaults,
    "busy": busy,
    "chat": chat,
    "profile": profile,
}
WORKERS: dict[str, Callable[..., dict[str, float]]] = {
    "answer": answer,
    "our_chat": our_chat,
    "their_chat": their_chat,
}

if __name__ == "__main__":
    main()

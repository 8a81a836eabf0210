"""``edge-llama bench``: prompt and generation speed, as llama-bench reports them."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Annotated, Any

import typer

from edge_llama.cli import options, speed
from edge_llama.errors import printable
from edge_llama.host.devices import cpu, cpu_threads
from edge_llama.model import Model
from edge_llama.planning.options import OpenOptions


@options.with_opening("n_batch", "flash_attention", "kv_format", "device", "vision_device", *options.SHARES)
def bench(
    *,
    model: Annotated[str | None, typer.Argument(help="A .gguf file, a folder with a model, or smollm2.")] = None,
    prompt: Annotated[list[int], typer.Option("-p", "--n-prompt", help="Tokens to read. May be repeated.")] = [512],  # noqa: B006 - typer copies it
    gen: Annotated[list[int], typer.Option("-n", "--n-gen", help="Tokens to write. May be repeated.")] = [128],  # noqa: B006
    depth: Annotated[
        list[int], typer.Option("-d", "--n-depth", help="Tokens that are in the context before. May be repeated.")
    ] = [0, 1500],  # noqa: B006
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="Runs of each test.")] = 5,
    threads: Annotated[int | None, typer.Option("--threads", "-t", help="CPU threads. Default: one a core.")] = None,
    opening: OpenOptions,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure tokens per second: reading (pp) and writing (tg), with an empty and a filled context.

    Lengths of 0 leave a test out, as in llama-bench. Writing includes choosing the tokens and their text.

    Example: edge-llama bench llama-3.2-1b-q4_k_m.gguf -p 512 -n 128 -d 0 -d 1500 -r 5
    """
    wanted = speed.tests([n for n in prompt if n], [n for n in gen if n], depth)
    threads = threads or cpu_threads()
    opening = {**opening, "n_ctx": max(test.end for test in wanted) + 1, "threads": threads}
    with options.open_model(model, opening) as opened:
        with _progress(len(wanted) * repetitions, quiet=quiet) as show:
            results = speed.measure(opened, wanted, repetitions=repetitions, on_run=show)
        if as_json:
            print(json.dumps(_described(opened, threads, results), ensure_ascii=False))  # noqa: T201
        else:
            _print_table(opened, threads, results)


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[speed.Test, int], None] | None]:
    """A bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = -1

        def show(test: speed.Test, number: int) -> None:
            nonlocal begun
            begun += 1
            bar.update(task, completed=begun, description=f"{test}, run {number}")

        yield show


def _print_table(model: Model, threads: int, results: Sequence[speed.Speed]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    artifact = model.artifact
    table = Table("test", box=None)
    table.add_column("tokens/s", justify="right")
    for result in results:
        table.add_row(str(result.test), f"{result.mean:,.2f} ± {result.deviation:,.2f}")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    console.print(f"{printable(artifact.name)}, {artifact.weight_bytes:,} bytes of weights, {printable(cpu().name)}")
    console.print(f"threads {threads}, {model.choice.setting}, {model.placement}")
    console.print(table)


def _described(model: Model, threads: int, results: Sequence[speed.Speed]) -> dict[str, Any]:
    """With llama-bench's names, so that one reader takes both."""
    artifact, setting = model.artifact, model.choice.setting
    return {
        "model_filename": str(artifact.path),
        "model_size": artifact.weight_bytes,
        "model_n_params": sum(prod(tensor.shape) for tensor in artifact.tensors),
        "cpu_info": cpu().name,
        "n_threads": threads,
        "n_batch": setting.n_batch,
        "n_ubatch": setting.n_batch,
        "type_k": setting.kv_format,
        "type_v": setting.kv_format,
        "flash_attn": setting.flash_attention,
        "n_gpu_layers": model.placement.gpu_layers,
        "results": [
            {
                "n_prompt": result.test.n_prompt,
                "n_gen": result.test.n_gen,
                "n_depth": result.test.n_depth,
                "avg_ts": result.mean,
                "stddev_ts": result.deviation,
                "samples_ts": list(result.samples),
            }
            for result in results
        ],
    }

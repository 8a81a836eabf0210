"""``edge-llama convert``: a checkpoint into a small file."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_llama.cli import options
from edge_llama.cli.console import note

if TYPE_CHECKING:
    from converters import Plan


def convert(
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder, a .gguf file, or smollm2.")],
    output: Annotated[Path, typer.Argument(help="The file to write (.gguf), or with --to safetensors the folder.")],
    quant: Annotated[
        str | None,
        typer.Option(help="q4_k_m (default), q8_0, q4_0, bf16, f16, f32. With --to safetensors: bf16, f16, f32."),
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="gguf|safetensors", help="Default: by the output's name.")] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="PEFT_DIR", help="Merge the LoRA adapter in this folder on the way.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert a full-precision checkpoint in one streaming pass; the output appears complete or not at all.

    Example: edge-llama convert ~/models/Llama-3.2-1B-Instruct llama-3.2-1b-q4_k_m.gguf
    """
    from converters import convert as run_conversion  # noqa: PLC0415 - the runtime's verbs must not need this half
    from converters import plan as make_plan  # noqa: PLC0415

    if dry_run:
        plan = make_plan(source, output, quant=quant, to=to, lora=lora)
        _warn(plan, quiet)
        _print_plan(plan, as_json)
        return
    started = time.perf_counter()
    with _progress(output, quiet) as show:
        plan = run_conversion(
            source, output, quant=quant, to=to, lora=lora, force=force, threads=threads, on_progress=show
        )
    _warn(plan, quiet)
    _report(plan, output, time.perf_counter() - started, as_json, quiet)


def _warn(plan: "Plan", quiet: bool) -> None:
    for warning in plan.warnings:
        note(f"warning: {warning}", quiet=quiet)


@contextmanager
def _progress(output: Path, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with bytes, rate and time left on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(output.name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_plan(plan: "Plan", as_json: bool) -> None:
    if as_json:
        print(json.dumps(_described(plan) | {"tensors": _tensors(plan)}))  # noqa: T201
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("tensor", "shape", "from", "to", "bytes", box=None)
    for tensor in _tensors(plan):
        shape = " x ".join(f"{size:,}" for size in tensor["shape"])
        table.add_row(tensor["name"], shape, tensor["from"], tensor["to"], f"{tensor['bytes']:,}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(_summary(plan))  # noqa: T201


def _tensors(plan: "Plan") -> list[dict[str, Any]]:
    return [
        {
            "name": entry.tensor.name,
            "shape": list(entry.tensor.shape),
            "from": entry.tensor.format.name,
            "to": entry.format.name,
            "bytes": entry.nbytes,
        }
        for entry in plan.layout.entries
    ]


def _described(plan: "Plan") -> dict[str, Any]:
    return {
        "source": str(plan.checkpoint.path),
        "quant": plan.quant,
        "source_bytes": plan.layout.source_bytes,
        "output_bytes": plan.layout.output_bytes,
        "warnings": list(plan.warnings),
    }


def _summary(plan: "Plan") -> str:
    layout = plan.layout
    counts = Counter(entry.format.name for entry in layout.entries)
    formats = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    sizes = f"{layout.source_bytes:,} bytes to {layout.output_bytes:,}"
    text = f"{plan.quant}: {sizes}; {len(layout.entries)} tensors: {formats}"
    fallen = Counter(
        (e.wanted.name, e.wanted.block_size, e.format.name) for e in layout.entries if e.wanted not in (None, e.format)
    )
    for (wanted, block, used), count in fallen.items():
        text += f"\n{count} tensors take {used} instead of {wanted}: their rows are no multiple of {block}"
    return text


def _report(plan: "Plan", output: Path, seconds: float, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps(_described(plan) | {"output": str(output), "seconds": round(seconds, 3)}))  # noqa: T201
        return
    note(_summary(plan), quiet=quiet)
    rate = plan.layout.source_bytes / seconds / 1e6
    note(f"{output}: written in {seconds:.1f} s ({rate:,.0f} MB/s)", quiet=quiet)

"""``edge-llama compile``: what a device's engine makes of a model's graphs, kept beside the model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edge_llama.cli import options
from edge_llama.cli.terminal.console import note, progress


def compile(  # noqa: A001 - the verb's name
    model: Annotated[
        Path, typer.Argument(help="A folder with towers for NPUs: convert --to onnx --quant a16w8 writes one.")
    ],
    device: Annotated[
        str, typer.Option(metavar="npu:qnn|npu:openvino", help="What it is compiled for. Default: npu, the first here.")
    ] = "npu",
    soc: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="npu:qnn: the chip of a phone or another machine, such as SM8650."),
    ] = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="For phones: the prompt's and the token's graph have their weights in common."),
    ] = False,
    provider_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Tell the device's provider, such as vtcm_mb=8. May be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compile also what is there and fits.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compile a model's towers for an NPU, so that they open there at once; also for another machine's chip.

    What was compiled lies in the model's folder, under compiled/: opening the model on that device uses it. For a
    phone, copy the folder that is named at the end.

    Example: edge-llama compile llama-npu/ --device npu:qnn --soc SM8650
    """
    from edge_llama.compile import compile_for  # noqa: PLC0415 - other verbs need none of it

    with progress("compiling", quiet=quiet or as_json) as show:
        done = compile_for(
            model,
            device,
            soc=soc,
            share=share,
            provider_options=provider_option or (),
            force=force,
            on_progress=show,
        )
    if as_json:
        print(json.dumps({**asdict(done), "output": str(done.output)}, ensure_ascii=False))  # noqa: T201
        return
    chip = f" ({done.soc})" if done.soc else ""
    what = " and ".join(done.towers)
    note(f"{done.output}: {what} for {done.device}{chip}, {done.nbytes:,} bytes, by {done.package}", quiet=quiet)

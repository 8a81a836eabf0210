"""``edge-llama calibrate``: what is measured of a model before it is converted, by data such as it will see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edge_llama.cli import importance, options, output_file, ranges
from edge_llama.errors import OptionError
from edge_llama.host.devices import cpu_threads
from edge_llama.planning.options import OpenOptions

_PURPOSES = ("ranges", "importance")


@options.with_opening("device")
def calibrate(
    *,
    model: Annotated[
        str,
        typer.Argument(
            help="For texts, a checkpoint as convert takes it; for pictures, a bundle whose vision tower is f32 or "
            "f16; for importance, a checkpoint or a .gguf file."
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="[DATA...] OUTPUT",
            help=f"Texts ({', '.join(ranges.TEXTS)}) or pictures, and the file to write. For importance any file of "
            "text; without one, texts that come with edge-llama.",
        ),
    ],
    purpose: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="|".join(_PURPOSES),
            help="What is measured: between which bounds values lie, or how much each column of each matrix counts.",
        ),
    ] = "ranges",
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture, as in DATA. May be repeated.")
    ] = None,
    max_tiles: Annotated[
        int | None,
        typer.Option(help="See each picture in so many tiles at most."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Importance: texts as what users say, by the model's chat template.")
    ] = False,
    n_ctx: Annotated[int | None, typer.Option(help="Importance: tokens that are read together. Default: 512.")] = None,
    opening: OpenOptions,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model on data such as it will see, for convert: a hundred samples beat ten.

    Ranges say between which bounds a tower's values lie, for towers in integers; importance weighs errors of rounding,
    in llama.cpp's own format (.gguf, or the older .dat).

    Example: edge-llama calibrate Llama-3.2-1B-Instruct/ book.txt ranges.json

    Then: edge-llama convert Llama-3.2-1B-Instruct/ llama-npu/ --to onnx --quant a16w8 --calibration ranges.json

    Or: edge-llama calibrate Llama-3.2-1B-Instruct/ importance.gguf --for importance
    """
    *samples, output = data
    samples += image or []
    threads = threads or cpu_threads()
    if purpose == "ranges":
        _check_left_out("importance", {"--chat": chat, "--n-ctx": n_ctx, "--device": opening})
        ranges.check_samples(samples)
        _check_output(output, [Path(model), *samples], force=force)
        ranges.measure_ranges(model, samples, output, max_tiles=max_tiles, threads=threads, quiet=quiet)
    elif purpose == "importance":
        _check_left_out("ranges", {"--image": image, "--max-tiles": max_tiles})
        importance.check_names(samples, output)
        _check_output(output, [Path(model), *samples], force=force)
        asked = importance.Asked(512 if n_ctx is None else n_ctx, threads, opening, is_chat=chat, quiet=quiet)
        importance.measure_importance(model, samples, output, asked)
    else:
        raise OptionError(f"--for {purpose}: unknown", remedy=f"known: {', '.join(_PURPOSES)}")


def _check_left_out(purpose: str, given: dict[str, object]) -> None:
    """OptionError for an option that is for another ``purpose``."""
    if wrong := next((name for name, value in given.items() if value), None):
        raise OptionError(f"{wrong} is for another purpose", remedy=f"leave it out, or add --for {purpose}")


def _check_output(output: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """OutputError if it can't be written, or is one of ``inputs``."""
    from converters.output import check_inputs  # noqa: PLC0415 - likewise

    check_inputs(output, inputs, ())
    output_file.check(output, force=force)

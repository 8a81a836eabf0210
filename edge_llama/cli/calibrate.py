"""``edge-llama calibrate``: the ranges that a vision tower's values have, for a conversion to integers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_llama.backends.local_models import found
from edge_llama.backends.towers import read_vision
from edge_llama.cli import options
from edge_llama.cli.terminal.console import note
from edge_llama.errors import ArtifactError, OptionError, OutputError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.onnx_vision import VISION_INPUT
from edge_llama.host.atomic import new_file
from edge_llama.host.devices import cpu_threads
from edge_llama.media.images import Image
from edge_llama.media.llama4_tiles import tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray


def calibrate(
    model: Annotated[str, typer.Argument(help="A bundle with a vision tower in f32 or f16 for ONNX Runtime.")],
    output: Annotated[Path, typer.Argument(help="The file to write, for convert --ranges.")],
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture such as will be seen. May be repeated.")
    ] = None,
    max_tiles: Annotated[
        int | None,
        typer.Option(help="See each picture in so many tiles at most."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure between which bounds a vision tower's values lie on sample pictures: a hundred are better than ten.

    Example: edge-llama calibrate scout-f32/ ranges.json --image a.jpg --image b.jpg

    Then: edge-llama convert CHECKPOINT scout-npu/ --tower vision --vision-quant a16w8 --ranges ranges.json
    """
    from quant.calibration import measured  # noqa: PLC0415 - the runtime's verbs must not need this half

    if not image:
        raise OptionError("no pictures to measure with", remedy="add --image FILE, once for each")
    if output.exists() and not force:
        raise OutputError(f"{output}: already exists", remedy="give another name, or --force to replace it")
    tower = _float_tower(model)
    found = measured(tower.path, _samples(tower, image, max_tiles), threads=threads or cpu_threads())
    try:
        with new_file(output) as file:
            file.write(found.encode())
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}", remedy="give another name") from error
    note(f"{output}: ranges of {len(found.values):,} values over {found.tiles:,} tiles", quiet=quiet)


def _float_tower(model: str) -> VisionArtifact:
    tower = read_vision(found(model))
    if tower.engine != "onnxruntime" or tower.format not in ("f32", "f16"):
        raise ArtifactError(
            f"{tower.path}: a vision tower in {tower.format} for {tower.engine}",
            remedy="calibrate one in float: edge-llama convert CHECKPOINT FOLDER --tower vision --vision-quant f32",
        )
    return tower


def _samples(
    tower: VisionArtifact, images: list[Path], max_tiles: int | None
) -> "Iterator[dict[str, NDArray[np.float32]]]":
    for path in images:
        for tile in tiles(Image.open(path), tower.spec, max_tiles):
            yield {VISION_INPUT: tile[None]}

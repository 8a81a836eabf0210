"""``edge-llama calibrate`` for ranges: between which bounds a tower's values lie, for towers in integers."""

import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_llama.backends import local_models
from edge_llama.backends.base import AskedDevice
from edge_llama.backends.registry import vision_engine_of
from edge_llama.backends.towers import read_vision
from edge_llama.cli import output_file
from edge_llama.cli.terminal.console import note, progress
from edge_llama.errors import ArtifactError, InputError, OptionError
from edge_llama.files.artifact import VisionArtifact
from edge_llama.files.manifest import NAME as MANIFEST
from edge_llama.files.manifest import bundle_of
from edge_llama.files.onnx_vision import VISION_INPUT
from edge_llama.host.regular_files import text_of
from edge_llama.media.images import Image
from edge_llama.media.llama4_tiles import grid, tiles, token_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from converters.checkpoint import Checkpoint
    from quant.ranges import Ranges

TEXTS = (".txt", ".md", ".rst", ".text")
"""Files that are read as text; others are pictures."""
_NEITHER = (".json", ".jsonl")


def measure_ranges(
    model: str, samples: "Sequence[Path]", output: Path, *, max_tiles: int | None, threads: int, quiet: bool
) -> None:
    """Measure a checkpoint's text tower on texts, or a bundle's vision tower on pictures, and write ``output``.

    OptionError, ArtifactError or OutputError for what can't be measured, with or written.
    """
    from converters.targets.onnx import check_library  # noqa: PLC0415 - the runtime's verbs must not need this half

    check_library()
    texts = [path for path in samples if path.suffix.lower() in TEXTS]
    pictures = [path for path in samples if path not in texts]
    if texts:
        checkpoint = _checkpoint(model, output)
        found, what = _of_texts(checkpoint, texts, pictures, max_tiles, threads, quiet=quiet), "tokens"
    else:
        found, what = _of_pictures(_float_tower(model, output), pictures, max_tiles, threads), "tiles"
    output_file.write(output, found.encode())
    note(f"{output}: ranges of {len(found.values):,} values over {found.count:,} {what}", quiet=quiet)


def check_samples(samples: "Sequence[Path]") -> None:
    """OptionError for what is neither text nor picture: found before minutes of work."""
    if not samples:
        raise OptionError("nothing to measure with", remedy="name texts or pictures before the output")
    taken = f"texts ({', '.join(TEXTS)}) and pictures are taken"
    for path in samples:
        if path.is_dir():
            raise OptionError(f"{path}: is a folder; {taken}", remedy=f"name the files in it: {path / '*'}")
        if path.suffix.lower() in _NEITHER:
            raise OptionError(
                f"{path}: {taken}, no JSON", remedy="write what chats say to a .txt file, as the chat template does"
            )


def _checkpoint(model: str, output: Path) -> "Checkpoint":
    """The checkpoint; OutputError if ``output`` is one of its files."""
    from converters.output import check_inputs  # noqa: PLC0415 - likewise
    from converters.sources import open_checkpoint  # noqa: PLC0415

    path = Path(model)
    checkpoint = open_checkpoint(path if path.exists() else local_models.named(path) or path)
    check_inputs(output, [checkpoint.path], checkpoint.files)
    return checkpoint


def _of_texts(
    checkpoint: "Checkpoint",
    texts: "Sequence[Path]",
    pictures: "Sequence[Path]",
    max_tiles: int | None,
    threads: int,
    *,
    quiet: bool,
) -> "Ranges":
    """Of the text tower; pictures are seen by the vision tower, in float, and each is followed by one of the texts."""
    from converters.targets.onnx.static_ranges import Sample, encoder_of, measure_text  # noqa: PLC0415 - likewise

    contents: list[Sample] = [_text(text) for text in texts]
    if pictures:
        encode = encoder_of(checkpoint)
        ids = [encode(str(text)) for text in contents]
        seen = _embedded(checkpoint, pictures, max_tiles, threads)
        contents += [[*rows, *ids[number % len(ids)]] for number, rows in enumerate(seen)]
    with progress("measuring", quiet=quiet, unit="tokens") as show:
        tell = partial(note, quiet=quiet)
        return measure_text(checkpoint, contents, threads=threads, on_progress=show, tell=tell)


def _embedded(
    checkpoint: "Checkpoint", pictures: "Sequence[Path]", max_tiles: int | None, threads: int
) -> "Iterator[list[int | NDArray[np.float32]]]":
    """The rows that stand for each picture: tokens around its tiles, and their embeddings."""
    from converters import convert  # noqa: PLC0415

    ids = {text: number for number, text in enumerate(checkpoint.vocabulary.tokens)}
    with tempfile.TemporaryDirectory(prefix="edge-llama-calibration-") as scratch:
        folder = Path(scratch) / "vision"
        convert(checkpoint.path, folder, tower="vision", vision_quant="f32")
        artifact = read_vision(folder)
        engine = vision_engine_of(artifact)
        tower = engine.open(artifact, engine.place(artifact, AskedDevice("cpu")), threads=threads)
        try:
            for path in pictures:
                image = Image.open(path)
                embeddings = iter(np.concatenate(tower.encode(tiles(image, artifact.spec, max_tiles))))
                rows: list[int | NDArray[np.float32]] = []
                for step in token_plan(grid(image.width, image.height, artifact.spec, max_tiles), artifact.spec):
                    rows += [ids[step]] if isinstance(step, str) else itertools.islice(embeddings, step)
                yield rows
        finally:
            tower.close()


def _text(path: Path) -> str:
    try:
        return text_of(path, "utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", remedy="name a file of text") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8: {error}", remedy="save it as UTF-8") from error


def _of_pictures(tower: VisionArtifact, images: "Sequence[Path]", max_tiles: int | None, threads: int) -> "Ranges":
    from quant.calibration import measured  # noqa: PLC0415 - likewise

    return measured(tower.path, _samples(tower, images, max_tiles), threads=threads)


def _float_tower(model: str, output: Path) -> VisionArtifact:
    """The tower; OutputError if ``output`` is one of its files."""
    from converters.output import check_inputs  # noqa: PLC0415 - likewise

    tower = read_vision(local_models.found(model))
    if tower.engine != "onnxruntime" or tower.format not in ("f32", "f16"):
        raise ArtifactError(
            f"{tower.path}: a vision tower in {tower.format} for {tower.engine}",
            remedy="calibrate one in float: edge-llama convert CHECKPOINT FOLDER --tower vision --vision-quant f32",
        )
    check_inputs(output, [tower.path], [*tower.files, bundle_of(tower.path) / MANIFEST])
    return tower


def _samples(
    tower: VisionArtifact, images: "Sequence[Path]", max_tiles: int | None
) -> "Iterator[dict[str, NDArray[np.float32]]]":
    for path in images:
        for tile in tiles(Image.open(path), tower.spec, max_tiles):
            yield {VISION_INPUT: tile[None]}

"""``edge-llama embed``: vectors of texts."""

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_llama.cli import options
from edge_llama.cli.terminal.console import note
from edge_llama.errors import InputError, OptionError, OutputError
from edge_llama.host.atomic import new_file
from edge_llama.planning.options import OpenOptions

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

_SUFFIX = ".npy"


@options.with_opening("n_ctx", "threads", "n_batch", "flash_attention", "kv_format", "device", *options.SHARES)
def embed(
    *,
    model: Annotated[str, typer.Argument(help="A .gguf file, also of a model that only embeds, a folder, or smollm2.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="The texts. Without one, or with - alone, each line of stdin is one."),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="mean|last|cls",
            help="How a text's tokens become one vector. Default: as the model's file says, else mean.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Write the vectors there, a row for each text, float32.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    opening: OpenOptions,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Print a vector of unit length for each text: a line of numbers each, in their order.

    Example: edge-llama embed bge-small-f16.gguf "a text" "another" --output vectors.npy
    """
    if output:
        _check_output(output, force=force)
    given = _lines() if texts in (None, ["-"]) else list(texts or ())
    with options.open_model(model, {"tune": False, **opening}, verbose=verbose) as opened:
        chosen = opened.pooling(pooling)  # type: ignore[arg-type] # it says what is none
        vectors = opened.embed(given, chosen.name)
    if not as_json and not chosen.is_known:
        note(f"pooling: {chosen}", quiet=quiet)
    if output:
        _write(vectors, output)
    if as_json:
        about = {"model": opened.artifact.name, "pooling": chosen.name, "pooling_reason": chosen.reason}
        rows = {} if output else {"vectors": [list(map(float, vector)) for vector in vectors]}
        where = {"output": str(output)} if output else {}
        print(json.dumps({**about, "texts": len(vectors), "n_embd": vectors.shape[1], **where, **rows}))  # noqa: T201
    elif output:
        note(f"{output}: {len(vectors):,} vectors of {vectors.shape[1]:,} numbers", quiet=quiet)
    else:
        for vector in vectors:
            print(*map(str, vector))  # noqa: T201


def _check_output(output: Path, *, force: bool) -> None:
    if output.suffix.lower() != _SUFFIX:
        raise OptionError(f"--output {output}: expected a name that ends in {_SUFFIX}")
    if output.exists() and not force:
        raise OutputError(f"{output}: already exists", remedy="give another name, or --force to replace it")


def _lines() -> list[str]:
    """Each line of stdin, without its end."""
    data = sys.stdin.buffer.read()
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise OptionError(f"stdin: byte {error.start:,} (0x{data[error.start]:02x}) is not UTF-8") from error
    lines = text.split("\n")
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not lines:
        raise InputError("stdin: there is no text", remedy="pipe texts in, a line each, or give them as arguments")
    return lines


def _write(vectors: "NDArray[float32]", output: Path) -> None:
    import numpy as np  # noqa: PLC0415 - the command line shows its help without it

    data = io.BytesIO()
    np.save(data, vectors)
    try:
        with new_file(output) as file:
            file.write(data.getbuffer())
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from error

"""``edge-llama verify``: tells whether a model file is, bit for bit, what was written."""

import json
from typing import Annotated

import typer

from edge_llama.artifact import locate, read_artifact
from edge_llama.cli import options
from edge_llama.cli.console import note, progress
from edge_llama.integrity import verify as verify_file


def verify(
    model: Annotated[str | None, typer.Argument(help="A .gguf file, or smollm2.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check a model's structure and every bit of its contents. Exit code 0: intact; 2: damaged; 1: it has no hashes.

    Example: edge-llama verify llama-3.2-1b-q4_k_m.gguf
    """
    artifact = read_artifact(locate(model))
    done = 0
    with progress(artifact.path.name, quiet=quiet) as show:

        def count(checked: int) -> None:
            nonlocal done
            done += checked
            if show:
                show(done, artifact.weight_bytes)

        for header in artifact.headers:
            verify_file(header, count)
    if as_json:
        print(json.dumps({"path": str(artifact.path), "tensors": len(artifact.tensors), "intact": True}))  # noqa: T201
    note(f"{artifact.path}: intact, {len(artifact.tensors):,} tensors", quiet=quiet or as_json)

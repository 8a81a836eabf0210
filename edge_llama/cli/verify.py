"""``edge-llama verify``: tells whether a model is, bit for bit, what was written."""

import json
from typing import Annotated

import typer

from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import read_towers
from edge_llama.cli import options
from edge_llama.cli.terminal.console import note, progress
from edge_llama.files import manifest
from edge_llama.files.artifact import existing
from edge_llama.files.integrity import verify as verify_file


def verify(
    model: Annotated[str | None, typer.Argument(help="A .gguf file, a bundle, a vision tower, or smollm2.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check a model's structure and every bit of its contents. Exit code 0: intact; 2: damaged; 1: it has no hashes.

    Example: edge-llama verify llama-3.2-1b-q4_k_m.gguf
    """
    towers = read_towers(existing(model))
    text = open_artifact(towers.text) if towers.text else None
    tensors = (*(text.tensors if text else ()), *(towers.vision.tensors if towers.vision else ()))
    files = towers.manifest.files if towers.manifest else {}
    total = sum(file.nbytes for file in files.values()) or sum(tensor.nbytes for tensor in tensors)
    done = 0
    with progress(towers.path.name, quiet=quiet) as show:

        def count(checked: int) -> None:
            nonlocal done
            done += checked
            if show:
                show(done, total)

        if towers.manifest:
            manifest.verify(towers.path, count)
        else:
            if text:
                text.verify(count)
            if towers.vision and towers.vision.header:
                verify_file(towers.vision.header, count)
    intact = {"path": str(towers.path), "tensors": len(tensors), "intact": True}
    if as_json:
        print(json.dumps(intact | ({"files": len(files)} if files else {})))  # noqa: T201
    among = f" in {len(files):,} files" if files else ""
    note(f"{towers.path}: intact, {len(tensors):,} tensors{among}", quiet=quiet or as_json)

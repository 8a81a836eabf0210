"""``edge-llama inspect``: what is inside a model file."""

import json
import math
import sys
from math import prod
from typing import Annotated, Any

import typer

from edge_llama.artifact import Artifact, locate, read_artifact
from edge_llama.cli import options
from edge_llama.errors import printable
from edge_llama.gguf import Value, ValueType

_SHOWN = 72  # characters of a value that a table shows


def inspect(
    model: Annotated[str | None, typer.Argument(help="A .gguf file, or smollm2.")] = None,
    as_json: options.Json = False,
) -> None:
    """Show a model's towers, metadata, tensors and sizes. Only the header is read.

    Example: edge-llama inspect llama-3.2-1b-q4_k_m.gguf --json
    """
    artifact = read_artifact(locate(model))
    if as_json:
        print(json.dumps(_described(artifact), ensure_ascii=False))  # noqa: T201
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    weights = sum(prod(tensor.shape) for tensor in artifact.tensors)
    bits = 8 * artifact.weight_bytes / max(weights, 1)
    console.print(
        escape(
            f"{printable(str(artifact.path))}\n{printable(artifact.name)}: text tower "
            f"({printable(artifact.architecture)}), GGUF {artifact.header.version}"
        )
    )
    console.print(f"{weights:,} weights in {artifact.weight_bytes:,} bytes ({bits:.2f} bits each)\n")
    fields = Table("field", "type", "value", box=None)
    for key, value in artifact.header.fields.items():
        fields.add_row(escape(printable(key)), _type(value), escape(_short(value)))
    console.print(fields)
    tensors = Table("tensor", "shape", "format", "bytes", box=None)
    for tensor in artifact.tensors:
        shape = " x ".join(f"{size:,}" for size in tensor.shape)
        tensors.add_row(escape(printable(tensor.name)), shape, tensor.format.name, f"{tensor.nbytes:,}")
    console.print()
    console.print(tensors)


def _described(artifact: Artifact) -> dict[str, Any]:
    header = artifact.header
    return {
        "path": str(artifact.path),
        "name": artifact.name,
        "towers": {"text": {"engine": "llama.cpp", "architecture": artifact.architecture}},
        "file_bytes": sum(part.file_size for part in artifact.headers),
        "weight_bytes": artifact.weight_bytes,
        "metadata": {key: _plain(value) for key, value in header.fields.items()},
        "tensors": [
            {"name": tensor.name, "shape": list(tensor.shape), "format": tensor.format.name, "bytes": tensor.nbytes}
            for tensor in artifact.tensors
        ],
    }


def _plain(value: Value) -> Any:
    """As JSON has it: no NaN and no infinities there."""
    if value.item is not None:
        return list(value.data) if value.item is ValueType.STRING else value.data.tolist()
    return str(value.data) if isinstance(value.data, float) and not math.isfinite(value.data) else value.data


def _type(value: Value) -> str:
    return f"{value.item.name.lower()} x {len(value.data):,}" if value.item is not None else value.type.name.lower()


def _short(value: Value) -> str:
    data = list(value.data[:6]) if value.item is not None else value.data
    text = ", ".join(map(str, data)) if isinstance(data, list) else str(data)
    text = printable(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

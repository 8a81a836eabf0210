"""``edge-llama inspect``: what is inside a model."""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_llama.cli import options
from edge_llama.errors import printable
from edge_llama.files.artifact import Bundle, VisionArtifact, existing, read_artifact, read_towers
from edge_llama.files.gguf import Header, TensorInfo, Value, ValueType
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.files.onnx_text import OnnxArtifact
from edge_llama.files.text_artifact import Artifact

if TYPE_CHECKING:
    from rich.console import Console

_Row = tuple[str, str, str]
"""A field's name, its type and its value."""
_SHOWN = 72  # characters of a value that a table shows


def inspect(
    model: Annotated[str | None, typer.Argument(help="A .gguf file, a bundle, a vision tower, or smollm2.")] = None,
    as_json: options.Json = False,
) -> None:
    """Show a model's towers, metadata, tensors and sizes. Only headers are read.

    Example: edge-llama inspect llama-3.2-1b-q4_k_m.gguf --json
    """
    found = read_towers(existing(model))
    text = read_artifact(found.text) if found.text else None
    if as_json:
        print(json.dumps(_described(found, text), ensure_ascii=False))  # noqa: T201
        return
    from rich.console import Console  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    console.print(printable(str(found.path)), soft_wrap=True)
    for name, file in (found.manifest.files if found.manifest else {}).items():
        console.print(f"  {printable(name)}: {file.nbytes:,} bytes", soft_wrap=True)
    if text:
        form = f"GGUF {text.header.version}" if isinstance(text, GGUFArtifact) else "ONNX"
        title = f"{printable(text.name)}: text tower ({printable(text.architecture)}), {form}"
        _show(console, title, _rows(text), text.tensors, _size(text))
    if vision := found.vision:
        rows = _header_rows(vision.header) if vision.header else []
        _show(console, f"{printable(vision.name)}: {_kind(vision)}", rows, vision.tensors, _weights(vision.tensors))


def _size(text: Artifact) -> str:
    """ONNX packs several weights into a number, and lets two tensors share their bytes."""
    if isinstance(text, GGUFArtifact):
        return _weights(text.tensors)
    return f"{len(text.tensors):,} tensors in {text.weight_bytes:,} bytes"


def _weights(tensors: Sequence[TensorInfo]) -> str:
    weights, nbytes = sum(prod(tensor.shape) for tensor in tensors), sum(tensor.nbytes for tensor in tensors)
    return f"{weights:,} weights in {nbytes:,} bytes ({8 * nbytes / max(weights, 1):.2f} bits each)"


def _kind(vision: VisionArtifact) -> str:
    spec = vision.spec
    return (
        f"vision tower ({vision.engine}, {vision.format}), at most {spec.max_tiles} tiles of {spec.tile} x {spec.tile} "
        f"pixels, {spec.tokens_per_tile} tokens of {spec.n_embd:,} numbers each"
    )


def _show(console: "Console", title: str, rows: Sequence[_Row], tensors: Sequence[TensorInfo], size: str) -> None:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console.print(f"{title}\n{size}\n", soft_wrap=True)
    fields = Table("field", "type", "value", box=None)
    for key, kind, value in rows:
        fields.add_row(Text(printable(key)), kind, Text(_cut(value)))
    if rows:
        console.print(fields, "")
    table = Table("tensor", "shape", "format", "bytes", box=None)
    for tensor in tensors:
        shape = " x ".join(f"{size:,}" for size in tensor.shape)
        table.add_row(Text(printable(tensor.name)), shape, tensor.format.name, f"{tensor.nbytes:,}")
    console.print(table)


def _described(found: Bundle, text: Artifact | None) -> dict[str, Any]:
    """``metadata`` is the text tower's where there is one; a vision tower in a GGUF file has its own beside it."""
    towers: dict[str, Any] = {}
    tensors: list[dict[str, Any]] = []
    files: dict[str, int] = {}
    if text:
        towers["text"] = {"engine": text.engine, "architecture": text.architecture, "file": str(text.path)}
        tensors += _tensors("text", text.tensors)
        files |= {str(path): path.stat().st_size for path in text.files}
    if vision := found.vision:
        towers["vision"] = {
            "engine": vision.engine,
            "format": vision.format,
            "file": str(vision.path),
            "images": vision.spec.to_json(),
            **({"metadata": _metadata(vision.header)} if vision.header else {}),
        }
        tensors += _tensors("vision", vision.tensors)
        files |= {str(path): path.stat().st_size for path in vision.files}
    manifest = found.manifest
    return {
        "path": str(found.path),
        "name": manifest.name if manifest else text.name if text else vision.name if vision else "",
        "towers": towers,
        **({"writer": manifest.writer, "generation": dict(manifest.generation)} if manifest else {}),
        "file_bytes": sum(files.values()),
        "weight_bytes": sum(tensor["bytes"] for tensor in tensors),
        "metadata": _text_metadata(text) if text else {},
        "tensors": tensors,
    }


def _text_metadata(text: Artifact) -> dict[str, Any]:
    if isinstance(text, GGUFArtifact):
        return _metadata(text.header)
    return dict(_flat(text.config.content)) if isinstance(text, OnnxArtifact) else {}


def _rows(text: Artifact) -> list[_Row]:
    if isinstance(text, GGUFArtifact):
        return _header_rows(text.header)
    return [(key, type(value).__name__, str(value)) for key, value in _text_metadata(text).items()]


def _header_rows(header: Header) -> list[_Row]:
    return [(key, _type(value), _short(value)) for key, value in header.fields.items()]


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Objects within objects as one, their keys with dots between."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _metadata(header: Header) -> dict[str, Any]:
    return {key: _plain(value) for key, value in header.fields.items()}


def _tensors(tower: str, tensors: Iterable[TensorInfo]) -> list[dict[str, Any]]:
    return [
        {
            "tower": tower,
            "name": tensor.name,
            "shape": list(tensor.shape),
            "format": tensor.format.name,
            "bytes": tensor.nbytes,
        }
        for tensor in tensors
    ]


def _plain(value: Value) -> Any:
    """As JSON has it: no NaN and no infinities there."""
    if value.item is not None:
        return list(value.data) if value.item is ValueType.STRING else value.data.tolist()
    return str(value.data) if isinstance(value.data, float) and not math.isfinite(value.data) else value.data


def _type(value: Value) -> str:
    return f"{value.item.name.lower()} x {len(value.data):,}" if value.item is not None else value.type.name.lower()


def _short(value: Value) -> str:
    data = list(value.data[:6]) if value.item is not None else value.data
    return ", ".join(map(str, data)) if isinstance(data, list) else str(data)


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

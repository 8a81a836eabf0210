"""``edge-llama inspect``: what is inside a model."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_llama.backends import local_models
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import checkpoint_at, read_towers
from edge_llama.cli import certificate_table, checkpoints, options
from edge_llama.errors import InputError, printable
from edge_llama.fidelity.certified import read_certificate
from edge_llama.files import gguf_metadata
from edge_llama.files.artifact import Artifact, Bundle, Row, VisionArtifact
from edge_llama.files.gguf import Header, TensorInfo, read_header
from edge_llama.files.gguf_adapter import KIND as ADAPTER
from edge_llama.files.gguf_adapter import AdapterFile, read_adapter

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 72  # characters of a value that a table shows


def inspect(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A .gguf file, a bundle, a vision tower, an adapter, an importance matrix, a checkpoint, or smollm2."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show a model's towers, metadata, tensors and sizes, or what a checkpoint would become. Only headers are read.

    Example: edge-llama inspect llama-3.2-1b-q4_k_m.gguf --json
    """
    path = local_models.found(model)
    if checkpoint_at(path):
        _describe(path, as_json=as_json)
        return
    kind = gguf_metadata.type_of(path)
    if kind == ADAPTER:
        _describe_adapter(read_adapter(path), as_json=as_json)
        return
    if kind == gguf_metadata.IMPORTANCE:
        _describe_importance(read_header(path), as_json=as_json)
        return
    found = read_towers(path)
    text = open_artifact(found.text) if found.text else None
    _print(_described(found, text)) if as_json else _show_towers(found, text, _console())


def _describe(folder: Path, *, as_json: bool) -> None:
    from edge_llama.backends.llama_cpp.vocabulary_probe import encode  # noqa: PLC0415 - for checkpoints alone

    found = checkpoints.read(folder)
    _print(checkpoints.as_json(found, encode)) if as_json else checkpoints.show(found, _console(), encode)


def _describe_adapter(adapter: AdapterFile, *, as_json: bool) -> None:
    header = adapter.header
    name = header.get("general.name", str, adapter.path.stem)
    if not as_json:
        title = f"{printable(name)}: adapter for a {printable(adapter.architecture)} model, alpha {adapter.alpha:g}"
        _show(_console(), title, gguf_metadata.as_rows(header), header.tensors, _weights(header.tensors))
        return
    _print(
        {
            "path": str(adapter.path),
            "name": name,
            "adapter": {"architecture": adapter.architecture, "alpha": adapter.alpha},
            "file_bytes": header.file_size,
            "weight_bytes": adapter.nbytes,
            "metadata": gguf_metadata.as_json(header),
            "tensors": _tensors("", header.tensors),
        }
    )


def _describe_importance(header: Header, *, as_json: bool) -> None:
    """What ``calibrate --for importance`` or llama-imatrix wrote."""
    chunks, size = (header.get(f"{gguf_metadata.IMPORTANCE}.{name}", int, 0) for name in ("chunk_count", "chunk_size"))
    if not as_json:
        title = f"{printable(header.path.name)}: importance matrix, {chunks:,} chunks of {size:,} tokens"
        _show(_console(), title, gguf_metadata.as_rows(header), header.tensors, f"{len(header.tensors):,} tensors")
        return
    _print(
        {
            "path": str(header.path),
            "importance": {"chunks": chunks, "tokens_per_chunk": size},
            "file_bytes": header.file_size,
            "metadata": gguf_metadata.as_json(header),
            "tensors": _tensors("", header.tensors),
        }
    )


def _print(described: Mapping[str, Any]) -> None:
    print(json.dumps(described, ensure_ascii=False))  # noqa: T201


def _console() -> "Console":
    from rich.console import Console  # noqa: PLC0415

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)


def _show_towers(found: Bundle, text: Artifact | None, console: "Console") -> None:
    console.print(printable(str(found.path)), soft_wrap=True)
    for name, file in (found.manifest.files if found.manifest else {}).items():
        console.print(f"  {printable(name)}: {file.nbytes:,} bytes", soft_wrap=True)
    for line in _certificate_lines(found.path):
        console.print(line, soft_wrap=True)
    if text:
        title = f"{printable(text.name)}: text tower ({printable(text.architecture)}), {text.form}"
        _show(console, title, text.rows(), text.tensors, _size(text))
        for warning in text.warnings:
            console.print(f"warning: {warning}", soft_wrap=True)
    if vision := found.vision:
        rows = gguf_metadata.as_rows(vision.header) if vision.header else []
        _show(console, f"{printable(vision.name)}: {_kind(vision)}", rows, vision.tensors, _weights(vision.tensors))


def _certificate_lines(path: Path) -> Iterable[str]:
    """A certificate that can't be believed is no reason to hide the rest."""
    try:
        certificate = read_certificate(path)
    except InputError as error:
        return [f"certificate: {error}"]
    return certificate_table.lines(certificate) if certificate else ()


def _certificate_json(path: Path) -> dict[str, Any]:
    try:
        certificate = read_certificate(path)
    except InputError as error:
        return {"certificate": {"error": str(error)}}
    return {"certificate": certificate.to_json()} if certificate else {}


def _size(text: Artifact) -> str:
    """ONNX packs several weights into a number, and lets two tensors share their bytes."""
    if text.n_weights is not None:
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


def _show(console: "Console", title: str, rows: Sequence[Row], tensors: Sequence[TensorInfo], size: str) -> None:
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
            **({"metadata": gguf_metadata.as_json(vision.header)} if vision.header else {}),
        }
        tensors += _tensors("vision", vision.tensors)
        files |= {str(path): path.stat().st_size for path in vision.files}
    manifest = found.manifest
    return {
        "path": str(found.path),
        "name": manifest.name if manifest else text.name if text else vision.name if vision else "",
        "towers": towers,
        **({"writer": manifest.writer, "generation": dict(manifest.generation)} if manifest else {}),
        **_certificate_json(found.path),
        "file_bytes": sum(files.values()),
        "weight_bytes": sum(tensor["bytes"] for tensor in tensors),
        "metadata": dict(text.metadata()) if text else {},
        "warnings": list(text.warnings) if text else [],
        "tensors": tensors,
    }


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


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

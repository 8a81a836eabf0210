"""``edge-llama models``: what already lies on this machine."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edge_llama.backends.local_models import LocalModel, local_models, weights_in
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import read_towers
from edge_llama.cli import options
from edge_llama.cli.terminal.console import note
from edge_llama.errors import EdgeLlamaError, printable
from edge_llama.files.artifact import main_format


def models(as_json: options.Json = False) -> None:
    """List models and checkpoints that lie on this machine. Every verb takes the names; nothing is copied.

    Looked at are the folders of $EDGE_LLAMA_MODELS, the cache of Hugging Face, and the folders of LM Studio, llama.cpp
    and Ollama. Of each file only the header is read.

    Example: edge-llama models --json
    """
    found = map(_described, local_models())
    if as_json:
        print(json.dumps(list(found), ensure_ascii=False))  # noqa: T201
    elif not _print_table(found):
        note("no models found: put some into a folder, and its path into $EDGE_LLAMA_MODELS")


def _described(model: LocalModel) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": model.name,
        "path": str(model.path),
        "store": model.store,
        "kind": model.kind,
        "bytes": None,
        "architecture": None,
        "format": None,
        "vision": False,
        "problem": model.problem,
    }
    if model.problem:
        return described
    try:
        if model.kind == "checkpoint":
            return {**described, "bytes": _bytes(weights_in(model.path))}
        towers = read_towers(model.path)
        text, vision = open_artifact(towers.text) if towers.text else None, towers.vision
        files = {*(text.files if text else ()), *(vision.files if vision else ())}
        described |= {"vision": vision is not None, "bytes": _bytes(files)}
    except (EdgeLlamaError, OSError) as error:
        return {**described, "problem": str(error).removeprefix(f"{model.path}: ")}
    return described | ({"architecture": text.architecture, "format": main_format(text.tensors)} if text else {})


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _print_table(found: Iterable[dict[str, Any]]) -> bool:
    """Whether there was one."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    rows = list(found)
    if rows:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, justify in (("name", "left"), ("size", "right"), ("what", "left"), ("where", "left")):
            table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type] # a literal each
        for row in rows:
            table.add_row(*map(printable, (row["name"], _size(row["bytes"]), _what(row), row["store"])))
        Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)
    return bool(rows)


def _size(nbytes: int | None) -> str:
    return "" if nbytes is None else f"{nbytes / 1e9:,.2f} GB"


def _what(row: dict[str, Any]) -> str:
    if row["problem"]:
        return f"can't be run: {row['problem']}"
    if row["kind"] == "checkpoint":
        return "a checkpoint: convert it first"
    return f"{row['architecture'] or 'vision'} {row['format'] or ''}{', with images' if row['vision'] else ''}".strip()

"""What ``edge-llama inspect`` shows of a checkpoint: what it is, and what each target would make of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_llama.errors import InputError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from converters.inspection import Inspection, Offer
    from converters.tokenizers.proof import GGUFEncoder


def read(folder: Path) -> "Inspection":
    """The checkpoint or adapter in ``folder``. CheckpointError where not even its config can be read."""
    from converters.inspection import inspect_checkpoint  # noqa: PLC0415 - the runtime's verbs must not need this half

    return inspect_checkpoint(folder)


def as_json(found: "Inspection", encode_gguf: "GGUFEncoder | None" = None) -> dict[str, Any]:
    """All of it as JSON has it; with an engine to ask, what the tokenizer's proof refuses too."""
    offers = list(found.offers(encode_gguf))
    return {
        "path": str(found.path),
        "kind": found.kind,
        "name": found.name,
        "family": found.family,
        "config": dict(found.facts),
        "weights": sum(stored.weights for stored in found.stored.values()),
        "weight_bytes": sum(stored.nbytes for stored in found.stored.values()),
        "dtypes": {
            dtype: {"tensors": stored.tensors, "weights": stored.weights, "bytes": stored.nbytes}
            for dtype, stored in found.stored.items()
        },
        "tokenizer": found.tokenizer,
        "chat_templates": dict(found.templates),
        "output_bytes": {offer.target: dict(offer.sizes) for offer in offers if not offer.refused},
        "refused": {offer.target: _refusal(offer.refused) for offer in offers if offer.refused},
        "problem": _refusal(found.problem) if found.problem else None,
        "notes": dict(found.notes),
        "warnings": list(found.warnings),
    }


def _refusal(error: InputError) -> dict[str, str]:
    return {"message": error.message, "remedy": error.remedy}


def show(found: "Inspection", console: "Console", encode_gguf: "GGUFEncoder | None" = None) -> None:
    """The same for people."""

    def line(text: str) -> None:
        console.print(printable(text), soft_wrap=True)

    family = f" ({found.family})" if found.family else ""
    line(f"{found.path}: {found.kind} {found.name}{family}")
    for dtype, stored in found.stored.items():
        line(f"{stored.tensors:,} tensors in {dtype}: {stored.weights:,} weights in {stored.nbytes:,} bytes")
    for name, value in found.facts.items():
        line(f"{name}: {json.dumps(value, ensure_ascii=False)[:200]}")
    if found.tokenizer:
        line(f"tokenizer: {found.tokenizer}")
    if found.kind == "checkpoint" and not found.problem:
        names = ", ".join(f"{name} ({length:,} characters)" for name, length in found.templates.items())
        line(f"chat templates: {names or 'none'}")
    for topic, text in found.notes.items():
        line(f"note: {topic}: {text}")
    for warning in found.warnings:
        line(f"warning: {warning}")
    if found.problem:
        line(f"can't be converted: {found.problem}")
    if found.kind == "adapter":
        line(f"to merge it: edge-llama convert BASE OUTPUT --lora {found.path}")
    for offer in found.offers(encode_gguf):
        _show_offer(offer, console)


def _show_offer(offer: "Offer", console: "Console") -> None:
    from rich.table import Table  # noqa: PLC0415

    from quant.recipe import RECIPES  # noqa: PLC0415

    if offer.refused:
        console.print(printable(f"{offer.target}: refused: {offer.refused}"), soft_wrap=True)
        return
    table = Table(offer.target, "bytes", "", box=None)
    for quant, nbytes in offer.sizes.items():
        needs_importance = quant in RECIPES and RECIPES[quant].needs_importance
        table.add_row(quant, f"{nbytes:>15,}", "by an importance matrix" if needs_importance else "")
    console.print(table)

"""What a conversion's report says of what it was given: how much of it was used."""

from pathlib import Path

from converters.layout import Entry, Layout
from converters.options import Options
from edge_llama.files.gguf import SUFFIX
from quant.recipe import WRITTEN
from quant.tensor_types import read_tensor_types, unmatched

_NAMED = 5
"""So many names are told."""


def notes_on(options: Options, layout: Layout) -> dict[str, str]:
    """By topic: which matrices were quantized by importance, and which lines of a file of formats are for none."""
    notes = {}
    entries = [entry for part in layout.parts if part.name.endswith(SUFFIX) for entry in part.entries]
    if any(entry.importance for entry in entries):
        notes["importance"] = _weighed(entries)
    if options.tensor_type_file is not None:
        types = read_tensor_types(Path(options.tensor_type_file), WRITTEN)
        if without := unmatched(types, [entry.tensor.name for entry in entries]):
            notes["tensor types"] = f"no tensor has {_listed(without)} in its name"
    return notes


def _weighed(entries: list[Entry]) -> str:
    matrices = [entry for entry in entries if entry.format.is_quantized and not entry.is_exact]
    without = [entry.tensor.name for entry in matrices if entry.importance is None]
    told = f"{len(matrices) - len(without)} of {len(matrices)} matrices are quantized by it"
    return f"{told}; nothing is known of {_listed(without)}" if without else told


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

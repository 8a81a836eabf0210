"""Layers of two kinds: with attention to all that came before, and with a sliding window."""

from collections.abc import Mapping, Sequence
from typing import Any

from converters.architectures.table import Limit
from edge_llama.files.json_fields import Fields

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW_KEYS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
"""Fields of config.json."""
ALL_FULL = Limit(
    ("layer_types", "use_sliding_window"),
    lambda hp: not any(hp.window_layers),
    "full attention in all layers, since llama.cpp's graph has no window",
)


def typed_layers(fields: Fields, n_layer: int, usual: Sequence[str], window: int | None) -> Mapping[str, Any]:
    """``window`` and ``window_layers`` of Hyperparameters: as ``layer_types`` lists them, else as ``usual``."""
    types = fields.content.get("layer_types")
    if types is None:
        types = usual
    if not isinstance(types, list | tuple) or any(kind not in (FULL, SLIDING) for kind in types):
        raise fields.fail("layer_types", f"is {types!r:.100}, expected a list of {FULL} and {SLIDING}")
    if len(types) < n_layer:
        raise fields.fail("layer_types", f"has {len(types)} entries for {n_layer} layers")
    layers = tuple(kind == SLIDING for kind in types[:n_layer])
    if any(layers) and window is None:
        raise fields.fail("layer_types", f"has {SLIDING}, but config.json says that there is no window")
    return {"window": window if any(layers) else None, "window_layers": layers if any(layers) else ()}

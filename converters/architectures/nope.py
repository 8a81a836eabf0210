"""Layers without rotary embedding: a list, or every so many."""

from edge_llama.files.gguf_limits import LLAMA4_NOPE_INTERVAL
from edge_llama.files.json_fields import Fields

KEYS = ("no_rope_layers", "no_rope_layer_interval")
"""Fields of config.json."""


def integers(fields: Fields, key: str) -> tuple[int, ...] | None:
    """A list of small numbers; None if there is none. CheckpointError for anything else."""
    value = fields.content.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or any(not isinstance(item, int) or not 0 <= item < 1 << 16 for item in value):
        raise fields.fail(key, f"is {value!r:.100}, expected a list of layers")
    return tuple(map(int, value))


def rope_layers(fields: Fields, n_layer: int) -> tuple[bool, ...]:
    """By layer, whether it has positions; the list has 0 for one without, none or an empty one means every so many."""
    interval = fields.size("no_rope_layer_interval", LLAMA4_NOPE_INTERVAL)
    listed = integers(fields, "no_rope_layers")
    if listed and len(listed) < n_layer:
        raise fields.fail("no_rope_layers", f"has {len(listed)} entries for {n_layer} layers")
    return tuple(map(bool, listed[:n_layer])) if listed else every(interval, n_layer)


def every(interval: int, n_layer: int) -> tuple[bool, ...]:
    """By layer, false for every so many."""
    return tuple((layer + 1) % interval != 0 for layer in range(n_layer))


def is_built_in(layers: tuple[bool, ...]) -> bool:
    """Whether llama.cpp computes so."""
    return layers == every(LLAMA4_NOPE_INTERVAL, len(layers))

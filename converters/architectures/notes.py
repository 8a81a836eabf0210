"""What the report tells about a config.json that says a thing twice, or not as the weights do."""

from collections.abc import Collection, Mapping
from typing import Any

from converters.architectures.family import HEAD
from converters.architectures.rope import PLACES, parameters
from converters.architectures.windows import FULL
from converters.checkpoint import text_config
from converters.facts import OUTPUT_MATRIX, ROPE, find

_OTHER_TOWERS = ("vision_tower.", "model.vision_tower.")


def notes(config: Mapping[str, Any], names: Collection[str]) -> dict[str, str]:
    """By topic; ``names`` are those of the tensors. Raises nothing: what is wrong is found where it is read."""
    text = text_config(config)
    found = {ROPE.topic: _rope(text), OUTPUT_MATRIX.topic: _head(text, names)}
    if any(name.startswith(_OTHER_TOWERS) for name in names):
        found["vision tower"] = "it is no part of a text tower: no target but safetensors writes it"
    return {topic: note for topic, note in found.items() if note}


def _rope(config: Mapping[str, Any]) -> str:
    said = {place: config.get(place) or None for place in PLACES}
    nested = said[PLACES[1]]
    if isinstance(nested, dict) and FULL in nested:
        return ""  # by kinds of layers: rope_scaling adds to those of one kind
    place, content = parameters(config)
    parts = []
    if (found := find(ROPE, {"config.json": said})) is not None and found.note:
        parts.append(found.note)
    if not isinstance(content, dict):
        return ""
    beside, within = config.get("rope_theta"), content.get("rope_theta")
    if within is not None and beside is not None and within != beside:
        parts.append(f"rope_theta within {place} ({within!r:.40}) is taken, not that beside it ({beside!r:.40})")
    if content.get("rope_type", content.get("type")) == "dynamic":
        parts.append("dynamic scaling changes nothing within max_position_embeddings, and is left out")
    return "; ".join(parts)


def _head(config: Mapping[str, Any], names: Collection[str]) -> str:
    has_head = any(name == HEAD or name.endswith(f".{HEAD}") for name in names)
    if not has_head or config.get("tie_word_embeddings") is not True:
        return ""
    return f"{HEAD} is kept, though config.json says tie_word_embeddings"

"""A checkpoint of which there is a config.json and nothing else: its tensors have shapes, and no numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.architectures import llama4_vision, named_by
from converters.architectures.family import MAX_LAYERS
from converters.checkpoint import Checkpoint, Tensor, read_json, text_config
from converters.metadata.vocabulary import Vocabulary
from edge_llama.errors import CheckpointError
from edge_llama.files.formats import BF16

_LARGEST = 1 << 50
"""Weights that no model has: what a config.json of absurd sizes would make."""


def open_config(path: Path) -> Checkpoint:
    """The checkpoint that the config.json at ``path`` describes, in bf16.

    CheckpointError for what is missing or wrong in it, and for sizes that no model has.
    """
    config = read_json(path)
    folder, family = path.parent, named_by(config, path)
    hp = family.read(config, folder, has_head=not text_config(config).get("tie_word_embeddings", False))
    shapes = {place.hf: place.spec.sizes(hp) for place in family.places(hp)}
    shapes |= _vision(config, folder)
    count = sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if count > _LARGEST:
        raise CheckpointError(f"{path}: describes {count:,} weights", remedy="correct it, or download it again")
    tensors = {name: Tensor(name, shape, BF16, _Nothing(name)) for name, shape in shapes.items()}
    vocabulary = Vocabulary("", "", (), ())
    return Checkpoint(folder, _name(path, config), config, tensors, vocabulary, {}, files=(path,))


class _Nothing:
    """The numbers of a tensor that has none."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, _start: int, _stop: int) -> NDArray[np.uint8]:
        raise CheckpointError(f"tensor {self._name!r} has no weights: there is a config.json alone")


def _vision(config: Mapping[str, Any], folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the vision tower, if the config describes one."""
    if not isinstance(config.get("vision_config"), Mapping):
        return {}
    empty = Checkpoint(folder, "", config, {}, Vocabulary("", "", (), ()), {}, files=())
    hp = llama4_vision.hyperparameters(empty)
    if hp.n_layer > MAX_LAYERS:
        raise CheckpointError(f"{folder}: config.json: vision_config: num_hidden_layers is {hp.n_layer:,}")
    return llama4_vision.shapes(hp)


def _name(path: Path, config: Mapping[str, Any]) -> str:
    published = config.get("_name_or_path")
    if isinstance(published, str) and published.strip("/"):
        return published.strip("/").rsplit("/", 1)[-1]
    return path.stem if path.name != "config.json" else path.resolve().parent.name

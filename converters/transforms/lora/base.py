"""What an adapter is merged into: the base's names, and its embedding and head, which may be one matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from converters.checkpoint import Checkpoint, Tensor, text_config
from converters.transforms.lora.config import ENDS

_EMBEDDING, _HEAD = (f"{name}.weight" for name in ENDS)
_CHUNK = 1 << 20  # weights compared at once


@dataclass(frozen=True)
class Base:
    """``checkpoint``, and what an adapter may name in it."""

    checkpoint: Checkpoint

    @cached_property
    def embedding(self) -> str:
        """The name of the embedding's tensor."""
        found = (name for name in self.checkpoint.tensors if name.endswith(_EMBEDDING))
        return next(found, f"model.{_EMBEDDING}")

    @cached_property
    def head(self) -> str:
        """The name of the head's tensor, whether it is there or not."""
        found = (name for name in self.checkpoint.tensors if name.endswith(_HEAD))
        outside = self.embedding.removesuffix(_EMBEDDING).removesuffix("model.")
        return next(found, outside + _HEAD)

    @cached_property
    def names(self) -> frozenset[str]:
        """Those of all tensors, the head's too where it is the embedding."""
        tensors = self.checkpoint.tensors
        return frozenset(tensors) | ({self.head} if self.embedding in tensors else frozenset())

    @cached_property
    def modules(self) -> frozenset[str]:
        """What has a weight."""
        return frozenset(name.removesuffix(".weight") for name in self.names if name.endswith(".weight"))

    @cached_property
    def is_tied(self) -> bool:
        """Whether the head is the embedding: it isn't there, or config.json says so and it holds the same numbers."""
        tensors = self.checkpoint.tensors
        if self.head not in tensors or self.embedding not in tensors:
            return self.embedding in tensors
        says_so = text_config(self.checkpoint.config).get("tie_word_embeddings") is True
        return says_so and same_numbers(tensors[self.embedding], tensors[self.head])

    @property
    def rows(self) -> int:
        """The embedding's, one for each token; 0 if there is none."""
        found = self.checkpoint.tensors.get(self.embedding)
        return found.shape[0] if found else 0

    def tensor(self, name: str) -> Tensor:
        """The base's tensor; the embedding's where that is the head too."""
        tensors = self.checkpoint.tensors
        return tensors[self.embedding if name == self.head and name not in tensors else name]

    def is_matrix(self, module: str) -> bool:
        """Whether a module may have two matrices beside its own."""
        return len(self.tensor(f"{module}.weight").shape) == 2

    def is_end(self, name: str) -> bool:
        """Whether a tensor is the embedding or the head."""
        return name in (self.embedding, self.head)


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, bit for bit; compared until the first difference."""
    if (one.shape, one.format) != (other.shape, other.format):
        return False
    if one.read == other.read:
        return True
    step = max(_CHUNK // one.columns, 1)
    starts = range(0, one.rows, step)
    return all(
        np.array_equal(one.read(start, stop), other.read(start, stop))
        for start, stop in ((start, min(start + step, one.rows)) for start in starts)
    )


def with_settings(config: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """config.json's content with other ``settings`` of the text tower, wherever it says them."""
    nested = config.get("text_config")
    if not isinstance(nested, dict):
        return {**config, **settings}
    outside = {key: value for key, value in settings.items() if key in config}
    return {**config, **outside, "text_config": {**nested, **settings}}
